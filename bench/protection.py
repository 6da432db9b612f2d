"""A VM of the lab that is protected while something is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.playbooks import play_well
from lab.settings import Settings
from tests.lab.protected_vm import ProtectedVm

_WARM_UP_CHECKPOINTS = 5


@contextmanager
def protected(settings: Settings, vm: ProtectedVm, output: str) -> Iterator[None]:
    """Have a VM's output let go in one way (``output`` of colo_vms), from a few checkpoints after its protection began on."""
    logs = settings.checkout / "build" / "bench"
    given = {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 20_000, "output": output}
    wish = {"colo_vm": vm.name, "colo_vms": {vm.name: given}}
    play_well(settings, "protect", extra=wish, log=logs / "protect.log")
    vm.wait_for_checkpoints(_WARM_UP_CHECKPOINTS)
    yield
    play_well(settings, "unprotect", extra={**wish, "colo_confirm": vm.name}, log=logs / "unprotect.log")
