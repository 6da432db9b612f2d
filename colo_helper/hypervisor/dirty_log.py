"""A domain's dirty log that notices when somebody else has read it.

Xen keeps one log per domain, and who reads it clears it: an `xl migrate` or `xl save` of a protected guest takes frames
that a checkpoint needs, and nobody is told. So after each clean one frame is marked that the guest's checkpoints never
carry, its xenstore ring; when the mark is missing at the next clean, somebody else was here, and the copies have to be
compared anew.
"""

from __future__ import annotations

from colo_helper.hypervisor import abi
from colo_helper.hypervisor.interface import Domain, HypervisorError
from colo_helper.memory.bitmap import DirtyBitmap


class LogLostError(HypervisorError):
    """Somebody else has read the dirty log: what the guest wrote since the last clean is not known."""


class DirtyLog:
    """The log of one domain. Methods may raise HypervisorError.

    ``guarded`` False: as Xen's own helper reads it, unmarked. A guest without a xenstore ring cannot be marked either.
    """

    def __init__(self, domain: Domain, *, guarded: bool = True) -> None:
        self._domain = domain
        self._mark = domain.get_param(abi.PARAM_STORE_PFN) if guarded else 0

    def start(self) -> None:
        """Turn it on."""
        self._domain.log_dirty_on()
        if self._mark:
            self._domain.mark_dirty(self._mark)

    def clean(self, *, final: bool) -> DirtyBitmap:
        """Return what was written since the last clean, without our mark; see Domain.clean_dirty. Raises LogLostError."""
        dirty = self._domain.clean_dirty(final)
        if self._mark:
            if not dirty.has(self._mark):
                raise LogLostError(
                    f"Somebody else has read the dirty log of domain {self._domain.domid} (an xl save or migrate?), so "
                    "what the guest wrote meanwhile is not known.",
                    operation="clean_dirty",
                    domid=self._domain.domid,
                )
            self._domain.mark_dirty(self._mark)
            dirty.forget((self._mark,))
        return dirty
