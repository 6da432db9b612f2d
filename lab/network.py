"""The lab's network: a namespace of its own with one bridge per path, where the hosts' taps and the client live.

A tap is opened inside the namespace and handed to QEMU as a file descriptor. It is not persistent, so it is gone
when its QEMU is gone; the namespace with its bridges is removed by `lab down`, or by the next command that finds
it without a lab.
"""

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError, NetNS, netns

from lab.errors import LabError
from lab.settings import CLIENT_NUMBER, SUBNETS, Settings, address, mac

T = TypeVar("T")

#: TUNSETIFF and its flags: linux/if_tun.h.
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
#: Bytes a narrowed path may send at once; at least one Ethernet frame per timer tick of the slowest kernel (10 ms).
_TBF_BURST_BYTES = 32 * 1024
_TBF_LATENCY_MS = 400


def bridge(path: str) -> str:
    """Name of the bridge of a path inside the namespace."""
    return f"br-{path}"


def tap(path: str, host: str) -> str:
    """Name of the tap of a host on a path."""
    return f"{path}-{host}"


def ensure_namespace(settings: Settings) -> None:
    """Namespace, bridges and the client's addresses: made where missing."""
    if settings.netns not in netns.listnetns():
        netns.create(settings.netns)
    with NetNS(settings.netns) as ipr:
        _up(ipr, "lo")
        for path in SUBNETS:
            name = bridge(path)
            if not ipr.link_lookup(ifname=name):
                # No STP delay: a host that comes back is heard at once.
                ipr.link(
                    "add", ifname=name, kind="bridge", br_forward_delay=0, address=mac(path, CLIENT_NUMBER)
                )
            index = ipr.link_lookup(ifname=name)[0]
            try:
                ipr.addr("add", index=index, address=address(path, CLIENT_NUMBER), prefixlen=24)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            _up(ipr, name)


def remove_namespace(name: str) -> bool:
    """Remove a namespace with everything in it; False when there was none."""
    if name not in netns.listnetns():
        return False
    netns.remove(name)
    return True


def open_tap(settings: Settings, path: str, host: str) -> int:
    """A file descriptor of the host's tap, attached to the path's bridge; inheritable, non-persistent."""
    name = tap(path, host)

    def create() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, request)
        except OSError as error:
            os.close(fd)
            raise LabError(
                f"tap {name} in {settings.netns} cannot be made: {error.strerror}; is a QEMU of this lab left?"
            ) from error
        return fd

    fd = in_namespace(settings, create)
    with NetNS(settings.netns) as ipr:
        index = ipr.link_lookup(ifname=name)[0]
        ipr.link("set", index=index, master=ipr.link_lookup(ifname=bridge(path))[0], state="up")
    return fd


def forget_guests(settings: Settings, path: str, host: str) -> None:
    """Let a path's bridge forget whom it has seen behind a host: a guest that moves without a word is found again."""
    with NetNS(settings.netns) as ipr:
        ipr.brport("set", index=ipr.link_lookup(ifname=tap(path, host))[0], flush=1)


def narrow(settings: Settings, path: str, rate_bit_s: int) -> None:
    """Limit what each host receives on a path to `rate_bit_s` bits per second (token bucket)."""
    with _existing(settings) as ipr:
        for index in _taps(ipr, path):
            ipr.tc(
                "replace",
                "tbf",
                index,
                0x10000,
                rate=rate_bit_s // 8,
                burst=_TBF_BURST_BYTES,
                latency=f"{_TBF_LATENCY_MS}ms",
            )


def widen(settings: Settings, path: str) -> None:
    """Take the limit of `narrow` away; nothing to do where there is none."""
    with _existing(settings) as ipr:
        for index in _taps(ipr, path):
            try:
                ipr.tc("del", index=index, root=True)
            except NetlinkError as error:
                if error.code not in {errno.ENOENT, errno.EINVAL}:
                    raise


def in_namespace(settings: Settings, call: Callable[[], T]) -> T:
    """Run `call` in the lab's namespace, in a thread of its own so that nothing else of this process moves there.

    Sockets that it opens stay in the namespace and can be used anywhere.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            netns.setns(settings.netns)
            results.append(call())
        except BaseException as error:  # re-raised in the caller's thread
            failures.append(error)

    if settings.netns not in netns.listnetns():
        raise LabError("the lab's network is not there: run `make lab-up`")
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def connect(settings: Settings, host: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection from the client's place on the bridges."""
    return in_namespace(settings, lambda: socket.create_connection((host, port), timeout_s))


@contextmanager
def _existing(settings: Settings) -> Iterator[NetNS]:
    if settings.netns not in netns.listnetns():
        raise LabError("the lab's network is not there: run `make lab-up`")
    with NetNS(settings.netns) as ipr:
        yield ipr


def _taps(ipr: IPRoute, path: str) -> list[int]:
    return [
        link["index"]
        for link in ipr.get_links()
        if (link.get_attr("IFLA_IFNAME") or "").startswith(f"{path}-")
    ]


def _up(ipr: IPRoute, name: str) -> None:
    ipr.link("set", index=ipr.link_lookup(ifname=name)[0], state="up")


def port_is_free(port: int) -> bool:
    """Whether a TCP port on 127.0.0.1 can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
