"""Coverage-guided fuzzing (atheris) of every reader of a peer's bytes: `make fuzz`, `make fuzz FUZZ_S=300`.

Without --one this runs the targets one after the other, each in a process of its own, and prints what came of it. A find
is kept as build/fuzz/TARGET/crash-*: `python -m tests.fuzz.fuzz_streams --one TARGET FILE` runs it again.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from random import Random

MOST_BYTES = 1 << 16
INPUT_LIMIT_S = 10
#: Address space beside what the process has when it begins: a reader that asks the C library for a peer's claim fails.
_SPACE_BYTES = 256 << 20
_FIGURES = {
    "inputs": r"stat::number_of_executed_units: *(\d+)",
    "seconds": r"Done \d+ runs in (\d+) second",
    "rss_mib": r"stat::peak_rss_mb: *(\d+)",
    "peak": r"PEAK (\d+)",
    "bound": r"BOUND (\d+)",
}
_WORK = Path(__file__).parents[2] / "build" / "fuzz"


def fuzz(name: str, seconds: int, files: list[str]) -> None:
    """Fuzz one target in this process, or run these inputs only; never returns."""
    import atheris  # noqa: PLC0415 - only this function needs it

    with atheris.instrument_imports(include=["colo_helper"]):
        from tests.fuzz.targets import TARGETS, measure  # noqa: PLC0415 - instrumented while it is imported
    from tests.fuzz.mutate import mutate  # noqa: PLC0415

    target = TARGETS[name]
    corpus = _WORK / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
        target.run(seed)  # what is imported where it is used is in memory now
    most = 0

    def one(data: bytes) -> None:
        nonlocal most
        taken = measure(target, data)
        if taken > most:
            most = taken
            sys.stderr.write(f"PEAK {taken}\n")

    def custom(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        return mutate(data, rng, max_size) if rng.random() < 0.5 else bytes(atheris.Mutate(data, max_size))

    sys.stderr.write(f"BOUND {target.bound_bytes}\n")
    options = [
        f"-max_len={MOST_BYTES}",
        f"-timeout={INPUT_LIMIT_S}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
        "-rss_limit_mb=0",  # the limit of the address space is the tighter one
    ]
    inputs = files or [f"-max_total_time={seconds}", str(corpus)]
    tracemalloc.start()
    atheris.Setup([sys.argv[0], *options, *inputs], one, custom_mutator=custom)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + _SPACE_BYTES, resource.RLIM_INFINITY))
    atheris.Fuzz()


def _read_log(text: str) -> dict[str, int]:
    """Return the figures that the fuzzer and ``fuzz`` wrote, the last of each."""
    return {what: int((re.findall(pattern, text) or ["0"])[-1]) for what, pattern in _FIGURES.items()}


def run_all(names: list[str], seconds: int) -> int:
    """Fuzz the targets one after the other and print a line for each; returns how many had a find."""
    print(
        f"{'target':16} {'inputs':>10} {'minutes':>8} {'finds':>6} {'largest allocation / bound':>28} {'process MiB':>12}"
    )
    finds = 0
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz.fuzz_streams", "--one", name, "--seconds", str(seconds)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
        log = _WORK / f"{name}.log"
        log.write_text(done.stderr)

        result = _read_log(done.stderr)
        found = done.returncode != 0
        finds += found
        allocation = f"{result['peak'] / 2**20:.2f} / {result['bound'] / 2**20:.1f} MiB"
        print(
            f"{name:16} {result['inputs']:10} {result['seconds'] / 60:8.1f} {found:6} {allocation:>28}"
            f" {result['rss_mib']:12}",
            flush=True,
        )
        if found:
            print(f"  see {log}:", *done.stderr.splitlines()[-12:], sep="\n  ")
    return finds


def main() -> int:
    """Read the arguments; see the top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--one", help="run only this target, in this process")
    parser.add_argument("what", nargs="*", help="targets; with --one: files to run again")
    options = parser.parse_args()
    if options.one:
        fuzz(options.one, options.seconds, options.what)
        return 0
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - a fuzzing process must import it instrumented

    return min(1, run_all(options.what or list(TARGETS), options.seconds))


if __name__ == "__main__":
    sys.exit(main())
