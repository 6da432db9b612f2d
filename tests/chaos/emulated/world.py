"""Two emulated hosts, the networks between them, an arbiter, a bridge with a witness, and a clock, in one event loop.

The replicators are processes of their own, forked from here, so that they can be frozen (SIGSTOP) and killed (SIGKILL) at any
instruction, as real ones are. Everything else happens in this one thread, so what a fault meets is exactly known.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colo_helper.arbiter.emulated import EmulatedArbiter, EmulatedStore
from colo_helper.arbiter.times import Times, times
from tests.chaos.emulated import rpc
from tests.chaos.emulated.desk import Desk, Process
from tests.chaos.emulated.hardware import VM, Machine
from tests.chaos.emulated.line import Line
from tests.chaos.emulated.page import SharedPage
from tests.chaos.emulated.replicator import CRASHED, Birth, live
from tests.chaos.witness import Heard, Witness

HOSTS = ("xa", "xb")
LEASE_S = 10
#: Times of the product, renewed by the machine's clock.
TIMES = replace(times(LEASE_S), renew_s=0.03)
#: As TIMES, but output leaves for longer than the lease lasts: what a campaign must find.
LATE_TIMES = replace(TIMES, mute_s=4.0 * LEASE_S, still_s=4.1 * LEASE_S)
TIMEOUT_MS = 150
INTERVAL_MS = 150
#: How often guests speak and the clock moves, in seconds of the machine.
_TICK_S = 0.004
#: By how much the clock moves at once, in its seconds: less than what is between an owner's silence and its lease's end.
_STEP_S = 0.4
#: How often a guest says what no other copy of it says, and what is remembered of the other times.
_OWN_WORDS = 0.02
_REMEMBERED = 10_000
#: How fast the clock runs beside the machine's when nobody says otherwise.
PACE = 5.0


def other(host: str) -> str:
    """Return the other host."""
    return HOSTS[1 - HOSTS.index(host)]


@dataclass
class Trigger:
    """``act`` is called at the ``nth`` time that a step comes (``before`` or ``after`` it is taken)."""

    host: str
    step: str
    when: str
    nth: int
    act: Callable[[], None]


class World:
    """See the module. ``close`` ends all of it."""

    def __init__(self, owner_times: Times = TIMES) -> None:
        self.times = owner_times
        self.directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/dev/shm"))
        self.page = SharedPage(1000.0)
        self.store = EmulatedStore(lambda: self.page.now)
        self.ways = {host: EmulatedArbiter(self.store) for host in HOSTS}
        self.witness = Witness()
        self.machines: dict[str, Machine] = {}
        self.processes: dict[str, Process] = {}
        #: (host, phase, reason), in their order.
        self.history: list[tuple[str, str, str]] = []
        #: How each host's last replicator ended, and what it was started as.
        self.exits: dict[str, int] = {}
        self.roles: dict[str, str] = {}
        #: What nobody may see: a replicator that fell over by itself.
        self.crashes: list[str] = []
        self.trigger: Trigger | None = None
        self.steps: list[tuple[str, str]] | None = None
        self.pace = PACE
        self._selector = selectors.DefaultSelector()
        self._acts: dict[Any, Callable[[], None]] = {}
        self._desk = Desk(self)
        self.line = Line(self._watch, self.unwatch, self._line_step)
        self._tokens = itertools.count(1)
        #: What a guest says next when nothing is random in it, by what it said before.
        self._likely: dict[int, int] = {}
        self._dice = random.Random(1)
        #: When output leaves, for the replicators that are started from now on: config.OUTPUTS.
        self.output = "hold"
        self._due_s = 0.0
        self._ticks = 0
        self._ticked_s = time.monotonic()
        self.primary = HOSTS[0]
        for index, host in enumerate(HOSTS):
            directory = self.directory / host
            directory.mkdir()
            self.machines[host] = Machine(host, index, directory)
            self._listen(host)
        self.reset()
        gc.freeze()  # what is there is shared with the replicators, and stays so

    # ------------------------------------------------------------------------------------------------- the whole

    def reset(self) -> None:
        """Everything anew: a VM on the first host, no copy, no record, no replicator."""
        for host in HOSTS:
            self.kill(host)
        self.line.cut.clear()
        self.line.break_all()
        self.line.refusing, self.line.narrow_bytes = "", 0
        self.store = EmulatedStore(lambda: self.page.now)
        for host, machine in self.machines.items():
            self.ways[host] = EmulatedArbiter(self.store)
            machine.boot()
            shutil.rmtree(machine.directory / "disk", ignore_errors=True)
            (machine.directory / "disk").mkdir()
            (machine.directory / "log").write_text("")
            self.page.set_disk_full(machine.index, False)
            self.page.set_wall_offset(machine.index, 0.0)
        self.witness.forget()
        self.history.clear()
        self.crashes.clear()
        self.exits.clear()
        self.roles.clear()
        self.trigger = None
        self.pace = PACE
        self.primary = HOSTS[0]
        self.machines[self.primary].start_vm()

    def close(self) -> None:
        """End every process, and leave nothing behind."""
        self.reset()
        shutil.rmtree(self.directory)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    # --------------------------------------------------------------------------------------------- replicators

    def start(self, host: str, role: str) -> None:
        """Start a host's replicator."""
        machine = self.machines[host]
        pairs = {name: socket.socketpair() for name in ("hardware", "arbiter")}
        pairs["control"] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (machine.directory / "attach.sock").unlink(missing_ok=True)
        birth = Birth(
            host,
            other(host),
            machine.index,
            role,
            machine.directory,
            self.page,
            self.times,
            TIMEOUT_MS,
            INTERVAL_MS,
            self.output,
            **{name: theirs for name, (_, theirs) in pairs.items()},
        )
        pid = os.fork()
        if pid == 0:
            live(birth)
        for _, theirs in pairs.values():
            theirs.close()
        process = Process(
            pid,
            host,
            role,
            {name: ours for name, (ours, _) in pairs.items()},
            {n: rpc.Reader() for n in pairs},
        )
        self.processes[host] = process
        self.exits.pop(host, None)
        self.roles[host] = role
        for name, end in process.sockets.items():
            if name == "control":
                self._watch(end, functools.partial(self._hear_status, process))
            else:
                self._watch(end, functools.partial(self._desk.hear, process, name))

    def kill(self, host: str) -> None:
        """Kill a host's replicator; nothing is put in order."""
        process = self.processes.get(host)
        if process:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            self._bury(process)

    def ask(self, host: str, verb: str) -> None:
        """Ask a replicator for something, as an operator or the service manager does."""
        process = self.processes.get(host)
        if process:
            with suppress(OSError):
                process.sockets["control"].send(verb.encode())

    def phase(self, host: str) -> str:
        """Return the phase of a host's replicator; empty when none runs."""
        process = self.processes.get(host)
        return process.phase if process else ""

    def _bury(self, process: Process) -> int:
        _, status = os.waitpid(process.pid, 0)
        for end in process.sockets.values():
            self.unwatch(end)
            end.close()
        machine = self.machines[process.host]
        self.processes.pop(process.host, None)
        self._carry(process.host)  # what its device models had taken leaves
        self.page.forget_letting_go(machine.index)
        machine.replicator_died()
        machine.helper_killed = False
        code = os.waitstatus_to_exitcode(status)
        self.exits[process.host] = code
        if code == CRASHED:
            tail = (machine.directory / "log").read_text(errors="replace").splitlines()[-1:]
            self.crashes.append(f"The replicator on {process.host} fell over: {' '.join(tail)}")
        return code

    def _hear_status(self, process: Process) -> None:
        try:
            said = process.sockets["control"].recv(1 << 16).decode(errors="replace")
        except OSError:
            said = ""
        if not said:
            if self.processes.get(process.host) is process:
                self._bury(process)
            return
        process.phase, _, process.reason = said.partition(": ")
        self.history.append((process.host, process.phase, process.reason))

    # ------------------------------------------------------------------------------------------------- the line

    def _listen(self, host: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.machines[host].directory / "line.sock"))
        listener.listen(16)

        def accept() -> None:
            near, _ = listener.accept()
            self._watch(near, lambda: self._dialled(host, near))

        self._watch(listener, accept)

    def _dialled(self, host: str, near: socket.socket) -> None:
        """Somebody wants a connection; one that is lost on its way gets no answer."""
        self.unwatch(near)
        order = near.recv(64).decode().split()
        peer = self.machines[other(host)]
        if len(order) != 2 or self.line.refusing:
            with suppress(OSError):
                near.sendall(self.line.refusing.encode() or b"R")
            near.close()
            return
        channel, number = order
        if self.line.blocked(channel) or not peer.lives:
            self._watch(near, lambda: self._forget(near))
            return
        with suppress(OSError):
            near.sendall(b"K")
            self.line.join(int(number), channel, near, str(peer.directory / "attach.sock"))

    def _forget(self, near: socket.socket) -> None:
        """Whoever dialled has given up."""
        self.unwatch(near)
        near.close()

    def _line_step(self, name: str, when: str) -> None:
        self.take_step("", name, when)

    # ------------------------------------------------------------------------------------------------ the steps

    def arm(self, host: str, step: str, when: str, nth: int, act: Callable[[], None]) -> None:
        """Let ``act`` happen at a step of a host; an empty host is either, for frames."""
        self.trigger = Trigger(host, step, when, nth, act)

    def take_step(self, host: str, step: str, when: str) -> None:
        """Something happens that a fault may be waiting for."""
        if self.steps is not None:
            self.steps.append((host, step))
        trigger = self.trigger
        if (
            trigger
            and (trigger.host in ("", host) or not host)
            and (trigger.step, trigger.when) == (step, when)
        ):
            trigger.nth -= 1
            if trigger.nth <= 0:
                self.trigger = None
                trigger.act()

    # -------------------------------------------------------------------------------------------------- faults

    def freeze(self, host: str) -> None:
        """Stop everything on a host, but never between a look at the clock and the packet (see page.lets_go)."""
        machine, process = self.machines[host], self.processes.get(host)
        while process:
            os.kill(process.pid, signal.SIGSTOP)
            _wait_stopped(process.pid)
            if not self.page.letting_go(machine.index):
                break
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.0002)
            self._carry(host)
        self._carry(host)
        machine.frozen = True

    def thaw(self, host: str) -> None:
        """Let a host go on as if nothing had been."""
        machine, process = self.machines[host], self.processes.get(host)
        machine.frozen = False
        if process:
            waiting, process.waiting = process.waiting, []
            for answer in waiting:
                answer()
            os.kill(process.pid, signal.SIGCONT)

    def power_off(self, host: str) -> None:
        """A host is gone, and nothing tells so: its connections stay open at the other end and lead nowhere."""
        machine = self.machines[host]
        process = self.processes.get(host)
        if process:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            self.line.hush()
            self._bury(process)
        machine.powered = False
        for domid in list(machine.domains):
            machine.destroy(domid)

    def power_on(self, host: str) -> None:
        """It boots: the other end of every connection learns that nobody knows it."""
        self.machines[host].boot()
        self.line.break_all()

    # -------------------------------------------------------------------------------------------- time passes

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, at most so many seconds that peers count in; tells whether ``until`` came true.

        On a machine that is busy these seconds are longer, for everybody here alike.
        """
        deadline = self.page.monotonic + seconds
        while True:
            if until():
                return True
            if self.page.monotonic >= deadline:
                return False
            self._turn()

    def _turn(self) -> None:
        due_s = self._ticked_s + _TICK_S - time.monotonic()
        for key, _ in self._selector.select(max(0.0, due_s)):
            if act := self._acts.get(key.fileobj):  # an earlier one of this turn may have ended it
                act()
        now = time.monotonic()
        if now - self._ticked_s >= _TICK_S:
            self._ticked_s = now
            self._due_s += _TICK_S * self.pace
            self.page.monotonic += _TICK_S
            self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        for machine in self.machines.values():
            if machine.lives and self._ticks % 3 == 0:
                for token in machine.speak(self._next_token):
                    self._hear(machine.name, token)
        self.line.flow()
        if not any(self.page.letting_go(one.index) for one in self.machines.values() if one.lives):
            self._carry_all()
            step_s = min(self._due_s, _STEP_S)
            self._due_s -= step_s
            self.page.now += step_s

    def _next_token(self, before: int) -> int:
        """Return what a guest says that has said ``before``: mostly the same as another copy that has said the same."""
        token = 0 if self._dice.random() < _OWN_WORDS else self._likely.get(before, 0)
        if not token:
            token = next(self._tokens)
            self._likely[before] = token
            if len(self._likely) > _REMEMBERED:
                self._likely = {before: token}
        self.witness.said(token, before)
        return token

    def _carry_all(self) -> None:
        for host in HOSTS:
            self._carry(host)

    def _carry(self, host: str) -> None:
        machine = self.machines[host]
        if machine.lives:
            for token in machine.let_go():
                self._hear(host, token)

    def _hear(self, host: str, token: int) -> None:
        self.witness.hear(Heard(self.page.now, host, token))

    # ---------------------------------------------------------------------------------------------- the sockets

    def _watch(self, end: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(end, selectors.EVENT_READ)
        self._acts[end] = act

    def unwatch(self, end: socket.socket) -> None:
        """Listen to a socket no more; harmless when nobody did."""
        if self._acts.pop(end, None):
            self._selector.unregister(end)

    @property
    def owner(self) -> str:
        """Who owns the VM by the arbiter's record; empty while there is none."""
        record = self.store.read(VM).record
        return record.owner if record else ""

    @property
    def record_cause(self) -> str:
        """Why the record is as it is."""
        record = self.store.read(VM).record
        return record.cause if record else ""


def _wait_stopped(pid: int) -> None:
    """Wait until every thread of a process stands still (or the process has ended)."""
    while True:
        try:
            states = [
                Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0]
                for task in os.listdir(f"/proc/{pid}/task")
            ]
        except OSError:
            continue
        if all(state in "TtZX" for state in states):
            return
