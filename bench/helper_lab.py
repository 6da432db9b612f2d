"""Our save helper against Xen's own under real libxl on the lab's hosts, in one run: `xl save` and `xl migrate`.

Both helpers take turns on the same guest, so that whatever else the machine does meets both. Times are those of software
emulation; only the ratios say something. CPU time is that of `xl` and all it started on the guest's host.
"""

from __future__ import annotations

import argparse
import json
import re
from statistics import median
from typing import Any

from bench.tables import LEAST_RUNS, machine, table
from lab import guests, ssh
from lab.lab import Lab
from lab.settings import Settings, here
from tests.lab.guest_moves import OURS, STOCK, MovedGuest, environment, let_hosts_log_in

GUESTS = ("h1", "pvh1")
_MEASURE = """
import json, resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run(["bash", "-o", "pipefail", "-c", sys.argv[1]], capture_output=True, text=True)
wall_s = time.monotonic() - started
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
said = {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "out": done.stdout, "code": done.returncode}
print(json.dumps({**said, "err": done.stderr[-2000:]}))
"""
_TIMEOUT_S = 300


def measured(settings: Settings, host: str, line: str) -> dict[str, Any]:
    """Run a shell line on a host; returns its figures."""
    script = f"cat > /tmp/measure.py <<'END'\n{_MEASURE}END\npython3 -IS /tmp/measure.py \"$(cat <<'END'\n{line}\nEND\n)\""
    found: dict[str, Any] = json.loads(ssh.run(settings, host, script, _TIMEOUT_S))
    if found["code"]:
        raise SystemExit(f"{line} failed: {found['err']}")
    return found


def save(guest: MovedGuest, which: str) -> dict[str, Any]:
    """Save into a pipe that only counts; the guest goes on."""
    line = f"{environment(which)} xl -v save -c {guest.name} /dev/stdout | wc -c"
    found = measured(guest.settings, guest.host, line)
    return {**found, "bytes": int(found["out"])}


def migrate(guest: MovedGuest, which: str) -> dict[str, Any]:
    """Migrate to the other host, both sides with the same helper."""
    line = f"{environment(which)} xl migrate -s /root/to-{which} {guest.name} {guest.peer_address}"
    found = measured(guest.settings, guest.host, line)
    guest.arrived()
    return {**found, "bytes": 0}


def rows_of(guest: MovedGuest, runs: int) -> list[list[object]]:
    """Measure one guest; a first turn of each warms up and does not count."""
    rows: list[list[object]] = []
    for name, act in (("save", save), ("migrate", migrate)):
        turns = [(act(guest, OURS), act(guest, STOCK)) for _ in range(runs + 1)][1:]
        row: list[object] = [f"{guest.name}, xl {name}"]
        for figure in ("wall_s", "cpu_s", "bytes"):
            ours, theirs = (median(side[figure] for side in sides) for sides in zip(*turns, strict=True))
            row += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"] if theirs else ["-", "-", "-"]
        rows.append(row)
        print(table(_HEAD, [row]), flush=True)
        if name == "save":
            spent = re.findall(r"\d+ pages, \d+ bytes sent: .*", turns[-1][0]["err"])
            print(f"{guest.name}, our last save: {spent[0] if spent else turns[-1][0]['err']}", flush=True)
    return rows


_HEAD = (
    "what",
    "ours s",
    "stock s",
    "ratio",
    "ours CPU s",
    "stock CPU s",
    "ratio",
    "ours bytes",
    "stock bytes",
    "ratio",
)


def main() -> None:
    """Bring the lab up, measure, print the table. The helper is installed by playbooks/site.yml before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, help="of which the median is taken")
    arguments = parser.parse_args()
    if arguments.runs < LEAST_RUNS:
        parser.error(f"at least {LEAST_RUNS} runs are needed for a median")
    settings = here()
    Lab(settings, print).up()
    let_hosts_log_in(settings)
    rows: list[list[object]] = []
    for name in GUESTS:
        ssh.run(
            settings,
            "xa",
            f"xl domid {name} >/dev/null 2>&1 || xl create -q /etc/xen/lab/{name}.cfg",
            _TIMEOUT_S,
        )
        guests.wait_answer(settings, name, _TIMEOUT_S)
        rows += rows_of(MovedGuest(settings, name, "xa"), arguments.runs)
        ssh.run(settings, "xa", f"xl destroy {name} || true")
        ssh.run(settings, "xb", f"xl destroy {name} || true")
    print(f"Save helpers under xl on the lab, {machine()}, medians of {arguments.runs}.\n")
    print(table(_HEAD, rows))


if __name__ == "__main__":
    main()
