"""What is between two instructions or between two parts of the state: I/O requests and interrupt lines."""

import threading
import time

import pytest

from colo_helper.devices.emulated import EmulatedDevices, EmulatedFilters, EmulatedNics
from colo_helper.hypervisor import io_requests
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import HypervisorError, IoState
from colo_helper.hypervisor.io_requests import end_io
from colo_helper.replication.guest import Guest


def halted(requests):
    domain = EmulatedDomain(7, io_requests=requests)
    domain.pause()
    return domain


def test_a_guest_without_a_request_is_not_let_run():
    domain = halted(0)
    assert end_io(domain) == 0
    assert domain.journal == ["pause"]


@pytest.mark.parametrize("requests", [1, 3])
def test_it_runs_once_for_each_request_and_stands_still_after_the_last(requests):
    domain = halted(requests)
    assert end_io(domain) == requests
    assert domain.io_state() is IoState.NONE
    assert not domain.running
    assert domain.own_pauses == 1


def test_one_that_always_has_a_request_is_given_up_paused():
    domain = halted(10**9)
    with pytest.raises(
        HypervisorError,
        match=r"^Domain 7 was in the middle of an I/O request each time .*: \d+ times in 0\.002 s",
    ):
        end_io(domain, 0.002)
    assert domain.own_pauses == 1


def test_one_that_does_nothing_but_io_is_stopped_by_xen_between_two_requests(monkeypatch):
    monkeypatch.setattr(io_requests, "_RUNS_S", (0.0,))
    domain = halted(10**9)
    assert end_io(domain) == 2
    assert domain.io_state() is IoState.NONE
    assert (domain.own_pauses, domain.pause_count) == (1, 1)
    assert not domain.suspended
    assert domain.journal[-4:] == ["suspend_unseen", "unpause", "pause", "resume_unseen"]
    domain.unpause()
    assert domain.running


@pytest.mark.parametrize("fault", ["suspend_unseen", "io_hangs"])
def test_one_that_xen_does_not_stop_is_held_and_not_suspended(monkeypatch, fault):
    monkeypatch.setattr(io_requests, "_RUNS_S", (0.0,))
    domain = halted(10**9)
    if fault == "io_hangs":
        domain.io_hangs = True
    else:
        domain.faults[fault] = 0
    with pytest.raises(HypervisorError):
        end_io(domain, 0.3)
    assert (domain.own_pauses, domain.pause_count) == (1, 1)
    assert not domain.suspended
    assert not domain.suspending


def test_one_that_somebody_else_keeps_paused_cannot_take_its_answer(monkeypatch):
    monkeypatch.setattr(io_requests, "PAUSED_LIMIT_S", 0.05)
    domain = halted(1)
    domain.pause_count += 1
    with pytest.raises(HypervisorError, match="Does somebody else keep it paused"):
        end_io(domain, 0.05)
    assert (domain.own_pauses, domain.pause_count) == (1, 2)


def test_the_time_that_somebody_else_keeps_it_paused_does_not_count():
    domain = halted(1)
    domain.pause_count += 1

    def ends():
        domain.pause_count -= 1

    end = threading.Timer(0.3, ends)
    end.start()
    assert end_io(domain, 0.05) >= 1
    end.join()
    assert (domain.own_pauses, domain.pause_count) == (1, 1)


def test_a_device_model_that_never_answers_is_named():
    domain = halted(1)
    domain.io_state = lambda: IoState.ASKED
    with pytest.raises(
        HypervisorError, match=r"^Domain 7 waits for its device model, which did not answer .* 0\.05 s"
    ):
        end_io(domain, 0.05)
    assert domain.journal == ["pause"]


def test_a_device_model_that_has_ended_is_not_waited_for():
    domain = halted(1)
    domain.io_state = lambda: IoState.ASKED
    began = time.monotonic()
    with pytest.raises(HypervisorError, match=r"^Domain 7 waits for its device model, which has ended\."):
        end_io(domain, 60, gone=lambda: time.monotonic() > began + 0.05)
    assert domain.journal == ["pause"]


def test_a_guest_in_a_burst_of_requests_runs_for_longer_each_time(monkeypatch):
    """Each run here is as long as a request takes; in a burst of ten thousand that would be seconds."""
    slept = []
    monkeypatch.setattr("colo_helper.hypervisor.io_requests.time.sleep", slept.append)
    assert end_io(halted(9)) == 8  # seven, and the stop by Xen
    runs = [one for one in slept if one >= 0.001]
    assert runs == sorted(runs)
    assert runs[-1] >= 0.01


def test_the_devices_are_stopped_after_the_last_request():
    domain, devices = EmulatedDomain(7, io_requests=2), EmulatedDevices()
    guest = Guest(domain, devices, EmulatedNics(), EmulatedFilters())
    guest.halt()
    assert domain.journal == ["pause", "unpause", "pause", "unpause", "pause"]
    assert devices.journal == ["stop"]


def test_a_copy_left_still_with_a_request_gets_its_answer_first():
    domain, devices = EmulatedDomain(7, io_requests=1), EmulatedDevices(running=False)
    domain.pause_count = 1
    Guest(domain, devices, EmulatedNics(), EmulatedFilters()).adopt_halt()
    assert devices.journal == ["cont", "stop"]
    assert domain.journal == ["unpause", "pause"]


def test_loading_the_devices_leaves_the_interrupt_lines_as_the_context_has_them():
    domain = EmulatedDomain(7, context=b"line 4 is up")

    class ResettingDevices(EmulatedDevices):
        def load_state(self, state: bytes) -> None:
            domain.context = b"line 4 is down"
            super().load_state(state)

    guest = Guest(domain, ResettingDevices(), EmulatedNics(), EmulatedFilters())
    guest.halt()
    guest.load_devices(b"devices 1")
    assert domain.context == b"line 4 is up"
    assert guest.devices.state == b"devices 1"


@pytest.mark.parametrize(("pauses", "requests", "caught"), [(0, 1, False), (1, 0, False), (1, 1, True)])
def test_only_a_guest_that_somebody_else_paused_with_a_request_is_caught(pauses, requests, caught):
    domain = EmulatedDomain(7, io_requests=requests, pause_count=pauses)
    assert Guest(domain, EmulatedDevices(), EmulatedNics(), EmulatedFilters()).caught_in_io is caught
