"""Stream type COLO on real Xen, from the very first page: the restorer begins with an empty domain of libxl's.

Upstream's restorer asks for the guest's size at that moment, is told that it has no frames, and from then on sends no
dirty frame back. Ours must.
"""

import json
import subprocess
import time
from pathlib import Path

import pytest

from lab import ssh
from lab.settings import address

SCRIPT = Path(__file__).parent / "on_host" / "colo_pair.py"
PAIR = "/root/colo-pair"


@pytest.fixture
def pair(lab, settings, play):
    lab.reset(with_guest=True)
    assert play("site").code == 0
    for host, config in (("xa", {"peer": address("data", 2)}), ("xb", {})):
        ssh.run(settings, host, f"cat > {PAIR} <<'END'\n{SCRIPT.read_text()}\nEND\nchmod 755 {PAIR}")
        ssh.run(
            settings, host, f"mkfifo /run/colo-pair.go; echo '{json.dumps(config)}' > /run/colo-pair.json"
        )
    return settings


def log_of(settings, host):
    return ssh.run(settings, host, "cat /run/colo-pair.log")


def test_from_an_empty_domain_every_epoch_leaves_both_copies_equal(pair):
    line = f"env LIBXL_SAVE_HELPER={PAIR} xl"
    save = f"{line} save -p h1 /dev/stdout | cat; echo > /run/colo-pair.go"
    restore = f"cat | {line} restore -p /dev/stdin && echo > /run/colo-pair.go"
    with subprocess.Popen(ssh.command(pair, "xa", save), stdout=subprocess.PIPE) as source:
        subprocess.run(ssh.command(pair, "xb", restore), stdin=source.stdout, check=True, timeout=400)
    deadline = time.monotonic() + 300
    while "ended" not in (found := ssh.run(pair, "xa", "cat /run/colo-pair.result 2>/dev/null || true")):
        assert time.monotonic() < deadline, (found, log_of(pair, "xa"), log_of(pair, "xb"))
        time.sleep(1)  # a program on another host
    *epochs, end = json.loads(found)
    print(json.dumps(epochs, indent=1), log_of(pair, "xa"), log_of(pair, "xb"))
    assert end["ended"], end
    assert len(epochs) == 5
    assert epochs[0]["secondary"]["frames_at_start"] == 1, "libxl's new domain reports a highest frame of 0"
    assert [epoch["unexplained"] for epoch in epochs] == [[]] * 5
    assert all(epoch["b_pages"] > 0 for epoch in epochs[1:]), "the secondary's own dirty frames came back"
    assert all(epoch["pages"] > 30_000 for epoch in epochs)
