"""Our replicator against stock `xl remus -Fnd` on the lab, in one run: the same guest, the same interval, the same hosts.

Alone, under stock Remus (the copy stands by), under ours (both copies run). The pauses are what Xen says on the primary,
sampled in the same way for both; a checkpoint of ours that meets an I/O request pauses more than once. Bytes are all that
left the primary's network cards. Before that, how long a client waits for an answer while the guest is copied for the first
time, against a move by stock `xl migrate`. Software emulation: only ratios say something.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.tables import machine, table
from colo_helper.quantiles import nearest_rank
from lab import guests, ssh
from lab.guests import Client
from lab.lab import Lab
from lab.playbooks import play_well
from lab.settings import Settings, here
from tests.lab.asker import Asker
from tests.lab.guest_moves import REMUS, STOCK, MovedGuest, let_hosts_log_in
from tests.lab.protected_vm import ProtectedVm

_GUEST = "h1"
_INTERVAL_MS = 1000
_TIMEOUT_S = 900
_WARM_UP_CHECKPOINTS = 5


@dataclass(frozen=True)
class Window:
    """What was seen in one stretch of time."""

    seconds: float
    pauses_ms: list[float]
    sent_bytes: int
    counted: int
    cpu_s: float
    memory_mib: float


def window(settings: Settings, seconds: float, unit: str) -> Window:
    """Look at the guest and at what the unit that protects it uses."""
    script = (Path(__file__).parent / "pause_sampler.py").read_text()
    ssh.run(settings, "xa", f"cat > /root/pause_sampler.py <<'END'\n{script}\nEND")

    def look() -> tuple[float, int, int, float]:
        client = Client(settings, _GUEST, timeout_s=20)
        try:
            counter = client.read().counter
        finally:
            client.close()
        sent = int(
            ssh.run(
                settings, "xa", "cat /sys/class/net/eth*/statistics/tx_bytes | awk '{s+=$1} END {print s}'"
            )
        )
        return time.monotonic(), counter, sent, cpu_of(settings, unit)

    before = look()
    domid = ssh.run(settings, "xa", f"xl domid {_GUEST}").strip()
    sampler = f"python3 -IS /root/pause_sampler.py {domid} {seconds}"
    pauses = json.loads(ssh.run(settings, "xa", sampler, 4 * seconds + 120))
    after = look()
    memory = int(show(settings, unit, "MemoryCurrent") or 0) / 2**20 if unit else 0.0
    took, counted, sent, cpu_s = (later - earlier for later, earlier in zip(after, before, strict=True))
    return Window(took, pauses, int(sent), int(counted), cpu_s, memory)


def show(settings: Settings, unit: str, prop: str) -> str:
    """Return one property of a unit; empty when systemd does not know it."""
    value = ssh.run(settings, "xa", f"systemctl show --property={prop} --value {unit}").strip()
    return value if value.isdigit() else ""


def cpu_of(settings: Settings, unit: str) -> float:
    """CPU seconds of a unit so far; 0 without one."""
    return int(show(settings, unit, "CPUUsageNSec") or 0) / 1e9 if unit else 0.0


def under_remus(settings: Settings, guest: MovedGuest, seconds: float) -> Window:
    """Measure under stock `xl remus`, and end it; the guest stays on its host."""
    guest.start_remus(STOCK, STOCK, _WARM_UP_CHECKPOINTS, _INTERVAL_MS)
    try:
        return window(settings, seconds, REMUS)
    finally:
        # Its receiver first: it would start the copy when the sender is gone.
        ssh.run(
            settings, "xb", f"pkill -KILL -f 'xl.*[m]igrate-receive' ; xl destroy {_GUEST}--incoming || true"
        )
        ssh.run(settings, "xa", f"systemctl stop {REMUS}; sleep 2; xl unpause {_GUEST} || true")
        ssh.run(
            settings,
            "xb",
            f"xl destroy {_GUEST}--incoming 2>/dev/null; xl destroy {_GUEST} 2>/dev/null; true",
        )


def silence_s(settings: Settings, work: Callable[[], object]) -> float:
    """Return the longest time that a client, which asks all the time, waits for an answer while something is done."""
    asker = Asker(settings, _GUEST)
    asker.start()
    try:
        began = time.monotonic()
        work()
        return asker.longest_silence(began)
    finally:
        asker.close()


def moved(settings: Settings, guest: MovedGuest) -> float:
    """Measure a move by stock xl, and move the guest back."""
    found = silence_s(settings, lambda: guest.migrate(STOCK, STOCK))
    guest.migrate(STOCK, STOCK)
    return found


def protected(settings: Settings, vm: ProtectedVm, logs: Path) -> float:
    """Protect the guest, and measure until the first checkpoint is complete."""

    def protect() -> None:
        with ThreadPoolExecutor() as pool:
            play = pool.submit(
                play_well, settings, "protect", extra={"colo_vm": _GUEST}, log=logs / "protect.log"
            )
            wait_for(lambda: play.done() or vm.is_replicating(), "the protected guest")
            play.result()

    return silence_s(settings, protect)


def under_ours(settings: Settings, seconds: float) -> tuple[Window, float, dict[str, float]]:
    """Measure under our replicator; returns the first copy's silence and its own medians of the pause's parts as well."""
    vm = ProtectedVm(settings)
    logs = settings.checkout / "build" / "bench"
    silence = protected(settings, vm, logs)
    vm.wait_for_checkpoints(_WARM_UP_CHECKPOINTS)
    seen = window(settings, seconds, vm.unit)
    recent = vm.status()["recent"]
    wish = {"colo_vm": _GUEST, "colo_confirm": _GUEST}
    play_well(settings, "unprotect", extra=wish, log=logs / "unprotect.log")
    return seen, silence, {**recent["phases_ms"], "commit": recent["commit_ms"], "apply": recent["apply_ms"]}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until it is so; raises SystemExit when it never is."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"never came: {what}")
        time.sleep(1)  # a program on another host


def row(name: str, seen: Window, alone: Window) -> list[object]:
    """One line of the table."""
    pauses = sorted(seen.pauses_ms)
    made = len(pauses)
    work = (seen.counted / seen.seconds) / (alone.counted / alone.seconds)
    if not made:
        return [name, "-", "-", "-", "-", "-", f"{work:.2f}", "-", "-"]
    sent = (seen.sent_bytes - alone.sent_bytes * seen.seconds / alone.seconds) / made
    return [
        name,
        f"{nearest_rank(pauses, 0.5):.0f}",
        f"{nearest_rank(pauses, 0.99):.0f}",
        f"{sum(pauses) / 1000 / seen.seconds:.1%}",
        f"{made / seen.seconds * 60:.0f}",
        f"{sent / 1000:.0f}",
        f"{work:.2f}",
        f"{seen.cpu_s / seen.seconds:.2f}",
        f"{seen.memory_mib:.0f}",
    ]


def main() -> None:
    """Bring the lab up, measure, print the table. Our programs are installed by playbooks/site.yml before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=90, help="of each of the three")
    arguments = parser.parse_args()
    settings = here()
    Lab(settings, print).up()
    let_hosts_log_in(settings)
    guest = MovedGuest(settings, _GUEST, "xa")
    ssh.run(
        settings,
        "xa",
        f"xl domid {_GUEST} >/dev/null 2>&1 || xl create -q /etc/xen/lab/{_GUEST}.cfg",
        _TIMEOUT_S,
    )
    guests.wait_answer(settings, _GUEST, _TIMEOUT_S)
    alone = window(settings, arguments.seconds, "")
    migration_s = moved(settings, guest)
    ours, copy_s, parts = under_ours(settings, arguments.seconds)
    remus = under_remus(settings, guest, arguments.seconds)
    head = (
        "",
        "pause p50 ms",
        "p99 ms",
        "stood still",
        "pauses/min",
        "kB each",
        "work of alone",
        "CPUs in dom0",
        "MiB",
    )
    rows = [row("alone", alone, alone), row("ours", ours, alone), row("xl remus -Fnd", remus, alone)]
    print(
        f"Replication of {_GUEST} (128 MiB) every {_INTERVAL_MS} ms, {machine()}, {arguments.seconds:g} s each.\n"
    )
    print(table(head, rows))
    print(
        f"\nA client's longest wait for an answer: {copy_s:.1f} s while it is copied first, {migration_s:.1f} s in xl migrate."
    )
    print("\nMedians of ours, ms: " + ", ".join(f"{name} {ms:.0f}" for name, ms in parts.items()))


if __name__ == "__main__":
    main()
