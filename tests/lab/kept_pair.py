"""A protected VM kept at one moment, with both hosts and the witness, as a state to go back to in seconds."""

from dataclasses import dataclass

from lab import guests
from lab.lab import Lab
from lab.settings import HOSTS
from tests.lab.arbiter import WitnessHost
from tests.lab.protected_vm import ProtectedVm

_ANSWER_S = 60


@dataclass(frozen=True)
class KeptPair:
    """``tag`` names the state; another one under the same name takes its place."""

    lab: Lab
    vm: ProtectedVm
    witness: WitnessHost
    tag: str = "protected"

    def keep(self):
        """Keep everything as it is now. Nothing may change what the witness knows meanwhile."""
        # QEMU does not load what it saved while a nested guest ran.
        self._both("pause")
        self.witness.keep(self.tag)
        self.lab.keep(self.tag)
        self._both("unpause")

    def go_back(self):
        """Everything as it was kept, whatever has happened; connections of clients are gone."""
        for host in HOSTS:
            self.lab.host(host).power_off()
        self.witness.restore(self.tag)
        self.lab.restore(self.tag)
        self._both("unpause")
        guests.wait_answer(self.vm.settings, self.vm.name, _ANSWER_S)

    def _both(self, verb):
        for host in reversed(HOSTS):
            self.vm.on(host, f"xl {verb} {self.vm.name}")
