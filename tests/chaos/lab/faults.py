"""How each kind of fault is brought about on the lab's hosts, and mended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lab import network
from lab.lab import Lab
from lab.settings import CLIENT_NUMBER, HOSTS, address, host_number
from tests.chaos.plan import BOTH, PRIMARY, Fault
from tests.lab.arbiter import WitnessHost
from tests.lab.protected_vm import ProtectedVm

_FILLER = "/var/lib/colo/filler"
#: What the plan's figure for a narrowed link means here, in bit/s.
_NARROW_BIT_S = 8000


@dataclass
class Injection:
    """One fault on a pair whose VM was ``primary``'s when it came."""

    lab: Lab
    vm: ProtectedVm
    witness: WitnessHost
    fault: Fault
    primary: str
    secondary: str
    #: Hosts that have lost their power, and with it what they had not written to their disks; up again after ``mend``, or not.
    rebooted: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    #: Whether the VM's own device model was killed when no copy may take over: that is the end of the guest.
    guest_killed: bool = False
    #: Whether the host that the VM is handed over to was lost in the middle of it.
    heir_lost: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The hosts that it befalls."""
        if self.fault.target == BOTH:
            return HOSTS
        return (self.primary if self.fault.target == PRIMARY else self.secondary,)

    @property
    def lasts(self) -> bool:
        """Whether somebody is to answer while it lasts: not when both sides are cut off, or the owner from its arbiter."""
        return (
            self.fault.kind not in ("arbiter_restart", "arbiter_lost", "narrow") and self.fault.target != BOTH
        )

    def inject(self) -> None:
        """Bring it about; who has the VM may have changed since the fault was chosen."""
        record = self.witness.read(self.vm.name).record
        owner = record.owner if record else self.primary
        for line in self._routes("add"):
            self.vm.on(*line)
        match self.fault.kind:
            case "narrow":
                network.narrow(self.lab.settings, "data", int(self.fault.amount * _NARROW_BIT_S))
            case "arbiter_restart":
                self.witness.kill()
            case "kill_sshd":
                self.vm.on(self.secondary, "pkill -KILL -u colo || true")
            case _:
                for host in self.targets:
                    self._befall(host, owner)

    def mend(self, *, power: bool) -> None:
        """Make everything whole again but the pair itself; without ``power`` a host that has lost it stays off."""
        for line in self._routes("del"):
            self.vm.on(*line)
        match self.fault.kind:
            case "narrow":
                network.widen(self.lab.settings, "data")
            case "arbiter_restart":
                self.witness.start()
            case _:
                for host in self.targets:
                    self._mend(host, power=power)

    def _befall(self, host: str, owner: str) -> None:
        machine = self.lab.host(host)
        match self.fault.kind:
            case "power_off":
                self.heir_lost = host == self.secondary and self.fault.activity == "switchover"
                machine.power_off()
            case "freeze":
                machine.freeze()
            case "isolate":
                for path in ("data", "mgmt"):
                    machine.set_cable(path, plugged=False)
            case "kill_replicator":
                self.vm.on(host, f"systemctl kill --kill-whom=main --signal=KILL {self.vm.unit}")
            case "kill_helper":
                pid = f"$(systemctl show --property=MainPID --value {self.vm.unit})"
                self.vm.on(host, f"pkill -KILL -P {pid} || true")
            case "kill_device_model":
                unprotected = self.fault.target == BOTH or self.fault.activity == "switchover"
                self.guest_killed = host == owner and unprotected
                self.vm.on(host, f"pkill -KILL -f 'qemu.*-name {self.vm.name}' || true")
            case "disk_full":
                room = "$(df --output=avail -B1 /var/lib/colo | tail -1)"
                self.vm.on(
                    host, f"fallocate -l {room} {_FILLER}; cat /dev/zero >> {_FILLER} 2>/dev/null; true", 120
                )
            case "clock_step":
                self.vm.on(host, f"date -s @$(($(date +%s) + {int(self.fault.amount)}))")

    def _mend(self, host: str, *, power: bool) -> None:
        machine = self.lab.host(host)
        match self.fault.kind:
            case "power_off" if not power:
                self.off.append(host)
            case "power_off":
                self.lab.power_on(host)
                self.vm.wait_reachable(host)
                self.rebooted.append(host)
            case "freeze":
                machine.thaw()
            case "isolate":
                for path in ("data", "mgmt"):
                    machine.set_cable(path, plugged=True)
            case "disk_full":
                self.vm.on(host, f"rm -f {_FILLER}")
            case "clock_step":
                self.vm.on(host, f"date -s @{time.time():.3f}")

    def _routes(self, verb: str) -> list[tuple[str, str]]:
        """Lines for hosts: a way ends where its sender has no route any more."""
        if self.fault.kind == "arbiter_lost":
            witness = address("mgmt", CLIENT_NUMBER)
            return [(host, f"ip route {verb} blackhole {witness}/32") for host in self.targets]
        lines = []
        for way in self.fault.ways:
            path, sender, receiver = way[:-1], self.primary, self.secondary
            if way.endswith("<"):
                sender, receiver = receiver, sender
            lines.append((sender, f"ip route {verb} blackhole {address(path, host_number(receiver))}/32"))
        return lines
