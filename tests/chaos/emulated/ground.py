"""The emulated ground: faults on a pair of real replicators in an emulated world."""

from __future__ import annotations

import time
from collections.abc import Callable

from colo_helper.arbiter.record import ALONE
from tests.chaos.emulated.hardware import VM
from tests.chaos.emulated.injection import ACTIVITIES, Injection
from tests.chaos.emulated.replicator import CRASHED
from tests.chaos.emulated.world import HOSTS, LATE_TIMES, PACE, TIMES, World, other
from tests.chaos.ground import NOBODY, OTHER, SAME, Outcome
from tests.chaos.plan import PRIMARY, Fault

#: How fast the clock runs while something is waited for that needs a lease to end.
_FAST = 100.0
#: How long is waited, in seconds of the machine: for a protected pair; for a step; for an answer.
_PROTECT_S, _STEP_WAIT_S, _ANSWER_S = 4.0, 2.0, 3.0
_CHECKPOINT_S = 1.5
#: How often a checkpoint is asked for meanwhile.
_NUDGE_S = 0.05
#: Phases of a host that does not know whether it owns the VM, whatever the record says.
_DOUBT = ("connecting", "asking", "peer_lost")
#: What systemd waits before it starts a replicator again that was killed.
_RESTART_S = 0.03
#: How many times a pair is to be protected again before another is made.
_TRIES = 2


class EmulatedGround:
    """See Ground. ``late`` plants the bug: an owner whose output leaves after its lease has ended."""

    def __init__(self, *, late: bool = False) -> None:
        self.world = World(LATE_TIMES if late else TIMES)
        self._fresh = True
        self._dead: dict[str, float] = {}

    def close(self) -> None:
        """See Ground."""
        self.world.close()

    def run(self, fault: Fault) -> Outcome:
        """See Ground."""
        began = time.monotonic()
        world = self.world
        notes: list[str] = []
        world.output = fault.output
        if self._fresh:
            world.reset()
        if not self._protect(_TRIES, notes):
            world.reset()
            notes.append("a new pair at the beginning")
            if not self._protect(1, notes):
                raise RuntimeError(f"No pair comes to be: {world.history[-6:]}")
        self._fresh = False
        world.history.clear()
        self._dead.clear()
        world.witness.begin()
        before, epoch = world.owner, self._epoch
        act = Injection(world, fault, before)
        self._bring_about(fault, act, notes)
        exceptions = self._last(fault, act)
        act.mend()
        runs, more = self._answered_after_mending(before)
        exceptions += more
        silence_s = world.witness.silence_s
        cause = self._cause(epoch, exceptions)
        exceptions += self._protected_again(notes, runs)
        exceptions += [*dict.fromkeys(world.witness.broken), *world.crashes]
        if exceptions:
            self._fresh = True
        took_ms = int((time.monotonic() - began) * 1000)
        return Outcome(
            fault.number,
            fault.label,
            fault.sentence,
            runs,
            round(silence_s, 2),
            took_ms,
            cause,
            tuple(exceptions),
            tuple(notes),
        )

    # -------------------------------------------------------------------------------------------- the fault

    def _bring_about(self, fault: Fault, act: Injection, notes: list[str]) -> None:
        world = self.world
        if fault.step:
            host = {"line": "", PRIMARY: act.primary}.get(fault.step_of, act.secondary)
            world.arm(host, fault.step, fault.when, fault.nth, act.inject)
        ACTIVITIES[fault.activity](world, act)
        if fault.step:
            if fault.activity == "takeover":
                world.pace = _FAST
            if not self._run_busily(_STEP_WAIT_S, lambda: act.injected):
                notes.append(f"{fault.step} did not come in time")
                world.trigger = None
                act.inject()
        else:
            self._run(fault.delay_ms / 1000)
            act.inject()

    def _last(self, fault: Fault, act: Injection) -> list[str]:
        """Let it last; returns what must not be."""
        world = self.world
        world.pace = fault.lasting_s / (fault.lasting_ms / 1000)
        self._run(fault.lasting_ms / 1000)
        world.pace = PACE
        if fault.stays and self._may_run():
            heard = world.witness.heard
            world.pace = _FAST
            answered = self._run_busily(_ANSWER_S, lambda: world.witness.heard > heard or not self._may_run())
            world.pace = PACE
            if not answered:
                return [f"{' or '.join(self._may_run())} may run, and nobody answers: {self._say()}"]
        return []

    def _answered_after_mending(self, before: str) -> tuple[str, list[str]]:
        """Return who answers when all is mended, and what must not be."""
        world = self.world
        heard = world.witness.heard
        world.pace = _FAST
        self._run_busily(_ANSWER_S, lambda: world.witness.heard > heard + 1 or not self._may_run())
        world.pace = PACE
        last = world.witness.last
        if last and world.witness.heard > heard + 1:
            return SAME if last.host == before else OTHER, []
        return NOBODY, [f"All is mended, and nobody answers: {self._say()}"] if self._may_run() else []

    def _may_run(self) -> list[str]:
        """Return the hosts of which one has to run the VM, as things are now; the other one's word is not asked."""
        world = self.world
        record = world.store.read(VM).record
        owner = record.owner if record else world.primary
        heir = other(owner)
        works = {host: self._works(host) for host in HOSTS}
        joined = all(works.values()) and not world.line.cut and not world.line.refusing
        alone = record is not None and record.mode == ALONE
        knows = alone and self._last_phase(owner) not in _DOUBT
        if works[owner] and (knows or not world.ways[owner].cut):
            return [owner]
        if record and not alone and works[heir] and self._asks(heir) and not joined:
            return [heir]
        return []

    def _works(self, host: str) -> bool:
        """Whether there is a copy on a host that can run, and that is not put aside for good: an owner's never is."""
        machine = self.world.machines[host]
        record = self.world.store.read(VM).record
        owner = record is not None and record.owner == host
        aside = not owner and self._last_phase(host) in ("standby", "handed_over")
        return machine.lives and bool(machine.domains) and not machine.headless and not aside

    def _asks(self, host: str) -> bool:
        """Whether a host has somebody who asks for the VM, or will have."""
        world = self.world
        return not world.ways[host].cut and (
            host in world.processes or world.exits.get(host) not in (0, 1, 2)
        )

    def _last_phase(self, host: str) -> str:
        return self.world.phase(host) or next(
            (phase for name, phase, _ in reversed(self.world.history) if name == host), ""
        )

    # --------------------------------------------------------------------------------------- what follows it

    def _run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, with a service manager on both hosts that starts what was killed."""
        return self.world.run(seconds, lambda: self._restart_killed() or until())

    def _run_busily(self, seconds: float, until: Callable[[], bool]) -> bool:
        """As ``_run``; the primary is asked for a checkpoint again and again, so that what waits for one is soon heard."""
        asked_s = 0.0

        def look() -> bool:
            nonlocal asked_s
            if until():
                return True
            if self.world.page.monotonic - asked_s > _NUDGE_S:
                asked_s = self.world.page.monotonic
                self.world.ask(self.world.primary, "checkpoint")
            return False

        return self._run(seconds, look)

    def _restart_killed(self) -> bool:
        world = self.world
        for host in HOSTS:
            code = world.exits.get(host)
            if host in world.processes or code is None or (code >= 0 and code != CRASHED):
                self._dead.pop(host, None)
            elif world.machines[host].lives:
                since = self._dead.setdefault(host, world.page.monotonic)
                if world.page.monotonic - since > _RESTART_S:
                    world.start(host, world.roles[host])
        return False

    def _cause(self, epoch: int, exceptions: list[str]) -> str:
        """Return what was written down, and say when that is nothing although something was done."""
        world = self.world
        if any(not reason for _, _, reason in world.history):
            exceptions.append(f"A phase was entered without a reason: {world.history}")
        if self._epoch != epoch:
            if not world.record_cause:
                exceptions.append("The record has changed, and does not say why.")
            return world.record_cause
        return next((reason for _, phase, reason in world.history if phase != "replicating"), "")

    @property
    def _epoch(self) -> int:
        record = self.world.store.read(VM).record
        return record.epoch if record else 0

    def _say(self) -> str:
        world = self.world
        return (
            "; ".join(f"{host} {phase}: {reason}" for host, phase, reason in world.history[-4:]) or "no word"
        )

    # ------------------------------------------------------------------------------------------ the operator

    def _protected_again(self, notes: list[str], runs: str) -> list[str]:
        if self._protect(_TRIES, notes):
            return []
        self._fresh = True
        notes.append("a new pair after it" if runs != NOBODY else "a new pair after it, for nobody ran")
        return []

    def _protect(self, tries: int, notes: list[str]) -> bool:
        """Do what an operator does until both copies run; tells whether they do."""
        world = self.world
        while tries:
            owner = self._owner()
            if not owner:
                return False
            self._give_roles(owner)
            if self._joined(owner):
                world.witness.may_speak(other(owner))
                return True
            tries -= 1
            if self._owner() == owner:  # else a switch-over has come to its end meanwhile
                notes.append(f"a copy was removed by hand: {self._say()}")
                self._clear(other(owner))
        return False

    def _joined(self, owner: str) -> bool:
        """Wait until the two make checkpoints; what they say of themselves may be old."""
        page = self.world.page
        deadline = page.monotonic + _PROTECT_S
        while page.monotonic < deadline and not self._stuck() and self._owner() == owner:
            left_s = deadline - page.monotonic
            if self._run(left_s, lambda: self._paired() or self._stuck()) and self._checkpointed():
                return True
        return False

    def _owner(self) -> str:
        """Who has the VM: the arbiter says it, or whoever has a domain when it does not know."""
        world = self.world
        owner = world.owner or world.primary
        machine = world.machines[owner]
        return owner if machine.domains and not machine.headless else ""

    def _paired(self) -> bool:
        world = self.world
        return all(world.phase(host) == "replicating" for host in HOSTS)

    def _checkpointed(self) -> bool:
        heard = self.world.witness.heard
        self._run_busily(_CHECKPOINT_S, lambda: self.world.witness.heard > heard or not self._paired())
        return self.world.witness.heard > heard and self._paired()

    def _stuck(self) -> bool:
        """Whether a replicator has ended in order, or with an error that nobody cures but an operator."""
        world = self.world
        return any(host not in world.processes and world.exits.get(host) in (0, 1, 2) for host in HOSTS)

    def _give_roles(self, owner: str) -> None:
        """Let both hosts have the replicators of their roles, as the playbooks do."""
        world = self.world
        heir = other(owner)
        if (
            world.primary != owner
            or world.roles.get(owner) != "primary"
            or world.roles.get(heir) != "secondary"
        ):
            for host in HOSTS:
                world.ask(host, "service-stop")
            self._run(1.0, lambda: not world.processes)
            for host in HOSTS:
                world.kill(host)
            world.primary = owner
        for host, role in ((heir, "secondary"), (owner, "primary")):
            if host not in world.processes:
                world.start(host, role)

    def _clear(self, host: str) -> None:
        """Remove what a host still has of a copy: the owner's copy is the VM."""
        world = self.world
        for one in HOSTS:
            world.kill(one)
        machine = world.machines[host]
        for domid in list(machine.domains):
            machine.destroy(domid)
        (machine.directory / "disk" / "state.json").unlink(missing_ok=True)
