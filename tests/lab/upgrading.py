"""Upgrades of colo_helper under a client that never stops asking."""

import re
import shutil
import time

from lab import ssh
from lab.settings import HOSTS
from tests.lab.asker import Asker


def another_release(settings, source, protocol=None):
    """Make a checkout whose release is another one, and may speak another version of the protocol; returns its path."""
    ignored = shutil.ignore_patterns(".git", ".lab", ".venv", ".*_cache", ".cache", ".hypothesis")
    shutil.copytree(settings.checkout, source, ignore=ignored)
    with (source / "colo_helper" / "__init__.py").open("a") as module:
        module.write("#: Another release.\n")
    if protocol is not None:
        module = source / "colo_helper" / "replication" / "decisions" / "session.py"
        text, found = re.subn(r"(?m)^PROTOCOL = \d+$", f"PROTOCOL = {protocol}", module.read_text())
        assert found == 1
        module.write_text(text)
    return source


def upgraded(play, settings, source, extra=None):
    """Bring the release of a checkout: nothing is lost, nobody hangs up, and a second run changes nothing."""
    extra = {"colo_vm": "h1", **(extra or {}), "colo_host_source": str(source)}
    before = [release_of(settings, host) for host in HOSTS]
    asker = Asker(settings).begin()
    began = time.monotonic()
    done = play("upgrade", extra=extra)
    silence = asker.longest_silence(began)
    counters = asker.close()  # one connection through all of it
    assert done.code == 0
    assert counters == sorted(counters)
    assert "h1 runs on, on xa, and was without a second copy for" in done.text
    first, second = [release_of(settings, host) for host in HOSTS]
    assert first == second != before[0]
    print(
        f"upgraded in {done.took_s:.0f} s; {len(counters)} answers, the longest wait for one was {silence:.1f} s"
    )
    again = play("upgrade", extra=extra)
    assert (again.code, sum(again.changed.values())) == (0, 0)


def release_of(settings, host):
    """The release that the replicator of h1 runs with."""
    pid = ssh.run(settings, host, "systemctl show --property=MainPID --value colo-replicator@h1").strip()
    return ssh.run(settings, host, f"grep -o 'releases/[0-9a-f]*' /proc/{pid}/maps | sort -u").split()
