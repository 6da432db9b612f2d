"""The requests that a domain's vCPUs have sent to device models, and the moment at which there are none.

A vCPU that reads a port or touches a device's memory stands, inside Xen, between two instructions: the request is in a page
shared with the device model, and what to do with the answer is in no state that can be saved. A copy of that moment would
miss the answer; a copy put over it would take it for its own. So a guest that is paused is let run until it is caught
without a request. One that does nothing but such requests, as when its kernel writes to a serial port byte by byte, is not
caught like that: Xen is asked to shut it down for a moment, which it puts off until each answer is taken
(vcpu_start_shutdown_deferral). Nobody is told of that, or who watches the domain would take it for ended.

Source of the page: xen/include/public/hvm/ioreq.h and XENMEM_resource_ioreq_server of memory.h, RELEASE-4.17.7.
"""

from __future__ import annotations

import ctypes as c
import errno
import time
from collections.abc import Callable
from contextlib import ExitStack

from colo_helper.hypervisor import abi as x
from colo_helper.hypervisor.interface import PAGE_BYTES, Domain, HypervisorError, IoState
from colo_helper.hypervisor.libraries import XenLibraries, failure

#: One ``ioreq_t`` per vCPU; its state is the lower half of byte 30.
_REQUEST_BYTES, _STATE_AT, _STATE_MASK = 32, 30, 0xF
#: STATE_IOREQ_READY and _INPROCESS, STATE_IORESP_READY; 0 is STATE_IOREQ_NONE.
_ASKED, _ANSWERED = frozenset({1, 2}), 3
#: A guest is waited for so long: seconds, of which it may run nearly all; and so long while somebody else keeps it paused.
LIMIT_S, PAUSED_LIMIT_S = 5.0, 15.0
_LOOK_S = 0.00005
#: How often it is looked whether somebody else still keeps a guest paused.
_PAUSED_LOOK_S = 0.05
#: How long it runs each time, in seconds; after the last, Xen is asked to stop it. In a burst of requests, such as the
#: interrupt of an emulated network card makes, a guest that runs only until its answer is taken gets on by one at a time.
_RUNS_S = (0.0, 0.0, 0.0, 0.001, 0.003, 0.01, 0.03)
#: For ``io_share``: so many looks, so far apart.
_SAMPLES, _SAMPLE_S = 20, 0.005


class IoRequests:
    """The request pages of one domain's device models, mapped. Raises HypervisorError."""

    def __init__(self, libraries: XenLibraries, domid: int) -> None:
        self._open = ExitStack()
        self._pages: list[memoryview] = []
        for server in range(x.MAX_IOREQ_SERVERS):
            self._map(libraries, domid, server)

    def _map(self, libraries: XenLibraries, domid: int, server: int) -> None:
        foreign, handle = libraries.foreign, libraries.foreign_handle
        address = c.c_void_p()
        resource = foreign.xenforeignmemory_map_resource(
            handle,
            domid,
            x.RESOURCE_IOREQ_SERVER,
            server,
            x.IOREQ_SERVER_FRAME,
            1,
            c.byref(address),
            x.PROT_READ,
            0,
        )
        if not resource or address.value is None:
            if c.get_errno() == errno.ENOENT:  # no such server
                return
            raise failure("xenforeignmemory_map_resource", "show the I/O requests of", domid)
        self._open.callback(foreign.xenforeignmemory_unmap_resource, handle, resource)
        self._pages.append(memoryview((c.c_char * PAGE_BYTES).from_address(address.value)).cast("B"))

    def state(self) -> IoState:
        """Return how far the request is that is farthest from its end."""
        states = {byte & _STATE_MASK for page in self._pages for byte in page[_STATE_AT::_REQUEST_BYTES]}
        if states & _ASKED:
            return IoState.ASKED
        return IoState.ANSWERED if _ANSWERED in states else IoState.NONE

    def close(self) -> None:
        """Unmap the pages."""
        self._pages.clear()
        self._open.close()


def end_io(domain: Domain, limit_s: float = LIMIT_S, gone: Callable[[], bool] = lambda: False) -> int:
    """Let a domain that we hold paused run, for moments that grow, until it stands still without an I/O request.

    Its device model must be running; ``gone`` tells when it has ended. Returns how often the domain had to run; raises
    HypervisorError, the domain paused, when that took longer than ``limit_s``, and up to PAUSED_LIMIT_S more while somebody
    else keeps it paused.
    """
    began = time.monotonic()
    deadline, last = began + limit_s, began + limit_s + PAUSED_LIMIT_S
    runs = 0
    while _wait_while(domain, IoState.ASKED, deadline, gone) is not IoState.NONE:
        if gone():
            text = f"Domain {domain.domid} waits for its device model, which has ended."
            raise HypervisorError(text, operation="end_io", domid=domain.domid)
        if time.monotonic() > deadline:
            took_s = deadline - began
            raise HypervisorError(_given_up(domain, runs, took_s), operation="end_io", domid=domain.domid)
        if runs < len(_RUNS_S):
            deadline = min(last, deadline + _run(domain, _RUNS_S[runs], deadline, last))
        else:
            _suspend_for_a_moment(domain, deadline)
        runs += 1
    return runs


def _run(domain: Domain, run_s: float, deadline: float, last: float) -> float:
    """Let a domain that we hold paused run until an answer is taken; returns for how many seconds another kept it paused."""
    domain.unpause()
    try:
        waited_s = _wait_for_others(domain, last)
        if run_s:
            time.sleep(run_s)
        _wait_while(domain, IoState.ANSWERED, min(last, deadline + waited_s))
    finally:
        domain.pause()
    return waited_s


def _suspend_for_a_moment(domain: Domain, deadline: float) -> None:
    """Let a domain that we hold paused run until Xen stops it between two requests, and be held paused by us again then."""
    try:
        domain.suspend_unseen()
        domain.unpause()
        try:
            while not domain.info().suspended and time.monotonic() <= deadline:
                time.sleep(_LOOK_S)  # that nobody is told is the point
        finally:
            domain.pause()
    finally:
        domain.resume_unseen()


def _wait_for_others(domain: Domain, last: float) -> float:
    """Wait while somebody else keeps a domain paused that we do not; returns for how long, in seconds."""
    began = time.monotonic()
    while not domain.own_pauses and domain.info().paused and time.monotonic() <= last:
        time.sleep(_PAUSED_LOOK_S)  # nobody tells when it runs again
    return time.monotonic() - began


def _given_up(domain: Domain, runs: int, took_s: float) -> str:
    if not runs:
        return (
            f"Domain {domain.domid} waits for its device model, which did not answer an I/O request for {took_s:.2g} s: it "
            "hangs, or its host does not get to it."
        )
    return (
        f"Domain {domain.domid} was in the middle of an I/O request each time it was stopped: {runs} times in {took_s:.2g} s. "
        "A copy of such a moment would not be exact. Does somebody else keep it paused, or is its host overloaded?"
    )


def io_share(domain: Domain) -> float:
    """Return in which share of a tenth of a second a running domain's vCPUs waited for their device model, 0 to 1."""
    busy = 0
    for _ in range(_SAMPLES):
        busy += domain.io_state() is not IoState.NONE
        time.sleep(_SAMPLE_S)
    return busy / _SAMPLES


def _wait_while(
    domain: Domain, state: IoState, deadline: float, gone: Callable[[], bool] = lambda: False
) -> IoState:
    """The pages tell of no change, so they are looked at again and again; it is a matter of microseconds."""
    while (now := domain.io_state()) is state and time.monotonic() <= deadline and not gone():
        time.sleep(_LOOK_S)
    return now
