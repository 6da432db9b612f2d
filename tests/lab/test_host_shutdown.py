"""Hosts that are restarted in order, under a client that never stops asking: its VM is on the other host meanwhile.

Only in a full run: a host takes minutes to boot under software emulation.
"""

import time

import pytest

from lab.errors import LabError
from tests.lab.asker import Asker

pytestmark = pytest.mark.full
_BOOT_TIMEOUT_S = 600
SIDES = {"colo_vms": {"h1": {"primary": "xa", "secondary": "xb", "peer_timeout_ms": 20000}}}
_COPY_TIMEOUT_S = 900


def boot_of(vm, host):
    return vm.on(host, "cat /proc/sys/kernel/random/boot_id")


def restart(vm, host):
    """Ask for an orderly restart; returns what waits until the host has booted anew."""
    before = boot_of(vm, host)
    vm.on(host, "systemctl --no-block reboot")

    def back():
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while True:
            try:
                if boot_of(vm, host) != before:
                    return
            except LabError:
                pass  # it is on its way down, or up
            assert time.monotonic() < deadline, f"{host} has not booted anew"
            time.sleep(1)  # a host that boots tells nobody

    return back


def test_a_host_hands_its_vm_over_and_is_its_secondary_again_by_itself(protected, play, settings):
    vm = protected
    asker = Asker(settings).begin()
    began = time.monotonic()
    back = restart(vm, "xa")
    assert "The roles were swapped" in vm.wait_for("xb", "unprotected")
    handed_over_s = time.monotonic() - began
    silence = asker.longest_silence(began)
    back()
    state = vm.written("xa")
    assert "because this host is being shut down" in state["reason"] or state["phase"] == "awaiting_guest"
    assert vm.domains("xa") == []
    assert play("reprotect", extra={"colo_vm": vm.name, **SIDES}).code == 0
    vm.wait_for("xb", "replicating", _COPY_TIMEOUT_S)

    back = restart(vm, "xa")
    vm.wait_for("xb", "unprotected")
    back()
    vm.wait_for("xb", "replicating", _COPY_TIMEOUT_S)  # without a playbook
    counters = asker.close()  # one connection through all of it
    assert counters == sorted(counters)
    print(
        f"{len(counters)} answers over one connection; handed over {handed_over_s:.1f} s after the restart was asked for, the "
        f"longest wait for an answer was {silence:.1f} s"
    )


def test_a_host_is_restarted_by_playbook_and_nobody_notices(protected, play, settings, tmp_path):
    vm = protected
    source = next(host for host in ("xa", "xb") if vm.written(host)["role"] == "primary")
    before = boot_of(vm, source)
    tasks = tmp_path / "before.yml"
    tasks.write_text(
        "- name: Leave a mark\n  ansible.builtin.file: {path: /root/prepared, state: touch, mode: '0600'}\n"
    )
    names = {"colo_host": source, "colo_confirm": source, "colo_restart_tasks": str(tasks)}
    asker = Asker(settings).begin()
    began = time.monotonic()
    done = play("restart_host", extra={**names, **SIDES})
    silence = asker.longest_silence(began)
    counters = asker.close()  # one connection through all of it
    assert done.code == 0
    assert f"{source} was restarted. h1 ran on on " in done.text
    assert boot_of(vm, source) != before
    vm.on(source, "test -e /root/prepared")
    assert vm.written(source)["role"] == "secondary"
    assert vm.is_replicating()
    assert counters == sorted(counters)
    print(f"{done.took_s:.0f} s; {len(counters)} answers, the longest wait for one was {silence:.1f} s")
