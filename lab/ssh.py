"""The controller's ssh to the hosts: configuration, and running a command."""

import subprocess
from pathlib import Path

from lab.errors import LabError
from lab.seed import controller_key, known_hosts
from lab.settings import Settings


def config_path(settings: Settings) -> Path:
    """ssh_config of the lab: `ssh -F .lab/ssh_config xa`."""
    return settings.state_dir / "ssh_config"


def write_config(settings: Settings, ports: dict[str, int]) -> None:
    """Write ssh_config for people and for this package."""
    text = "".join(
        f"Host {name}\n"
        "  HostName 127.0.0.1\n"
        f"  Port {ports[name]}\n"
        "  User root\n"
        f"  IdentityFile {controller_key(settings)}\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known_hosts(settings)}\n"
        "  StrictHostKeyChecking yes\n"
        "  LogLevel ERROR\n\n"
        for name in ports
    )
    config_path(settings).write_text(text)


def command(settings: Settings, host: str, *words: str) -> list[str]:
    """The ssh command line for `words` on a host (a login when there are none)."""
    return ["ssh", "-F", str(config_path(settings)), host, *words]


#: One connection for all commands: a handshake costs an emulated host seconds of its only CPU. Whoever stops the lab ends it.
#: A host that has lost its power is noticed after six seconds.
_KEPT = ("ControlMaster=auto", "ControlPersist=600", "ServerAliveInterval=2", "ServerAliveCountMax=3")

#: Of what a command that failed has said, so many characters are told: an answer in JSON ends with a brace.
_LAST_WORDS = 600


def run(settings: Settings, host: str, line: str, timeout_s: float = 60, *, kept: bool = False) -> str:
    """Run a shell line on a host and return what it printed; a failure is a LabError with its last words.

    ``kept``: over a connection that stays open for the next one.
    """
    settings.ssh_dir.mkdir(parents=True, exist_ok=True)
    options = [*_KEPT, f"ControlPath={settings.ssh_dir}/kept-%n"] if kept else []
    words = [
        "ssh",
        "-F",
        str(config_path(settings)),
        "-o",
        f"ConnectTimeout={int(timeout_s)}",
        "-o",
        "BatchMode=yes",
        *(word for option in options for word in ("-o", option)),
        host,
        line,
    ]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{host} did not answer `{line}` within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        said = " ".join((done.stderr.strip() or done.stdout).split())[-_LAST_WORDS:]
        raise LabError(f"`{line}` on {host} failed ({done.returncode}): {said or 'no output'}")
    return done.stdout
