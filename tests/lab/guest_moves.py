"""A guest that is moved between the lab's hosts by real `xl`, with the save helper of each side chosen per move.

The client's view is what counts: the guest's counter and what was written to it never go back.
"""

import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import guests, network, ssh
from lab.guests import Client
from lab.settings import HOSTS, Settings, address, host_number, peer_of

OURS, STOCK = "ours", "stock"
PROGRAM = "/opt/colo-helper/current/bin/colo-save-helper"
#: Asked for by the environment of one command; nothing of the host is changed.
ENVIRONMENT = {OURS: f"LIBXL_SAVE_HELPER={PROGRAM}", STOCK: "LIBXL_SAVE_HELPER="}
_IMAGE = "/var/tmp/moved.sav"
#: The unit that `xl remus` runs as, and what it says.
REMUS, _REMUS_LOG = "lab-remus", "/var/tmp/remus.log"
ON_HOST = Path(__file__).parent / "on_host"
_MOVE_TIMEOUT_S = 300
#: What `xl migrate -s` runs instead of ssh.
_TO_PEER = """#!/bin/sh
host=$1
shift
exec ssh -i /root/.ssh/id_lab -o BatchMode=yes "root@$host" {environment} "$@"
"""


def environment(which: str) -> str:
    """What stands before a command so that it uses a helper: for the stock one, that none is named."""
    return f"env {ENVIRONMENT[which]}" if which == OURS else "env -u LIBXL_SAVE_HELPER"


def let_hosts_log_in(settings: Settings) -> None:
    """Give root of each host a key for the other, for `xl migrate`; the host keys come through the controller."""
    for host, peer in zip(HOSTS, reversed(HOSTS), strict=True):
        where = address("mgmt", host_number(peer))
        key = ssh.run(settings, peer, "cat /etc/ssh/ssh_host_ed25519_key.pub").split()
        ssh.run(
            settings, host, "test -e /root/.ssh/id_lab || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_lab"
        )
        ssh.run(settings, host, f"echo '{where} {key[0]} {key[1]}' > /root/.ssh/known_hosts")
        public = ssh.run(settings, host, "cat /root/.ssh/id_lab.pub").strip()
        keys = "/root/.ssh/authorized_keys"
        ssh.run(settings, peer, f"grep -qF '{public}' {keys} || echo '{public}' >> {keys}")
        for which in (OURS, STOCK):
            script = _TO_PEER.format(environment=environment(which))
            path = f"/root/to-{which}"
            ssh.run(settings, host, f"cat > {path} <<'END'\n{script}END\nchmod 755 {path}")


@dataclass
class MovedGuest:
    """A guest and where it is."""

    settings: Settings
    name: str
    host: str

    @property
    def peer(self) -> str:
        """The other host."""
        return peer_of(self.host)

    @property
    def peer_address(self) -> str:
        """Where `xl` on the guest's host reaches the other one."""
        return address("mgmt", host_number(self.peer))

    def on(self, host: str, line: str, timeout_s: float = _MOVE_TIMEOUT_S) -> str:
        """Run a shell line on a host."""
        return ssh.run(self.settings, host, line, timeout_s)

    def domid(self, host: str) -> int:
        """The guest's number on a host."""
        return int(self.on(host, f"xl domid {self.name}"))

    def ask(self, token: str = "") -> guests.Answer:
        """Read the guest's counters, or write a token."""
        client = Client(self.settings, self.name, timeout_s=20)
        try:
            return client.write(token) if token else client.read()
        finally:
            client.close()

    def arrived(self) -> None:
        """The guest is on the other host now; let the client's bridge forget where it was."""
        network.forget_guests(self.settings, "data", self.host)
        self.host = self.peer

    def _run_script(self, host: str, name: str, argument: str) -> list[list[str]]:
        script = (ON_HOST / name).read_text()
        return [
            line.split()
            for line in self.on(host, f"python3 -IS - {argument} <<'END'\n{script}\nEND").splitlines()
        ]

    def memory(self, host: str) -> tuple[dict[int, str], set[int]]:
        """Hash of every page of the domain on a host, and the frames that belong to the host."""
        lines = self._run_script(host, "memory_hash.py", str(self.domid(host)))
        hashes = {int(gfn): value for gfn, value in lines if value != "special"}
        return hashes, {int(gfn) for gfn, value in lines if value == "special"}

    def image(self, host: str) -> dict[int, str]:
        """Hash of every page of the saved guest in the file on a host."""
        return {int(gfn): value for gfn, value in self._run_script(host, "image_hash.py", _IMAGE)}

    # ------------------------------------------------------------------------------------------------- the moves

    def save_and_restore(self, saver: str, restorer: str) -> tuple[str, list[int]]:
        """Save into a pipe, restore from a file.

        Returns what both `xl` said, and the frames that differ: between the image and the restored domain, and for a
        guest without PV drivers also between the saved domain and the restored one. All stand still. A guest with PV
        drivers shares frames with its host's back-ends, which go on using the saved domain's.
        """
        log = "/var/tmp/save.log"
        send = f"ssh -i /root/.ssh/id_lab -o BatchMode=yes root@{self.peer_address} 'cat > {_IMAGE}'"
        line = f"{environment(saver)} xl -v save -p {self.name} /dev/stdout 2> {log} | {send}; cat {log}"
        said = self.on(self.host, f"bash -o pipefail -c {shlex.quote(line)}")
        said += self.on(self.peer, f"{environment(restorer)} xl -v restore -p {_IMAGE} 2>&1")
        with ThreadPoolExecutor() as pool:
            source = pool.submit(self.memory, self.host)
            image = self.image(self.peer)
            restored, special = self.memory(self.peer)
            saved, also_special = source.result()
        differ = _differing(image, restored)
        if self.name == "h1":
            differ |= _differing(saved, restored)
        self.on(self.host, f"xl destroy {self.name}")
        self.on(self.peer, f"xl unpause {self.name}; rm {_IMAGE}")
        self.arrived()
        return said, sorted(differ - special - also_special)

    def migrate(self, saver: str, restorer: str) -> str:
        """Move while it runs."""
        line = (
            f"{environment(saver)} xl -v migrate -s /root/to-{restorer} {self.name} {self.peer_address} 2>&1"
        )
        said = self.on(self.host, line)
        self.arrived()
        return said

    def remus(self, saver: str, restorer: str, checkpoints: int, while_protected: Callable[[], None]) -> str:
        """Replicate by Remus, then lose the primary: paused first, because nobody else keeps it from running on."""
        self.start_remus(saver, restorer, checkpoints)
        while_protected()
        self._await_checkpoints(self._suspensions() + 2)
        self.on(self.host, f"xl pause {self.name}; systemctl kill -s KILL {REMUS}")
        self._await_running()
        said = self.on(self.host, f"cat {_REMUS_LOG}; xl destroy {self.name}")
        self.arrived()
        return said

    def start_remus(self, saver: str, restorer: str, checkpoints: int, interval_ms: int = 500) -> None:
        """Have the unit REMUS replicate it, and wait for so many checkpoints. No network buffer, no disks."""
        command = (
            f"xl -vvv remus -Fnd -i {interval_ms} -s /root/to-{restorer} {self.name} {self.peer_address}"
        )
        line = f"{environment(saver)} {command} > {_REMUS_LOG} 2>&1"
        self.on(self.host, f"systemd-run -q --collect --unit={REMUS} sh -c '{line}'")
        self._await_checkpoints(checkpoints)

    def _suspensions(self) -> int:
        """How often libxl has stopped the guest."""
        words = "cmd 'stop'|suspend request|has been suspended"
        return int(self.on(self.host, f'grep -ciE "{words}" {_REMUS_LOG} || true'))

    def _await_checkpoints(self, wanted: int) -> None:
        deadline = time.monotonic() + _MOVE_TIMEOUT_S
        while self._suspensions() < wanted:
            assert time.monotonic() < deadline, self.on(self.host, f"tail -20 {_REMUS_LOG}")
            time.sleep(1)  # libxl tells nobody about its checkpoints but its log

    def _await_running(self) -> None:
        deadline = time.monotonic() + _MOVE_TIMEOUT_S
        while self.name not in self.on(self.peer, "xl list").split() or "p" in self._flags():
            assert time.monotonic() < deadline, self.on(self.peer, "xl list; tail -5 /var/log/xen/*h1*")
            time.sleep(1)  # xl renames and unpauses the copy and tells nobody

    def _flags(self) -> str:
        line = next(
            line for line in self.on(self.peer, "xl list").splitlines() if line.split()[0] == self.name
        )
        return line.split()[4]


def _differing(one: dict[int, str], other: dict[int, str]) -> set[int]:
    return {gfn for gfn in one.keys() | other.keys() if one.get(gfn) != other.get(gfn)}
