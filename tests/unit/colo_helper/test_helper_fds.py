"""Exact reading and writing on descriptors that belong to the parent as well: a pipe, a socket, a file."""

import errno
import fcntl
import os
import signal
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_helper.helper import fds
from colo_helper.helper.errors import HelperError, ParentLostError, StoppedError, StreamLostError
from colo_helper.helper.fds import Fd, Stop


class Ends:
    """The two ends of something; ``ours`` is what the helper gets."""

    def __init__(self, kind, writing):
        if kind == "socket":
            near, far = socket.socketpair()
            self.ours, self.peer = near.detach(), far.detach()
        elif kind == "pipe":
            read_fd, write_fd = os.pipe()
            self.ours, self.peer = (write_fd, read_fd) if writing else (read_fd, write_fd)
        else:
            self.ours = os.memfd_create("file")
            self.peer = os.open(f"/proc/self/fd/{self.ours}", os.O_RDWR)
        self.stop = Stop()
        self.open: list[Fd] = []
        self.writing = writing

    def fd(self, limit_s=None):
        self.open.append(Fd(self.ours, "The stream", self.stop, writing=self.writing, limit_s=limit_s))
        return self.open[-1]

    def hang_up(self):
        os.close(self.peer)
        self.peer = -1

    def close(self):
        for fd in self.open:
            fd.close()
        self.stop.close()
        for number in (self.ours, self.peer):
            if number >= 0:
                os.close(number)


@pytest.fixture
def ends():
    before = set(os.listdir("/proc/self/fd"))
    made = []

    def make(kind, writing=False):
        made.append(Ends(kind, writing))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor stayed open"


every_kind = pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
both = pytest.mark.parametrize("kind", ["pipe", "socket"])


# ------------------------------------------------------------------------------------------------------------ reading


@every_kind
def test_nothing_is_read_ahead(ends, kind):
    there = ends(kind)
    os.write(there.peer, b"one two three")
    stream = there.fd()
    assert stream.read_exact(4) == b"one "
    assert os.read(there.ours, 4) == b"two ", "the parent reads on from the same place"
    assert stream.read_exact(0) == b""
    view = bytearray(5)
    stream.read_into(memoryview(view))
    assert view == b"three"


@both
def test_what_comes_in_pieces_is_read_whole(ends, kind):
    there = ends(kind)
    data = bytes(range(256)) * 40

    def trickle():
        for at in range(0, len(data), 999):
            os.write(there.peer, data[at : at + 999])

    writer = threading.Thread(target=trickle)
    writer.start()
    assert there.fd().read_exact(len(data)) == data
    writer.join()


@every_kind
@pytest.mark.parametrize(
    ("came", "sentence"),
    [(b"", "The stream ended."), (b"abc", "The stream ended in the middle, after 3 of 8 bytes.")],
)
def test_the_end_of_the_stream(ends, kind, came, sentence):
    there = ends(kind)
    os.write(there.peer, came)
    if kind != "file":
        there.hang_up()
    with pytest.raises(StreamLostError) as caught:
        there.fd().read_exact(8)
    assert (str(caught.value), caught.value.errnoval) == (sentence, errno.EPIPE)


@both
def test_readable_within(ends, kind):
    there = ends(kind)
    stream = there.fd()
    assert not stream.readable_within(0.001)
    os.write(there.peer, b"x")
    assert stream.readable_within(5)
    assert stream.read_exact(1) == b"x"
    there.stop.ask()
    with pytest.raises(StoppedError):
        stream.readable_within(5)


def test_the_end_of_a_pipe_is_nothing_to_be_read(ends):
    there = ends("pipe")
    stream = there.fd()
    there.hang_up()
    assert not stream.readable_within(5)


# ------------------------------------------------------------------------------------------------------------ writing


@every_kind
@given(st.lists(st.binary(max_size=50), max_size=200))
def test_buffers_are_written_in_order_and_whole(kind, buffers):
    there = Ends(kind, True)
    try:
        whole = b"".join(buffers)
        assert there.fd().write(*buffers, memoryview(b"end")) == len(whole) + 3
        assert os.read(there.peer, 1 << 16) == whole + b"end"
    finally:
        there.close()


def slow_reader(fd, count, into):
    while len(into) < count:
        into += os.read(fd, 7001)


@both
def test_more_than_the_other_end_takes_at_once(ends, monkeypatch, kind):
    monkeypatch.setattr(fds, "_PIPE_BYTES", 0)
    there = ends(kind, True)
    data = os.urandom(1 << 20)
    came = bytearray()
    reader = threading.Thread(target=slow_reader, args=(there.peer, len(data), came))
    reader.start()
    with memoryview(data) as view:
        assert there.fd().write(view[:100_001], view[100_001:]) == len(data)
    reader.join()
    assert came == data


@both
def test_nobody_reads(ends, kind):
    there = ends(kind, True)
    stream = there.fd()
    there.hang_up()
    with pytest.raises(StreamLostError, match=r"^The stream broke while writing: Broken pipe\.$") as caught:
        stream.write(b"x")
    assert caught.value.errnoval == errno.EPIPE


def test_a_named_pipe_that_nobody_reads(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    keeper = os.open(tmp_path / "fifo", os.O_RDWR)
    ours = os.open(tmp_path / "fifo", os.O_WRONLY)
    os.close(keeper)
    stop = Stop()
    with pytest.raises(StreamLostError, match=r"^The stream: nobody reads it\.$") as caught:
        Fd(ours, "The stream", stop, writing=True)
    assert caught.value.errnoval == errno.EPIPE
    os.close(ours)
    stop.close()


def test_a_full_disk():
    stop = Stop()
    with open("/dev/full", "wb") as full:
        stream = Fd(full.fileno(), "The stream", stop, writing=True)
        with pytest.raises(
            StreamLostError, match=r"^The stream broke while writing: No space left on device\.$"
        ) as caught:
            stream.write(b"x")
    assert caught.value.errnoval == errno.ENOSPC
    stop.close()


# --------------------------------------------------------------------------------------- the parent's descriptor is its own


@every_kind
@pytest.mark.parametrize("writing", [True, False])
def test_the_parents_descriptor_stays_as_it_is(ends, kind, writing):
    there = ends(kind, writing)
    before = fcntl.fcntl(there.ours, fcntl.F_GETFL), os.get_inheritable(there.ours)
    stream = there.fd()
    if writing:
        stream.write(b"x")
    else:
        os.write(there.peer, b"x")
        stream.read_exact(1)
    stream.close()
    stream.close()
    assert (fcntl.fcntl(there.ours, fcntl.F_GETFL), os.get_inheritable(there.ours)) == before
    os.fstat(there.ours)  # it is still open


@both
@pytest.mark.parametrize("writing", [True, False])
def test_a_descriptor_that_does_not_block(ends, kind, writing):
    """libxl makes its streams block, but not in Remus; then a read says EAGAIN, which is no error."""
    there = ends(kind, writing)
    os.set_blocking(there.ours, False)
    stream = there.fd(limit_s=0.01)
    if writing:
        with pytest.raises(StreamLostError, match="nothing moved"):
            stream.write(bytes(8 << 20))
    else:
        with pytest.raises(StreamLostError, match="nothing moved"):
            stream.read_exact(1)
        os.write(there.peer, b"x")
        assert stream.read_exact(1) == b"x"


def test_a_descriptor_that_is_not_open():
    stop = Stop()
    free, other = os.pipe()
    os.close(free)
    os.close(other)
    with pytest.raises(
        HelperError, match=f"The stream was to be descriptor {free}, but: Bad file descriptor"
    ) as caught:
        Fd(free, "The stream", stop, writing=True)
    assert caught.value.errnoval == errno.EBADF
    stop.close()


def test_a_user_whose_pipes_are_large_already(ends, monkeypatch):
    def refuse(fd, command, *value):
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "no")
        return 4096

    monkeypatch.setattr(fds.fcntl, "fcntl", refuse)
    there = ends("pipe")
    os.write(there.peer, b"x")
    assert there.fd().read_exact(1) == b"x"


# ------------------------------------------------------------------------------------------------------ waits that end


def full(there):
    """Write until the other end takes no more."""
    os.set_blocking(there.ours, False)
    try:
        while True:
            os.write(there.ours, bytes(4096))
    except BlockingIOError:
        os.set_blocking(there.ours, True)


@both
@pytest.mark.parametrize("writing", [True, False])
def test_a_silent_peer(ends, kind, writing):
    there = ends(kind, writing)
    stream = there.fd(limit_s=0.01)
    if writing:
        full(there)
    with pytest.raises(StreamLostError, match=r"^The stream: nothing moved for 0\.01 s\.$") as caught:
        stream.write(b"x" * 8192) if writing else stream.read_exact(1)
    assert caught.value.errnoval == errno.ETIMEDOUT


def in_a_wait(there, stream, writing, act):
    """Do ``act`` when the stream has begun to wait, and return what that raised."""
    began = threading.Event()
    wait = there.stop.wait

    def announced(*arguments):
        began.set()
        return wait(*arguments)

    there.stop.wait = announced
    if writing:
        full(there)
    actor = threading.Thread(target=lambda: began.wait(10) and act())
    actor.start()
    with pytest.raises((StoppedError, ParentLostError)) as caught:
        stream.write(b"x" * 8192) if writing else stream.read_exact(1)
    actor.join()
    return caught.value


@both
@pytest.mark.parametrize("writing", [True, False])
@pytest.mark.parametrize("limit_s", [None, 30])
def test_a_wait_ends_when_somebody_stops_it(ends, kind, writing, limit_s):
    there = ends(kind, writing)
    error = in_a_wait(there, there.fd(limit_s), writing, there.stop.ask)
    assert str(error) == "The helper was told to stop (SIGTERM)."
    with pytest.raises(StoppedError):
        there.open[0].check_stop()


@both
@pytest.mark.parametrize("writing", [True, False])
def test_a_wait_ends_when_the_parent_is_gone(ends, kind, writing):
    there = ends(kind, writing)
    answers, parent = os.pipe()
    there.stop.watch_parent(answers)
    os.write(parent, bytes(2))  # an answer that is under way wakes nobody
    error = in_a_wait(there, there.fd(30), writing, lambda: os.close(parent))
    assert isinstance(error, ParentLostError)
    assert os.read(answers, 9) == bytes(2), "nothing of it is read"
    os.close(answers)


@every_kind
@pytest.mark.parametrize("writing", [True, False])
def test_nothing_moves_after_a_stop(ends, kind, writing):
    there = ends(kind, writing)
    if not writing:
        os.write(there.peer, b"x")
    stream = there.fd()
    stream.check_stop()
    there.stop.ask()
    there.stop.ask("SIGINT")
    with pytest.raises(StoppedError, match=r"\(SIGTERM\)") as caught:
        stream.write(b"x") if writing else stream.read_exact(1)
    assert caught.value.errnoval == errno.EINTR


@pytest.fixture
def signals():
    """By default none is ignored, as in a shell's background; afterwards they are as they were."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in kept:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_stop(signals, number):
    stop = Stop()
    stop.listen()
    signal.raise_signal(number)
    with pytest.raises(StoppedError, match=rf"told to stop \({number.name}\)"):
        stop.check()
    stop.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_the_parent_ignored_stay_ignored(signals, number):
    signal.signal(number, signal.SIG_IGN)
    stop = Stop()
    stop.listen()
    signal.raise_signal(number)
    stop.check()
    stop.close()


def test_sigterm_that_the_parent_had_blocked(signals):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    stop = Stop()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop.listen()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(StoppedError):
        stop.check()
    stop.close()
