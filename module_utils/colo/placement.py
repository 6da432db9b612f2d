"""Which host gets the copy of which VM: hard limits and an even spread, solved by OR-tools' CP-SAT.

A fleet is solved in cells, groups of hosts with all failure domains in their usual shares: a copy goes to a host of its
primary's cell, so time and memory grow with the number of hosts, not with its square, and the loss of a host is felt in one
cell only. In a cell, one primary after the other is solved. What a cell has no room for is tried on the emptiest hosts of
the fleet, and then by solving the whole cell, where other copies may make room.

Memory is in MiB, links in Mbit/s. Nothing here is random: the same fleet gets the same placement.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from ortools.sat.python import cp_model

#: Hosts of a cell: enough to spread a host's VMs on, few enough to be solved in seconds.
CELL_HOSTS = 24
#: VMs that are solved together.
BLOCK_VMS = 40
#: How many hosts of its cell a VM may choose from at least.
FEWEST_HOSTS = 8
#: How many hosts a VM may choose from that its cell has no room for.
WIDE_HOSTS = 48
#: What the solver may spend on one primary's VMs and on a whole cell, in its own deterministic measure: one is a few seconds.
BLOCK_EFFORT, CELL_EFFORT = 0.05, 4.0
#: A solution that may be so much worse than the best is good enough.
GAP = 0.01


@dataclass(frozen=True)
class Host:
    """What VMs and copies may use of a host; ``link_mbit`` is what it can receive of checkpoints, None: not limited."""

    name: str
    failure_domain: str
    memory_mib: int
    link_mbit: int | None = None


@dataclass(frozen=True)
class Vm:
    """A VM where it runs, and where its copy is, empty without one. ``link_mbit`` is what its checkpoints need."""

    name: str
    primary: str
    secondary: str
    memory_mib: int
    link_mbit: int = 0


@dataclass(frozen=True)
class Costs:
    """What makes a placement worse: a VM without a copy, a copy that moves, and two things in thousandths.

    How full the fullest host is; and for each primary how much more of its VMs its death leaves to one other host than an even
    spread would. ``effort`` is what the solver may spend.
    """

    unplaced: int = 10**10
    moved: int = 10**7
    fullest: int = 50
    uneven: int = 50
    effort: float = CELL_EFFORT


#: A move must be needed, or it was asked for and makes the fullest host emptier, or a death milder.
NEW_COPIES, NEEDED_MOVES, WANTED_MOVES = Costs(effort=BLOCK_EFFORT), Costs(), Costs(moved=50)


@dataclass
class Usage:
    """What is used of each host, memory by VMs and copies, links by copies; and what its death would leave to another."""

    memory: Counter[str] = field(default_factory=Counter)
    link: Counter[str] = field(default_factory=Counter)
    of_death: Counter[tuple[str, str]] = field(default_factory=Counter)
    run: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, vms: Iterable[Vm], secondaries: Mapping[str, str]) -> Usage:
        """All VMs, with their copies where ``secondaries`` says."""
        used = cls()
        for vm in vms:
            used.memory[vm.primary] += vm.memory_mib
            used.run[vm.primary] += vm.memory_mib
            if vm.name in secondaries:
                used.add(vm, secondaries[vm.name])
        return used

    def add(self, vm: Vm, host: str, times: int = 1) -> None:
        """A copy on a host; -1 ``times`` takes it away."""
        self.memory[host] += times * vm.memory_mib
        self.link[host] += times * vm.link_mbit
        self.of_death[vm.primary, host] += times * vm.memory_mib

    def room(self, host: Host) -> int:
        """Memory that is left on a host; negative when it has more than it may."""
        return host.memory_mib - self.memory[host.name]

    def fits(self, host: Host, memory_mib: int = 0, link_mbit: int = 0) -> bool:
        """Whether so much more has room there."""
        linked = host.link_mbit is None or self.link[host.name] + link_mbit <= host.link_mbit
        return linked and memory_mib <= self.room(host)


def cells(hosts: Iterable[Host], size: int = CELL_HOSTS) -> list[list[Host]]:
    """Hosts in groups of about ``size``, each with its share of every failure domain, in an order of their names alone."""
    domains: dict[str, list[Host]] = defaultdict(list)
    for host in sorted(hosts, key=lambda host: host.name):
        domains[host.failure_domain].append(host)
    spread = sorted(
        ((at + 0.5) / len(members), name, at)
        for name, members in domains.items()
        for at in range(len(members))
    )
    ordered = [domains[name][at] for _share, name, at in spread]
    count = max(1, round(len(ordered) / size))
    return [ordered[len(ordered) * at // count : len(ordered) * (at + 1) // count] for at in range(count)]


def even_spread(run_mib: int, largest_mib: int, hosts: int) -> int:
    """The least that the death of a host can leave to one of so many others, when it runs so much: a VM is not split."""
    return max(largest_mib, -(-run_mib // hosts))


def place(hosts: Sequence[Host], vms: Sequence[Vm], wanted_moves: int = 0) -> dict[str, str]:
    """Return VM to secondary, without those that no host has room for.

    A copy that may stay where it is stays there, but for ``wanted_moves`` that make the spread more even. Primaries must be
    among ``hosts``, and names be unique.
    """
    return _Fleet(hosts, vms).placed(wanted_moves)


class _Fleet:
    """A placement while it is made: each step takes some copies away and solves them anew, with all others where they are."""

    def __init__(self, hosts: Sequence[Host], vms: Sequence[Vm]) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._vms = sorted(vms, key=lambda vm: vm.name)
        self._cells = cells(hosts)
        self._cell_of = {host.name: at for at, cell in enumerate(self._cells) for host in cell}
        self._placed = {vm.name: vm.secondary for vm in self._vms if self._may_be_on(vm, vm.secondary)}
        self._used = Usage.of(self._vms, self._placed)

    def placed(self, wanted_moves: int) -> dict[str, str]:
        """Go through all steps."""
        overloaded = {name for name, host in self._hosts.items() if not self._used.fits(host)}
        self._solve_cells([vm for vm in self._vms if self._placed.get(vm.name, "") in {"", *overloaded}])
        self._solve_wide()
        self._make_room()
        if wanted_moves:
            self._even_out(wanted_moves)
        return self._placed

    def _may_be_on(self, vm: Vm, name: str) -> bool:
        host = self._hosts.get(name)
        return host is not None and host.failure_domain != self._hosts[vm.primary].failure_domain

    def _missing(self) -> list[Vm]:
        return [vm for vm in self._vms if vm.name not in self._placed]

    def _of_cells(self, vms: Iterable[Vm]) -> dict[int, list[Vm]]:
        found: dict[int, list[Vm]] = defaultdict(list)
        for vm in vms:
            found[self._cell_of[vm.primary]].append(vm)
        return found

    def _inside(self, at: int) -> list[Vm]:
        """VMs of a cell whose copies are in it as well, or nowhere."""
        return [
            vm
            for vm in self._vms
            if self._cell_of[vm.primary] == at and self._cell_of.get(self._placed.get(vm.name, ""), at) == at
        ]

    def _solve_cells(self, vms: Iterable[Vm]) -> None:
        """Find hosts for copies in their own cells, which do not touch each other."""
        before = self._take(vms)

        def solve(cell: tuple[int, list[Vm]]) -> None:
            for block in self._blocks(cell[1]):
                hosts = self._emptiest(self._cells[cell[0]], block)
                self._put(block, self._solved(hosts, block, before, NEW_COPIES))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _done in pool.map(solve, self._of_cells(vms).items()):
                pass  # raises what was raised there

    def _emptiest(self, hosts: Iterable[Host], block: Sequence[Vm]) -> list[Host]:
        """Hosts for the copies of one primary's VMs, a few more than VMs: the fullest of these is what counts."""
        fitting = [host for host in hosts if any(self._may_be_on(vm, host.name) for vm in block)]
        fitting.sort(key=lambda host: (self._used.memory[host.name] / max(1, host.memory_mib), host.name))
        return fitting[: max(FEWEST_HOSTS, len(block) * 3 // 2)]

    def _blocks(self, vms: Iterable[Vm]) -> list[list[Vm]]:
        """The VMs of one primary together, so that its death is spread; those with most memory first."""
        ordered = sorted(
            vms, key=lambda vm: (-self._used.run[vm.primary], vm.primary, -vm.memory_mib, vm.name)
        )
        return [
            some[at : at + BLOCK_VMS]
            for _primary, group in groupby(ordered, key=lambda vm: vm.primary)
            for some in (list(group),)
            for at in range(0, len(some), BLOCK_VMS)
        ]

    def _solve_wide(self) -> None:
        """What a cell has no room for goes to the hosts of the fleet that have most of it."""
        for block in self._blocks(self._missing()):
            least = min(vm.memory_mib for vm in block)
            roomy = [host for host in self._hosts.values() if self._used.fits(host, least)]
            roomy.sort(key=lambda host: (-self._used.room(host), host.name))
            self._put(block, self._solved(roomy[:WIDE_HOSTS], block, {}, NEW_COPIES))

    def _make_room(self) -> None:
        """Where still something is missing, the other copies of that cell may move."""
        for at in self._of_cells(self._missing()):
            vms = self._inside(at)
            self._put(vms, self._solved(self._cells[at], vms, self._take(vms), NEEDED_MOVES))

    def _even_out(self, moves: int) -> None:
        """Cell by cell, the fullest first, until all moves are used."""

        def fullest(at: int) -> float:
            return max(self._used.memory[host.name] / max(1, host.memory_mib) for host in self._cells[at])

        for at in sorted(range(len(self._cells)), key=fullest, reverse=True):
            vms = self._inside(at)
            before = self._take(vms)
            found = self._solved(self._cells[at], vms, before, WANTED_MOVES, moves)
            self._put(vms, found)
            moves -= sum(found.get(name) != host for name, host in before.items())

    def _take(self, vms: Iterable[Vm]) -> dict[str, str]:
        """Take copies away; returns where they were."""
        before = {vm.name: self._placed.pop(vm.name) for vm in vms if vm.name in self._placed}
        for vm in vms:
            if vm.name in before:
                self._used.add(vm, before[vm.name], -1)
        return before

    def _put(self, vms: Iterable[Vm], found: Mapping[str, str]) -> None:
        self._placed.update(found)
        for vm in vms:
            if vm.name in found:
                self._used.add(vm, found[vm.name])

    def _solved(
        self,
        hosts: Sequence[Host],
        vms: Sequence[Vm],
        before: Mapping[str, str],
        costs: Costs,
        moves: int | None = None,
    ) -> dict[str, str]:
        """VM to one of ``hosts``, at the least cost; at most so many ``moves`` of copies that were somewhere ``before``."""
        choices = {
            vm: [
                host
                for host in hosts
                if self._may_be_on(vm, host.name) and self._used.fits(host, vm.memory_mib, vm.link_mbit)
            ]
            for vm in vms
        }
        return _Model(choices, self._used, before, costs, moves).solution()


class _Model:
    """One problem for the solver: a choice for each VM, limits for each host, and what is to be small."""

    def __init__(
        self,
        choices: Mapping[Vm, Sequence[Host]],
        used: Usage,
        before: Mapping[str, str],
        costs: Costs,
        moves: int | None,
    ) -> None:
        self._model = cp_model.CpModel()
        self._used = used
        self._effort = costs.effort
        self._on: dict[tuple[Vm, str], cp_model.IntVar] = {}
        self._of_host: dict[Host, list[Vm]] = defaultdict(list)
        cost: list[cp_model.LinearExprT] = []
        for vm, hosts in choices.items():
            nowhere = self._model.new_bool_var("")
            for host in hosts:
                self._on[vm, host.name] = self._model.new_bool_var("")
                self._of_host[host].append(vm)
            self._model.add_exactly_one([*(self._on[vm, host.name] for host in hosts), nowhere])
            cost.append(costs.unplaced * nowhere)
            if before:
                self._model.add_hint(nowhere, vm.name not in before)
        self._limits()
        moved = [1 - self._on[vm, before[vm.name]] for vm in choices if (vm, before.get(vm.name)) in self._on]
        if moves is not None:
            self._model.add(sum(moved) <= moves)
        cost += [costs.moved * one for one in moved]
        cost += [costs.fullest * self._fullest(), costs.uneven * self._unevenness()]
        self._model.minimize(sum(cost))
        for vm, host in self._on:
            if vm.name in before:
                self._model.add_hint(self._on[vm, host], before[vm.name] == host)

    def solution(self) -> dict[str, str]:
        """VM to host, as good as the effort allows."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1  # the same answer each time
        solver.parameters.random_seed = 0
        solver.parameters.relative_gap_limit = GAP
        solver.parameters.max_deterministic_time = self._effort
        while (status := solver.solve(self._model)) == cp_model.UNKNOWN:
            solver.parameters.max_deterministic_time *= 8  # there is one: no copy anywhere
        assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE), self._model.validate()
        return {vm.name: host for (vm, host), chosen in self._on.items() if solver.boolean_value(chosen)}

    def _sum(self, host: str, vms: Iterable[Vm], what: str = "memory_mib") -> cp_model.LinearExprT:
        return sum(getattr(vm, what) * self._on[vm, host] for vm in vms)

    def _limits(self) -> None:
        for host, vms in self._of_host.items():
            self._model.add(self._sum(host.name, vms) <= self._used.room(host))
            if host.link_mbit is not None:
                linked = self._sum(host.name, vms, "link_mbit")
                self._model.add(linked <= host.link_mbit - self._used.link[host.name])

    def _fullest(self) -> cp_model.IntVar:
        """Thousandths of its memory that the fullest of the hosts uses."""
        most = self._model.new_int_var(0, 1000, "fullest")
        for host, vms in self._of_host.items():
            memory = self._used.memory[host.name] + self._sum(host.name, vms)
            self._model.add(1000 * memory <= most * host.memory_mib)
        return most

    def _unevenness(self) -> cp_model.LinearExprT:
        """Sum over the primaries: thousandths of its VMs' memory that its death leaves to one host beyond an even spread."""
        of_pair: dict[tuple[str, str], list[Vm]] = defaultdict(list)
        hosts_of: dict[str, set[str]] = defaultdict(set)
        largest: Counter[str] = Counter()
        for vm, host in self._on:
            of_pair[vm.primary, host].append(vm)
            hosts_of[vm.primary].add(host)
            largest[vm.primary] = max(largest[vm.primary], vm.memory_mib)
        beyond = {primary: self._model.new_int_var(0, 1000, primary) for primary in hosts_of}
        for (primary, host), vms in of_pair.items():
            run = self._used.run[primary]
            even = even_spread(run, largest[primary], len(hosts_of[primary]))
            left = self._used.of_death[primary, host] + self._sum(host, vms)
            self._model.add(1000 * left <= 1000 * even + beyond[primary] * run)
        return sum(beyond.values())
