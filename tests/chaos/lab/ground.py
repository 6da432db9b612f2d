"""The lab's ground: faults on two real Xen hosts, with an etcd and a client beside them."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack

from colo_helper.arbiter.record import ALONE, Record
from lab.errors import LabError
from lab.lab import Lab
from lab.playbooks import play_well
from lab.settings import HOSTS, here, peer_of
from tests.chaos.ground import NOBODY, OTHER, SAME, Outcome
from tests.chaos.lab.client import Writer
from tests.chaos.lab.faults import Injection
from tests.chaos.lab.listener import Listener, longest_silence, speakers
from tests.chaos.plan import Fault
from tests.lab.arbiter import WitnessHost, with_arbiter
from tests.lab.kept_pair import KeptPair
from tests.lab.protected_vm import HELPER, ProtectedVm

VM = "h1"
LEASE_S, PEER_TIMEOUT_MS = 10, 5000
#: An emulated host is slow: the plan's milliseconds of delay are so many of the lab's.
_DELAY_FACTOR = 20
#: A client's packet that was lost comes again after up to half of the silence until then.
_ANSWER_S, _COPY_S = 90.0, 600.0
#: Pieces of answers that make an answer: one may have been on its way.
_ANSWERS = 3
#: Of so many faults that moved the VM, or took a host's power, one is followed by all of the repair.
_REPAIRED = 5


class LabGround:
    """See Ground. It takes the lab of this checkout, installs what the checkout has, and protects h1 with an arbiter."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._settings = here()
        self._lab = Lab(self._settings, print)
        self._lab.up()
        self._lab.reset(with_guest=True)
        self._vm = ProtectedVm(self._settings, VM)
        self._witness = self._closing.enter_context(WitnessHost(self._settings).running())
        self._listener = Listener(self._settings, VM)
        self._listener.start()
        self._closing.callback(self._listener.close)
        self._writer: Writer | None = None
        play_well(self._settings, "site")
        play_well(self._settings, "protect", extra=with_arbiter(self._witness, LEASE_S, PEER_TIMEOUT_MS))
        self._kept = KeptPair(self._lab, self._vm, self._witness)
        self._kept.keep()

    def close(self) -> None:
        """See Ground."""
        if self._writer:
            self._writer.close()
        self._closing.close()

    def run(self, fault: Fault) -> Outcome:
        """See Ground."""
        began = time.monotonic()
        notes: list[str] = []
        record = self._record()
        primary = record.owner
        if self._writer is None:
            self._writer = Writer(self._settings, VM)
            self._writer.start()
        self._listener.begin()
        self._answered(began)
        told = {host: len(self._vm.events(host)) for host in HOSTS}
        injection = Injection(self._lab, self._vm, self._witness, fault, primary, peer_of(primary))
        doing = self._activity(fault, primary)
        time.sleep(fault.delay_ms * _DELAY_FACTOR / 1000)  # any moment of what is done
        at_s = time.monotonic()
        injection.inject()
        time.sleep(fault.lasting_s)
        silent = fault.stays and injection.lasts and not self._answered(time.monotonic())
        repaired = fault.number % _REPAIRED == 0
        injection.mend(power=repaired)
        for host in injection.rebooted:
            self._listener.listen(host)
        doing.join()
        answers = self._answered(time.monotonic())
        heard = self._listener.heard
        exceptions = self._judge(injection, [one.host for one in speakers(heard)], answers=answers)
        if silent and not injection.guest_killed:
            exceptions.append(f"While it lasts somebody may run, and nobody answers: {self._say()}")
        after = self._record()
        runs = NOBODY if not answers else SAME if heard[-1].host == primary else OTHER
        cause = self._cause(record, after, told, injection)
        if runs == OTHER and not cause:
            exceptions.append("The VM has moved, and nobody has written down why.")
        if not answers:
            notes.append("the guest of before")
        if not answers or injection.off or (runs == OTHER and not repaired):
            self._begin_anew()
        else:
            exceptions += self._protected_again(after)
        return Outcome(
            fault.number,
            fault.label,
            fault.sentence,
            runs,
            round(longest_silence(heard, at_s), 1),
            int((time.monotonic() - began) * 1000),
            cause,
            tuple(exceptions),
            tuple(notes),
        )

    # -------------------------------------------------------------------------------------------- what is seen

    def _answered(self, since_s: float) -> bool:
        """Wait until the guest answers after a moment."""
        return self._listener.wait(since_s, _ANSWERS, _ANSWER_S)

    def _judge(self, injection: Injection, turns: list[str], *, answers: bool) -> list[str]:
        """Return what must not be, seen from where the clients are."""
        found = []
        if turns not in (
            [injection.primary],
            [injection.secondary],
            [injection.primary, injection.secondary],
            [],
        ):
            found.append(f"Both copies speak: {', then '.join(turns)}.")
        assert self._writer
        if injection.guest_killed:
            return found
        if self._writer.problem:
            found.append(self._writer.problem)  # and nobody writes any more, so nobody is answered
        elif not answers and not injection.heir_lost:
            found.append(f"All is mended, and nobody answers: {self._say()}")
        return found

    def _cause(self, before: Record, after: Record, told: dict[str, int], injection: Injection) -> str:
        """Return what was written down: by the arbiter when the VM has another owner, by the replicators otherwise."""
        if after.owner != before.owner:
            return after.cause
        said = [
            event["sentence"]
            for host in HOSTS
            if host not in injection.rebooted + injection.off
            for event in self._vm.events(host)[told[host] :]
            if event["event"] not in ("verified", "checkpoint")
        ]
        return said[-1] if said else ""

    def _say(self) -> str:
        states = [self._vm.written(host) for host in HOSTS if self._lab.host(host).pid is not None]
        return "; ".join(f"{one.get('role')} {one.get('phase')}: {one.get('reason')}" for one in states)

    def _record(self) -> Record:
        record = self._witness.read(VM).record
        return record or Record(VM, HOSTS[0], 0, ALONE, "nothing is kept", 0)

    # -------------------------------------------------------------------------------------------- what is done

    def _activity(self, fault: Fault, primary: str) -> threading.Thread:
        """Have the pair do something; what it answers says nothing here."""
        verb = "switchover" if fault.activity == "switchover" else "checkpoint"

        def ask() -> None:
            try:
                self._vm.on(primary, f"{HELPER} ctl {VM} {verb} || true", 180)
            except LabError:
                return  # its host has lost its power, or hears nothing: that is the fault's doing

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        return thread

    def _protected_again(self, record: Record) -> list[str]:
        """Protect the VM again where it is; returns what must not be."""
        owner = record.owner
        try:
            self._give_roles(owner)
            self._vm.home = owner
            self._vm.wait_for(owner, "replicating", _COPY_S)
        except (AssertionError, LabError) as error:
            self._begin_anew()
            return [f"{VM} is not protected again: {error}"]
        return []

    def _give_roles(self, owner: str) -> None:
        """Have both replicators run in the roles that they have now; one that does is left alone."""
        unit = self._vm.unit
        roles = {
            host: json.loads(self._vm.on(host, f"cat /etc/colo/vms/{VM}.json"))["role"] for host in HOSTS
        }
        runs = all(
            self._vm.on(host, f"systemctl is-active {unit} || true").strip() == "active" for host in HOSTS
        )
        if not (runs and roles[owner] == "primary"):
            self._vm.give_roles(owner, peer_of(owner))

    def _begin_anew(self) -> None:
        """The guest as it was before the first fault, protected from the first host to the second."""
        if self._writer:
            self._writer.close()
            self._writer = None
        self._kept.go_back()
        for host in HOSTS:
            self._listener.listen(host)
        self._vm.home = HOSTS[0]
        self._vm.wait_for(HOSTS[0], "replicating", _COPY_S)
