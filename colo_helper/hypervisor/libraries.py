"""Xen's libraries, opened for the running release.

The handles must not be used by a child process. They are opened with close-on-exec, their buffers are not copied to
children (MADV_DONTFORK), and ``subprocess`` executes another program at once (vfork), so starting ``xl`` beside open
handles is safe; forking without exec is not.
"""

from __future__ import annotations

import ctypes as c
import errno as errno_module
from collections.abc import Mapping
from functools import cached_property

from colo_helper.hypervisor import abi as x
from colo_helper.hypervisor.interface import HypervisorError


class XenLibraries:
    """The libraries of the running release, opened and bound, with one handle of each."""

    def __init__(
        self, release: str, ctrl: c.CDLL, ctrl_handle: int, foreign: c.CDLL, foreign_handle: int
    ) -> None:
        self.release = release
        self.ctrl = ctrl
        self.ctrl_handle = ctrl_handle
        self.foreign = foreign
        self.foreign_handle = foreign_handle

    @cached_property
    def guest(self) -> c.CDLL:
        """libxenguest, opened when something of it is needed; raises HypervisorError."""
        abi = x.abi_of(self.release)
        try:
            return _bound(abi.xenguest_soname, abi.xenguest)
        except OSError as error:
            raise _not_loaded(error) from error

    @cached_property
    def device_model(self) -> c.CDLL:
        """libxendevicemodel, opened when something of it is needed; raises HypervisorError."""
        abi = x.abi_of(self.release)
        try:
            return _bound(abi.device_model_soname, abi.device_model)
        except OSError as error:
            raise _not_loaded(error) from error

    @cached_property
    def device_model_handle(self) -> int:
        """Its handle; raises HypervisorError."""
        handle = self.device_model.xendevicemodel_open(None, 0)
        if not handle:
            raise failure("xendevicemodel_open", "open its device model interface")
        return int(handle)

    def close(self) -> None:
        """Give the handles back."""
        if "device_model_handle" in self.__dict__:
            self.device_model.xendevicemodel_close(self.device_model_handle)
        self.foreign.xenforeignmemory_close(self.foreign_handle)
        self.ctrl.xc_interface_close(self.ctrl_handle)


def failure(operation: str, doing: str, domid: int | None = None) -> HypervisorError:
    """Return the error of a call that has just failed, from errno."""
    code = c.get_errno()
    name = errno_module.errorcode.get(code, str(code))
    of = "" if domid is None else f" domain {domid}"
    return HypervisorError(
        f"Xen refused to {doing}{of}: {name} ({operation}).",
        operation=operation,
        domid=domid,
        errno_name=name,
    )


def _bound(soname: str, signatures: Mapping[str, x.Signature]) -> c.CDLL:
    """Open a library and bind what we use of it; raises OSError."""
    library = c.CDLL(soname, use_errno=True)
    x.bind(library, signatures)
    return library


def _not_loaded(error: OSError) -> HypervisorError:
    return HypervisorError(f"A Xen library cannot be loaded: {error}.", operation="dlopen")


def running_release() -> str:
    """Return the release of the running hypervisor, such as ``4.17``, by xc_version of any libxenctrl we know."""
    for abi in x.ABIS.values():
        try:
            library = _bound(abi.xenctrl_soname, abi.xenctrl)
        except OSError:
            continue  # a release that is not installed; the next may be
        handle = library.xc_interface_open(None, None, 0)
        if not handle:
            raise failure("xc_interface_open", "open its control interface (is this dom0, and are we root?)")
        version = library.xc_version(handle, 0, None)
        library.xc_interface_close(handle)
        if version < 0:
            raise failure("xc_version", "tell its version")
        return x.release_of(version)
    names = ", ".join(abi.xenctrl_soname for abi in x.ABIS.values())
    raise HypervisorError(f"No Xen library we know is installed ({names}).", operation="dlopen")


def open_libraries() -> XenLibraries:
    """Open the libraries of the running release; raises HypervisorError with the reason."""
    try:
        abi = x.abi_of(running_release())
        x.check_sizes(abi)
        ctrl = _bound(abi.xenctrl_soname, abi.xenctrl)
        foreign = _bound(abi.foreign_memory_soname, abi.foreign_memory)
    except x.UnknownReleaseError as error:
        raise HypervisorError(str(error), operation="xc_version") from error
    except OSError as error:
        raise _not_loaded(error) from error
    ctrl_handle = ctrl.xc_interface_open(None, None, 0)
    if not ctrl_handle:
        raise failure("xc_interface_open", "open its control interface")
    _check_domain_info(abi, ctrl, ctrl_handle)
    foreign_handle = foreign.xenforeignmemory_open(None, 0)
    if not foreign_handle:
        raise failure("xenforeignmemory_open", "open its foreign memory interface")
    return XenLibraries(abi.release, ctrl, ctrl_handle, foreign, foreign_handle)


def _check_domain_info(abi: x.Abi, ctrl: c.CDLL, handle: int) -> None:
    """Let the library describe the first domain it finds, and see that it writes exactly as much as our table says."""
    size = abi.domain_info_bytes
    guard = b"\xa5" * size
    room = c.create_string_buffer(guard * 2, 2 * size)
    found = ctrl.xc_domain_getinfolist(handle, 0, 1, c.cast(room, c.POINTER(x.DomainInfoStruct)))
    if found < 0:
        raise failure("xc_domain_getinfolist", "describe a domain")
    written = room.raw
    if written[size:] != guard or (found and written[:size] == guard):
        raise HypervisorError(
            f"libxenctrl of Xen {abi.release} describes a domain in other than {size} bytes; this release of it is unknown.",
            operation="xc_domain_getinfolist",
        )
