"""Whether pairs of hosts can protect their VMs: a table, and a sentence for everything that is in the way."""

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.module_host import REPOSITORY, load, utility

FILTERS = load(REPOSITORY / "filter_plugins" / "colo_preflight.py").FilterModule().filters()
preflight = FILTERS["colo_preflight"]
surroundings = utility("surroundings")
VMS = {"h1": {"primary": "xa", "secondary": "xb", "bridge": "xenbr0"}}
GUEST = {
    "type": "hvm", "memory_mib": 136, "vcpus": 1, "pv_platform": False, "passthrough": 0, "nics": ["vif_ioemu"],
    "bridges": ["xenbr0"],
    "disks": ["/dev/san/h1"], "writable_disks": [],
}  # fmt: skip


LEFT_OVER = {"name": "h1", "domain": {"memory_mib": 1}, "alive": False, "protection": "stopped"}


def ways(peer: str) -> dict[str, Any]:
    return {
        f"{peer} channels": {"ms": 0.6, "error": ""},
        f"{peer} heartbeats": {"ms": 1.4, "error": ""},
        "witness w1": {"ms": 2.0, "error": ""},
    }


def variables() -> dict[str, Any]:
    """Two hosts that are ready."""

    def host(peer: str, guests: dict[str, Any]) -> dict[str, Any]:
        said = {
            "ok": True, "problems": [], "xen_release": "4.17", "processor": "078bf3fd", "free_memory_mib": 300, "time": 1000.0,
            "guests": guests, "reach": ways(peer),
        }  # fmt: skip
        return {
            "colo_preflight": said, "colo_look": {"vms": []}, "colo_preflight_disks": {"missing": []},
            "colo_preflight_asked": 999.0, "colo_preflight_answered": 1001.0,
        }  # fmt: skip

    return copy.deepcopy({"xa": host("xb", {"h1": GUEST}), "xb": host("xa", {})})


def test_a_pair_that_is_ready() -> None:
    assert preflight(VMS, variables()) == {
        "table": [
            "VM  PAIR     XEN   CPU   GUEST        MEMORY          PATH  WITNESS  DISKS  LEFT OVER  RESULT",
            "h1  xa > xb  4.17  same  hvm, 1 vCPU  152 of 300 MiB  1 ms  2 ms     there  none       ready",
        ],
        "problems": [],
    }


def test_a_vm_that_is_protected_needs_no_memory_more() -> None:
    known = variables()
    for host in known.values():
        host["colo_look"]["vms"] = [
            {"name": "h1", "phase": "replicating", "alive": True, "domain": {"memory_mib": 128}}
        ]
    known["xb"]["colo_preflight"]["free_memory_mib"] = 10
    found = preflight(VMS, known)
    assert found["problems"] == []
    assert found["table"][1].endswith("protected")
    assert "in use" in found["table"][1]


def guest(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(known: dict[str, Any]) -> None:
        known["xa"]["colo_preflight"]["guests"]["h1"] |= fields

    return change


def said(host: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(known: dict[str, Any]) -> None:
        known[host]["colo_preflight"] |= fields

    return change


def registered(host: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(known: dict[str, Any]) -> None:
        known[host] |= fields

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (registered("xb", colo_preflight={"unreachable": True}), "xb does not answer on ssh."),
        (registered("xb", colo_preflight={"failed": True, "msg": "No python3."}), "xb: No python3."),
        (said("xa", ok=False, problems=["xa: it is not."]), "xa: it is not."),
        (said("xb", xen_release="4.20"), ""),
        (said("xa", xen_release="4.20"), "h1: its primary xa runs Xen 4.20 and its secondary xb Xen 4.17. Both must run"),
        (said("xb", processor="1"), "have different features (hw_caps of 'xl info': 078bf3fd and 1)"),
        (said("xb", time=1031.0), "xb: its clock is 30 s or more ahead of the controller's"),
        (said("xa", time=900.0), "xa: its clock is 99 s or more behind the controller's"),
        (said("xa", guests={}), "h1 on xa does not run. If it runs nowhere, start it there ('xl create')"),
        (guest(type="pv"), "h1 on xa is of type pv, and only hvm guests are protected"),
        (guest(type="pv", passthrough=1), "are protected (type='hvm'); it has devices of its host passed through"),
        (guest(writable_disks=["/dev/san/h1"]), "h1 can write to /dev/san/h1, and disks are not replicated"),
        (guest(pv_platform=True), ""),
        (guest(nics=["vif"]), "has a network card that is not emulated"),
        (guest(bridges=["xenbr0", "xenbr1"]),
         "h1 on xa has a network card on xenbr0, xenbr1, and its bridge in colo_vms is xenbr0, where the other host"),
        (guest(nics=[], bridges=[]), ""),
        (said("xb", free_memory_mib=151), "h1: its copy needs 152 MiB on xb, where Xen has 151 left"),
        (said("xa", reach={**ways("xb"), "xb heartbeats": {"ms": None, "error": "No route to host"}}),
         "h1: xa does not reach the heartbeats of xb (No route to host)"),
        (said("xb", reach={**ways("xa"), "witness w1": {"ms": None, "error": "Connection refused"}}),
         "h1: xb does not reach the witness w1 (Connection refused)"),
        (registered("xb", colo_preflight_disks={"missing": ["/dev/san/h1", "/dev/other"]}),
         "h1: xb has no /dev/san/h1, which h1 reads"),
        (registered("xb", colo_look={"vms": [LEFT_OVER]}),
         "There is a domain h1 on xb, its secondary, that no replicator keeps"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_a_sentence(change: Callable[[dict[str, Any]], None], sentence: str) -> None:
    known = variables()
    change(known)
    found = preflight(VMS, known)
    assert found["table"][1].endswith("NOT READY" if sentence else "ready")
    assert len(found["problems"]) == bool(sentence)
    assert sentence in " ".join(found["problems"])


@pytest.mark.parametrize(
    "entry",
    [
        {"protection": "active", "alive": False},
        {"protection": "running", "alive": True, "state": {"role": "primary"}},
    ],
)
@pytest.mark.parametrize("guests", [{}, {"h1": GUEST}], ids=["nothing left", "a copy left"])
def test_a_vm_that_has_moved_is_not_called_lost(entry: dict[str, Any], guests: dict[str, Any]) -> None:
    known = variables()
    known["xa"]["colo_preflight"]["guests"] = guests
    known["xb"]["colo_look"]["vms"] = [{"name": "h1", "domain": {"memory_mib": 128}, **entry}]
    assert preflight(VMS, known)["problems"] == [
        "h1 runs on xb: playbooks/reprotect.yml protects it from there; or swap its hosts in colo_vms."
    ]


def test_what_a_replicator_said_before_its_host_booted_moves_no_vm() -> None:
    known = variables()
    known["xa"]["colo_preflight"]["guests"] = {}
    earlier = {"name": "h1", "protection": "stopped", "alive": True, "stale": True, "domain": None}
    known["xb"]["colo_look"]["vms"] = [{**earlier, "state": {"role": "primary"}}]
    assert preflight(VMS, known)["problems"][0].startswith("h1 on xa does not run. If it runs nowhere")


def test_what_a_host_has_to_reach_and_to_have() -> None:
    known = {
        "xa": {"colo_channel_address": "192.0.2.1", "colo_preflight": {"guests": {"h1": GUEST}}},
        "xb": {
            "colo_channel_address": "192.0.2.2",
            "colo_channel_heartbeat_address": "198.51.100.2",
            "colo_channel_port": 2222,
        },
        "w1": {"colo_witness_address": "203.0.113.1"},
    }
    pairs = load(REPOSITORY / "filter_plugins" / "colo.py").FilterModule().filters()["colo_pairs"]

    def wanted(vms: Any, host: str, variables: Any, witnesses: list[str]) -> Any:
        return FILTERS["colo_reach_wanted"](pairs(vms, host), variables, witnesses)

    assert wanted(VMS, "xa", known, ["w1"]) == [
        {"name": "xb channels", "address": "192.0.2.2", "port": 2222},
        {"name": "xb heartbeats", "address": "198.51.100.2", "port": 2222},
        {"name": "witness w1", "address": "203.0.113.1", "port": 2379},
    ]
    assert wanted(VMS, "xb", known, [])[0]["address"] == "192.0.2.1"
    assert wanted(VMS, "xc", known, ["w1"]) == []
    assert FILTERS["colo_disks_wanted"](VMS, "xb", known) == ["/dev/san/h1"]
    assert FILTERS["colo_disks_wanted"](VMS, "xa", known) == []


def test_guests_as_xl_lists_them() -> None:
    listed = [
        {"domid": 0, "config": {"c_info": {"type": "pv", "name": "Domain-0"}, "b_info": {"max_memkb": 524288}}},
        {
            "domid": 1,
            "config": {
                "c_info": {"type": "hvm", "name": "h1"},
                "b_info": {
                    "max_vcpus": 2, "max_memkb": 131072, "video_memkb": 8192, "type.hvm": {"xen_platform_pci": "False"},
                },
                "disks": [
                    {"pdev_path": "/dev/san/h1", "vdev": "hda", "readwrite": 1},
                    {"vdev": "hdc", "is_cdrom": 1},
                ],
                "nics": [{"devid": 0, "nictype": "vif_ioemu", "bridge": "xenbr0"}],
                "pcidevs": [{"dev": 1}],
            },
        },
    ]  # fmt: skip
    found = surroundings.parse_guests(json.dumps(listed))
    assert found["h1"] == {**GUEST, "vcpus": 2, "passthrough": 1, "writable_disks": ["/dev/san/h1"]}
    assert found["Domain-0"]["type"] == "pv"
    assert surroundings.parse_guests("") == {}


def test_reach_tells_a_port_that_answers_from_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "link_speed", lambda _module, address: {"127.0.0.1": 1000}[address])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        open_one = {"name": "open", "address": "127.0.0.1", "port": port}
        found = surroundings.reach(None, [open_one])["open"]
        assert (found["error"], found["mbit_s"]) == ("", 1000)
    found = surroundings.reach(None, [{**open_one, "name": "shut"}])["shut"]
    assert found == {"ms": None, "error": "Connection refused", "mbit_s": None}


@pytest.mark.parametrize(
    ("routed", "said", "speed"),
    [
        ((0, '[{"dst": "127.0.0.1", "dev": "eth1"}]'), "10000\n", 10000),
        ((0, '[{"dst": "127.0.0.1", "dev": "eth1"}]'), "-1\n", None),
        ((0, '[{"dst": "127.0.0.1", "dev": "eth2"}]'), "10000\n", None),
        ((2, ""), "10000\n", None),
        ((0, ""), "10000\n", None),
    ],
    ids=["known", "virtual", "no such link", "no route", "an ip that says nothing"],
)
def test_the_speed_of_the_link_that_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, routed: tuple[int, str], said: str, speed: int | None
) -> None:
    (tmp_path / "eth1").write_text(said)
    monkeypatch.setattr(surroundings, "LINK_SPEED", str(tmp_path / "{device}"))
    monkeypatch.setattr(surroundings.host, "run_tool", lambda _module, _argv: (*routed, ""))
    assert surroundings.link_speed(None, "127.0.0.1") == speed


def test_the_slower_link_is_shown() -> None:
    known = variables()
    known["xa"]["colo_preflight"]["reach"]["xb channels"]["mbit_s"] = 10000
    known["xb"]["colo_preflight"]["reach"]["xa channels"]["mbit_s"] = 2500
    known["xb"]["colo_preflight"]["reach"]["xa heartbeats"]["mbit_s"] = 100
    assert "  1 ms, 2.5 Gbit/s  " in preflight(VMS, known)["table"][1]


def test_missing_files(tmp_path: Any) -> None:
    (tmp_path / "there").touch()
    assert surroundings.missing([str(tmp_path / "there"), str(tmp_path / "b"), str(tmp_path / "a")]) == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
