"""The qcow2 writer against QEMU's own tools, QMP against a real QEMU without a machine, taps against a made-up sysfs."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_helper.devices.interface import DeviceError, Tap
from colo_helper.devices.nics import HostNics, tap_names
from colo_helper.devices.qcow2 import CLUSTER_BYTES, MAX_STATE_BYTES, vmstate_image
from colo_helper.devices.qmp import QmpDeviceModel
from tests.unit.colo_helper.qemu import connected

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")


# --------------------------------------------------------------------------------------------------- qcow2


@needs_qemu_img
@pytest.mark.parametrize("size", [1, 7887, CLUSTER_BYTES, CLUSTER_BYTES + 1, 206_680, 3_000_000])
def test_qemu_finds_no_fault_in_the_image_and_sees_the_state(tmp_path, size):
    path = tmp_path / "state.qcow2"
    path.write_bytes(vmstate_image(b"s" * size))
    check = subprocess.run(
        ["qemu-img", "check", "--output=json", path], capture_output=True, text=True, check=True
    )
    report = json.loads(check.stdout)
    assert (report["check-errors"], report.get("corruptions", 0), report.get("leaks", 0)) == (0, 0, 0)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", path], capture_output=True, text=True, check=True
    )
    (snapshot,) = json.loads(info.stdout)["snapshots"]
    assert (snapshot["name"], snapshot["vm-state-size"]) == ("colo", size)


@given(st.binary(min_size=1, max_size=3 * CLUSTER_BYTES))
@settings(max_examples=20, deadline=None)
def test_the_states_bytes_are_in_the_data_clusters(state):
    image = vmstate_image(state)
    assert len(image) % CLUSTER_BYTES == 0
    assert image[7 * CLUSTER_BYTES :].startswith(state)


@pytest.mark.parametrize("state", [b"", bytes(MAX_STATE_BYTES + 1)], ids=["empty", "too large"])
def test_a_state_that_does_not_fit_is_refused(state):
    with pytest.raises(ValueError, match="does not fit"):
        vmstate_image(state)


# ----------------------------------------------------------------------------------------------------- QMP


@pytest.fixture
def qemu(tmp_path):
    """Return what starts a QEMU without a machine and connects to it."""
    processes = []

    def start(domid):
        path = tmp_path / f"{domid}.qmp"
        command = ["qemu-system-x86_64", "-M", "none", "-S", "-nodefaults", "-display", "none"]
        process = subprocess.Popen(
            [*command, "-qmp", f"unix:{path},server=on,wait=off"], stderr=subprocess.PIPE
        )
        processes.append(process)
        return connected(process, domid, path)

    start.processes = processes
    yield start
    for process in processes:
        process.kill()
        process.communicate()


@needs_qemu
def test_a_state_of_one_qemu_is_loaded_into_another(qemu, tmp_path):
    state = tmp_path / "migrated"
    source = qemu(1)
    source.command("migrate", uri=f"exec:cat > {state}")
    deadline = time.monotonic() + 10
    while source.command("query-migrate").get("status") != "completed" and time.monotonic() < deadline:
        time.sleep(0.01)
    source.close()
    target = qemu(2)
    for _ in range(3):  # names of nodes and jobs must not clash
        target.stop()
        target.load_state(state.read_bytes())
    assert target.command("query-jobs") == []
    assert target.command("query-named-block-nodes") == []
    assert target.writable_disks() == []
    assert list(tmp_path.glob("*.qcow2")) == []
    target.close()


@needs_qemu
def test_a_state_that_is_none_is_reported_and_cleaned_up(qemu):
    target = qemu(2)
    with pytest.raises(DeviceError, match=r"'snapshot-load' of domain 2 failed: "):
        target.load_state(b"this is no device state")
    assert target.command("query-jobs") == []
    assert target.command("query-named-block-nodes") == []
    target.close()


@needs_qemu
def test_a_command_that_qemu_refuses(qemu):
    model = qemu(3)
    with pytest.raises(DeviceError, match="The device model of domain 3 refused 'object-del'"):
        model.command("object-del", id="nothing")
    model.close()


@needs_qemu
def test_a_device_model_that_answers_again_is_spoken_to_again(qemu):
    model = qemu(3)
    model._timeout_s = 0.5
    process = qemu.processes[-1]
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(DeviceError, match=r"did not finish 'query-status' within 0\.5 s"):
        model.command("query-status")
    for _ in range(5):  # nothing accepts another connection, and none is waited for without end
        with pytest.raises(DeviceError, match="device model of domain 3"):
            model.command("query-status")
    process.send_signal(signal.SIGCONT)
    model._timeout_s = 10.0
    assert model.command("query-version")["qemu"]["major"] >= 7
    model.close()


@needs_qemu
def test_a_connection_that_broke_is_made_anew(qemu):
    model = qemu(3)
    model._wait(model._client.disconnect())
    assert model.command("query-version")["qemu"]["major"] >= 7
    model.close()


def test_a_socket_that_another_client_holds(tmp_path):
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        with pytest.raises(DeviceError, match="another program may hold its only connection"):
            QmpDeviceModel(4, tmp_path, 0.05, path)


def test_no_device_model_at_all(tmp_path):
    with pytest.raises(DeviceError, match="The device model of domain 5 cannot be reached at"):
        QmpDeviceModel(5, tmp_path, 0.05, str(tmp_path / "nothing"))


def test_a_device_model_that_hangs_in_a_command(tmp_path):
    path = str(tmp_path / "qmp")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)

    def serve():
        client, _ = server.accept()
        with client:
            client.sendall(json.dumps({"QMP": {"version": {}, "capabilities": []}}).encode() + b"\n")
            client.recv(65536)  # qmp_capabilities
            client.sendall(b'{"return": {}}\n')
            while client.recv(65536):
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    model = QmpDeviceModel(6, tmp_path, 0.2, path)
    with pytest.raises(DeviceError, match=r"did not finish 'stop' within 0\.2 s"):
        model.stop()
    model.close()
    thread.join()
    server.close()


@needs_qemu
def test_a_device_model_that_has_ended(qemu):
    """As when the guest reboots: what is asked fails with a sentence, and closing is no failure."""
    model = qemu(4)
    with suppress(DeviceError):  # it may be gone before it has answered
        model.command("quit")
    assert qemu.processes[0].wait(10) == 0
    with pytest.raises(DeviceError, match="domain 4"):
        model.command("query-status")
    model.close()


@needs_qemu
def test_a_device_model_that_was_killed_has_ended_for_certain(qemu):
    model = qemu(4)
    assert not model.ended(), "it listens on while it has a client"
    model.command("query-status")
    qemu.processes[0].kill()
    qemu.processes[0].wait(10)
    assert model.ended()
    model.close()


@needs_qemu
def test_a_device_model_that_ended_in_order_has_ended_for_certain(qemu):
    """It removes its socket's file, as when the toolstack ends it; what is asked of it afterwards changes nothing."""
    model = qemu(4)
    model.command("query-status")
    qemu.processes[0].terminate()
    qemu.processes[0].wait(10)
    assert model.ended()
    with pytest.raises(DeviceError, match="domain 4"):
        model.command("query-status")
    assert model.ended()
    model.close()
    assert model.ended()


@needs_qemu
def test_a_device_model_has_not_ended_when_we_leave_it_or_it_is_late(qemu):
    model = qemu(4)
    model.close()
    assert not model.ended()
    assert "status" in model.command("query-status"), "a new connection"
    qemu.processes[0].send_signal(signal.SIGSTOP)
    model._timeout_s = 0.2
    with pytest.raises(DeviceError, match="did not finish"):
        model.command("query-status")
    assert not model.ended()
    qemu.processes[0].send_signal(signal.SIGCONT)
    model.close()


@needs_qemu
def test_a_host_that_was_frozen_does_not_blame_the_device_model(qemu):
    """It stands still in the middle of a command, for longer than a command may take; the answer is there when it wakes."""
    model = qemu(7)
    model._timeout_s = 1.0
    model._loop.call_soon(time.sleep, 2.0)  # the freeze
    assert model.command("query-status")["status"] == "prelaunch"
    model.close()


# ---------------------------------------------------------------------------------------------------- taps


def test_only_the_domains_own_taps_are_meant():
    there = ["vif3.0", "vif3.0-emu", "vif31.0", "vif3.1-emu", "xenbr0", "vif3.0-emux", "eth0"]
    assert tap_names(3, there) == ["vif3.0", "vif3.0-emu", "vif3.1-emu"]


@pytest.fixture
def sysfs(tmp_path):
    for name in ("xenbr0", "vif3.0-emu", "vif3.0", "vif2.0"):
        (tmp_path / name).mkdir()
    (tmp_path / "vif3.0-emu" / "master").symlink_to("../xenbr0")
    return tmp_path


def test_taps_as_they_are(sysfs):
    assert HostNics(3, sysfs).taps() == [Tap("vif3.0", ""), Tap("vif3.0-emu", "xenbr0")]


def test_a_tap_that_stays_on_its_bridge_is_noticed(sysfs, monkeypatch):
    nics = HostNics(3, sysfs)
    monkeypatch.setattr(nics, "_set_masters", lambda _changes: None)
    with pytest.raises(DeviceError, match=r"Taps of domain 3 are still on a bridge: vif3\.0-emu on xenbr0\."):
        nics.isolate()


def test_a_tap_that_does_not_join_is_noticed(sysfs, monkeypatch):
    nics = HostNics(3, sysfs)
    monkeypatch.setattr(nics, "_set_masters", lambda _changes: None)
    with pytest.raises(DeviceError, match=r"did not join their bridge: vif3\.0\."):
        nics.connect([Tap("vif3.0", "xenbr0"), Tap("vif3.0-emu", "xenbr0")])


def test_a_bridge_that_does_not_exist(sysfs):
    with pytest.raises(DeviceError, match=r"\(link set dev vif3\.0 master nobr up\): "):
        HostNics(3, sysfs).connect([Tap("vif3.0", "nobr")])


def test_logging_is_never_stopped_without_having_been_started(monkeypatch):
    """QEMU aborts on a stop without a start, and a take-over after a lost primary stops twice."""
    enabled = []
    model = object.__new__(QmpDeviceModel)
    monkeypatch.setattr(
        QmpDeviceModel, "command", lambda _self, _name, **arguments: enabled.append(arguments["enable"])
    )
    model.log_dirty(False)
    model.log_dirty(False)
    assert enabled == [True, False, True, False]
