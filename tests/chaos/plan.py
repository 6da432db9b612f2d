"""What befalls the pair next: pure, and known by the seed and the number of the fault alone."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

#: The owner's host, or the other one, as they are when the fault comes.
PRIMARY, SECONDARY, BOTH = "primary", "secondary", "both"

#: What the pair does meanwhile, and the steps of that: (side, step). ``line`` steps are frames, seen by both.
#: A fault comes before such a step is taken, or after it.
STEPS: dict[str, tuple[tuple[str, str], ...]] = {
    "checkpoint": (
        *(
            ("line", f"line.{kind}")
            for kind in ("SUSPEND>", "BACK<", "STREAM>", "COMMIT>", "RECEIVED<", "APPLIED<")
        ),
        *(
            (PRIMARY, f"dom.{call}")
            for call in ("pause", "clean_dirty", "map", "get_context", "get_tsc", "unpause")
        ),
        *((PRIMARY, f"dev.{call}") for call in ("stop", "save_state", "cont")),
        *(
            (SECONDARY, f"dom.{call}")
            for call in ("pause", "clean_dirty", "unmap", "set_context", "set_tsc", "unpause")
        ),
        *((SECONDARY, f"dev.{call}") for call in ("stop", "load_state", "cont")),
    ),
    "switchover": (
        *(("line", f"line.{kind}") for kind in ("COMMIT>", "RECEIVED<", "APPLIED<", "HANDOVER>", "TAKEN<")),
        (PRIMARY, "nics.isolate"),
        (PRIMARY, "arbiter.change"),
        (SECONDARY, "nics.connect"),
        (SECONDARY, "dev.announce"),
        (SECONDARY, "flt.detach"),
    ),
    "rejoin": (
        *(("line", f"line.{kind}") for kind in ("RESYNC>", "COPIED<", "HASH>", "HASHES<", "ARM>", "ARMED<")),
        (PRIMARY, "arbiter.change"),
        (PRIMARY, "flt.attach"),
        (PRIMARY, "flt.switch_on"),
        (PRIMARY, "dom.log_dirty_on"),
        (SECONDARY, "nics.isolate"),
        (SECONDARY, "dom.log_dirty_on"),
    ),
    "copy": (
        *(("line", f"line.{kind}") for kind in ("COPY>", "CHUNK>", "COPY_END>", "COPIED<", "ARM>", "ARMED<")),
        (SECONDARY, "host.build"),
        (SECONDARY, "nics.isolate"),
        (PRIMARY, "arbiter.change"),
        (PRIMARY, "dev.announce"),
    ),
    "takeover": (
        (SECONDARY, "arbiter.change"),
        (SECONDARY, "nics.connect"),
        (SECONDARY, "dev.announce"),
        (SECONDARY, "dom.log_dirty_off"),
        (SECONDARY, "dom.unpause"),
    ),
}

#: Kinds of faults and how often they come, one relative to the other.
KINDS: dict[str, int] = {
    "power_off": 8,
    "freeze": 16,
    "cut": 12,
    "isolate": 10,
    "narrow": 4,
    "kill_replicator": 10,
    "kill_helper": 5,
    "kill_device_model": 3,
    "kill_sshd": 5,
    "arbiter_lost": 10,
    "arbiter_restart": 4,
    "disk_full": 5,
    "clock_step": 4,
}

#: Ways that are cut: a path is both of its ways, ``>`` leads from the primary to the secondary.
CUTS: tuple[tuple[str, ...], ...] = (
    ("data>", "data<"),
    ("mgmt>", "mgmt<"),
    ("data>", "data<", "mgmt>", "mgmt<"),
    ("data>",),
    ("data<",),
    ("data>", "mgmt>"),
    ("data<", "mgmt<"),
)

#: How long a fault lasts: (least, most) of the lease's seconds, and of the machine's milliseconds. The lease is 10 s, output
#: ends 8.4 s after the last renewal; peers time out after 150 ms.
LASTING: dict[str, tuple[tuple[float, float], tuple[int, int]]] = {
    "short": ((0.2, 4.0), (10, 60)),
    "deadlines": ((7.5, 11.0), (80, 200)),
    "long": ((14.0, 25.0), (200, 260)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``lasting_s`` is by the clock of leases, ``lasting_ms`` by the machine's, which peers time out by.

    ``step`` is empty when it comes ``delay_ms`` after ``activity`` was asked for; otherwise it comes at the ``nth`` time that
    ``step`` of the host ``step_of`` ("line": of either) is taken, ``when`` before or after that. ``stays``: it is not mended
    before somebody answers, if anybody may. ``output`` is when the guest's packets leave, from the next time on that
    a primary is started.
    """

    seed: int
    number: int
    kind: str
    target: str
    activity: str
    step_of: str
    step: str
    when: str
    nth: int
    delay_ms: int
    lasting: str
    lasting_s: float
    lasting_ms: int
    stays: bool
    output: str = "hold"
    ways: tuple[str, ...] = ()
    amount: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as the journal keeps it."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The kind as the report's table names it."""
        match self.kind:
            case "freeze":
                return f"freeze, {self.lasting}, {self.target}"
            case "cut":
                return f"cut {' '.join(self.ways)}"
            case "narrow" | "arbiter_restart" | "kill_sshd":
                return self.kind
        return f"{self.kind}, {self.target}"

    @property
    def sentence(self) -> str:
        """What happens, for people."""
        at = f"{self.when} {self.step} of {self.step_of}" if self.step else f"after {self.delay_ms} ms"
        return f"{self.label}, {at} of a {self.activity}, for {self.lasting_s:.1f} s"


def fault(seed: int, number: int) -> Fault:
    """Return the fault of a number."""
    dice = random.Random(f"{seed}.{number}")
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    activity = dice.choices(list(STEPS), [10, 3, 4, 2, 4])[0]
    step_of = step = ""
    if dice.random() < 0.7:
        step_of, step = dice.choice(STEPS[activity])
    lasting = dice.choice(list(LASTING))
    (least_s, most_s), (least_ms, most_ms) = LASTING[lasting]
    target = dice.choice((PRIMARY, PRIMARY, SECONDARY))
    ways: tuple[str, ...] = ()
    amount = 0.0
    if kind == "cut":
        ways, target = dice.choice(CUTS), BOTH
    elif kind in ("arbiter_lost", "isolate"):
        target = dice.choice((PRIMARY, SECONDARY, BOTH))
    elif kind == "narrow":
        amount, target = float(dice.choice((60, 400, 4000))), BOTH
    elif kind == "clock_step":
        amount = dice.choice((-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0 * 365))
    return Fault(
        seed,
        number,
        kind,
        target,
        activity,
        step_of,
        step,
        dice.choice(("before", "after")),
        dice.choice((1, 1, 1, 2, 3)) if activity == "checkpoint" else 1,
        dice.randrange(60),
        lasting,
        round(dice.uniform(least_s, most_s), 3),
        dice.randint(least_ms, most_ms),
        lasting == "long" or dice.random() < 0.3,
        dice.choice(("hold", "compare")),
        ways,
        amount,
    )
