"""Whether the main thread gets on."""

import socket

import pytest

from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.watch import STUCK_S, Watch
from colo_helper.replication.inbox import Inbox


class Clock:
    """Time as a test wants it."""

    now = 100.0

    def __call__(self):
        return self.now


def test_it_is_stuck_when_it_has_not_looked_for_long():
    clock = Clock()
    watch = Watch(clock=clock)
    clock.now += STUCK_S
    assert watch.stuck() == ""
    clock.now += 1
    assert watch.stuck() == "The replicator itself has been stuck for 331 s."
    watch.look()
    assert watch.stuck() == ""


def test_the_service_manager_is_told_now_and_then(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        clock = Clock()
        watch = Watch(Notifier(path).alive, clock)
        for _ in range(25):
            watch.look()
            clock.now += 1
        told = [manager.recv(64) for _ in range(3)]
        assert told == [b"WATCHDOG=1"] * 3
        with pytest.raises(BlockingIOError):
            manager.recv(64)


def test_who_waits_looks():
    clock = Clock()
    inbox = Inbox(watch=Watch(clock=clock))
    for wait in (lambda: inbox.wait(0), inbox.wait_forever):
        clock.now += STUCK_S + 1
        inbox.put_stop("enough")
        wait()
        assert inbox.watch.stuck() == ""
    assert inbox.stop_reason == "enough"
