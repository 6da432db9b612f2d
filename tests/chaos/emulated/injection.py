"""What the emulated ground does to its world: one fault, its end, and what the pair is doing meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.emulated.line import WAYS
from tests.chaos.emulated.world import HOSTS, LEASE_S, World, other
from tests.chaos.plan import BOTH, PRIMARY, Fault


class Injection:
    """One fault on the world, and its end."""

    def __init__(self, world: World, fault: Fault, primary: str) -> None:
        self._world, self._fault = world, fault
        self.primary, self.secondary = primary, other(primary)
        self.injected = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Whom it befalls."""
        return (
            HOSTS
            if self._fault.target == BOTH
            else (self.primary if self._fault.target == PRIMARY else self.secondary,)
        )

    def inject(self) -> None:
        """Let it happen."""
        self.injected = True
        getattr(self, f"_{self._fault.kind}")()

    def mend(self) -> None:
        """Put everything in order that no replicator does."""
        world = self._world
        world.trigger = None
        for host, machine in world.machines.items():
            if machine.frozen:
                world.thaw(host)
            if not machine.powered:
                world.power_on(host)
            world.ways[host].cut = False
            world.page.set_disk_full(machine.index, False)
            world.page.set_wall_offset(machine.index, 0.0)
        if world.line.cut:
            world.line.cut.clear()
        world.line.refusing, world.line.narrow_bytes = "", 0

    def _power_off(self) -> None:
        for host in self.hosts:
            self._world.power_off(host)

    def _freeze(self) -> None:
        for host in self.hosts:
            self._world.freeze(host)

    def _cut(self) -> None:
        self._world.line.cut |= set(self._fault.ways)

    def _isolate(self) -> None:
        self._world.line.cut |= set(WAYS)
        self._arbiter_lost()

    def _narrow(self) -> None:
        self._world.line.narrow_bytes = int(self._fault.amount)

    def _kill_replicator(self) -> None:
        for host in self.hosts:
            self._world.kill(host)

    def _kill_helper(self) -> None:
        for host in self.hosts:
            self._world.machines[host].helper_killed = True

    def _kill_device_model(self) -> None:
        for host in self.hosts:
            machine = self._world.machines[host]
            machine.headless |= set(machine.domains)
            for net in machine.nets.values():
                net.detach()

    def _kill_sshd(self) -> None:
        self._world.line.break_all()
        self._world.line.refusing = "R"

    def _arbiter_lost(self) -> None:
        for host in self.hosts:
            self._world.ways[host].cut = True

    def _arbiter_restart(self) -> None:
        """Every lease counts anew from a new leader on."""
        for host in HOSTS:
            self._world.ways[host].cut = True
        for kept in self._world.store._kept.values():
            kept.until_s = self._world.page.now + LEASE_S

    def _disk_full(self) -> None:
        for host in self.hosts:
            self._world.page.set_disk_full(self._world.machines[host].index, True)

    def _clock_step(self) -> None:
        for host in self.hosts:
            self._world.page.set_wall_offset(self._world.machines[host].index, self._fault.amount)


def _rejoin(world: World, act: Injection) -> None:
    """The two lose each other and find together again."""
    world.line.break_all()
    world.line.refusing = "N"
    world.run(0.5, lambda: world.phase(act.primary) == "unprotected")
    world.line.refusing = ""


def _copy(world: World, act: Injection) -> None:
    """The copy is gone, and another one is made."""
    world.kill(act.secondary)
    machine = world.machines[act.secondary]
    for domid in list(machine.domains):
        machine.destroy(domid)
    (machine.directory / "disk" / "state.json").unlink(missing_ok=True)
    world.start(act.secondary, "secondary")


def _takeover(world: World, act: Injection) -> None:
    """The primary is cut off from everybody, so that the secondary takes over."""
    world.ways[act.primary].cut = True
    world.line.cut |= set(WAYS)


ACTIVITIES: dict[str, Callable[[World, Injection], None]] = {
    "checkpoint": lambda world, act: world.ask(act.primary, "checkpoint"),
    "switchover": lambda world, act: world.ask(act.primary, "switchover"),
    "rejoin": _rejoin,
    "copy": _copy,
    "takeover": _takeover,
}
