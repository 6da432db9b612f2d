"""Where replicators ask for their host and for the arbiter, and a fault may come before the answer or after it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from colo_helper.arbiter.emulated import EmulatedArbiter
from colo_helper.arbiter.interface import ArbiterError, RefusedError
from colo_helper.devices.interface import DeviceError
from colo_helper.hypervisor.interface import HypervisorError
from tests.chaos.emulated import rpc
from tests.chaos.emulated.hardware import QUESTIONS, Machine
from tests.chaos.emulated.line import Line


@dataclass
class Process:
    """One replicator that runs. ``phase`` and ``reason`` are what it said last; ``history`` all of it."""

    pid: int
    host: str
    role: str
    sockets: dict[str, socket.socket]
    readers: dict[str, rpc.Reader]
    phase: str = ""
    reason: str = ""
    stopped: bool = False
    #: Answers that wait until the host thaws.
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Surroundings(Protocol):
    """What the desk needs of the world."""

    machines: dict[str, Machine]
    ways: dict[str, EmulatedArbiter]
    processes: dict[str, Process]
    line: Line

    def take_step(self, host: str, step: str, when: str) -> None:
        """See World."""

    def unwatch(self, end: socket.socket) -> None:
        """See World."""


@dataclass(frozen=True)
class Desk:
    """Answers what replicators ask, in turn."""

    _world: Surroundings

    def hear(self, process: Process, name: str) -> None:
        end = process.sockets[name]
        try:
            data = end.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._world.unwatch(end)
            return
        for question in process.readers[name].feed(data):
            self._answer(process, end, *question)

    def _answer(
        self,
        process: Process,
        end: socket.socket,
        thread: str,
        group: str,
        domid: int,
        method: str,
        *arguments: Any,
    ) -> None:
        machine = self._world.machines[process.host]
        if machine.frozen and group != "arbiter":
            process.waiting.append(
                lambda: self._answer(process, end, thread, group, domid, method, *arguments)
            )
            return
        step = f"{group}.{method}"
        asked = method in QUESTIONS or thread == "lease"
        if not asked:
            self._world.take_step(process.host, step, "before")
        if self._world.processes.get(process.host) is not process:
            return
        sockets: list[socket.socket] = []
        if machine.helper_killed and thread == "helper":
            machine.helper_killed = False
            answer: tuple[str, Any] = ("killed", None)
        else:
            answer = self._served(machine, group, domid, method, arguments, sockets)
        if not asked:
            self._world.take_step(process.host, step, "after")
            if group == "arbiter" and self._world.ways[process.host].cut:
                answer = ("error", ArbiterError("The arbiter's answer was lost."))
        if self._world.processes.get(process.host) is not process:
            return
        if machine.frozen:
            process.waiting.append(lambda: self._reply(end, answer, sockets))
        else:
            self._reply(end, answer, sockets)

    def _served(
        self,
        machine: Machine,
        group: str,
        domid: int,
        method: str,
        arguments: tuple[Any, ...],
        sockets: list[socket.socket],
    ) -> tuple[str, Any]:
        try:
            if group == "arbiter":
                value = getattr(self._world.ways[machine.name], method)(*arguments)
            elif group == "line":
                value = self._world.line.why(*arguments)
            elif (group, method) == ("flt", "attach"):
                sockets += machine.serve(group, domid, method, ())
                value = ["net0"]
            else:
                value = machine.serve(group, domid, method, arguments)
        except RefusedError as no:
            return "refused", no.seen
        except (ArbiterError, DeviceError) as error:
            return "error", error
        except HypervisorError as error:
            return "error", PlainHypervisorError(str(error), error.operation, error.errno_name)
        return "ok", value

    @staticmethod
    def _reply(end: socket.socket, answer: tuple[str, Any], sockets: list[socket.socket]) -> None:
        end.setblocking(True)
        with suppress(OSError):
            rpc.send(end, answer)
            if sockets:
                socket.send_fds(end, [b"\0"], [one.fileno() for one in sockets])
        for one in sockets:
            one.close()


class PlainHypervisorError(HypervisorError):
    """A HypervisorError that can be pickled."""

    def __init__(self, sentence: str, operation: str, errno_name: str) -> None:
        super().__init__(sentence, operation=operation, errno_name=errno_name or errno.errorcode[errno.EIO])
        self.args = (sentence, operation, errno_name)

    def __str__(self) -> str:
        return str(self.args[0])
