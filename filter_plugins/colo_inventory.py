"""What the inventory says of the VMs, as pure functions: their classes and defaults put in, and everything that cannot work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
#: What a VM has when neither it nor its class says so: the defaults of the role colo_vm.
_DEFAULTS: dict[str, Any] = {
    "interval_ms": 1000,
    "min_interval_ms": 100,
    "latency_ms": 500,
    "copy_downtime_ms": 300,
    "output": "compare",
    "peer_timeout_ms": 5000,
    "heartbeat_misses": 5,
    "bridge": "xenbr0",
}
#: The least and the most of those that are numbers.
_LIMITS = {
    "interval_ms": (10, 3_600_000),
    "min_interval_ms": (10, 3_600_000),
    "latency_ms": (1, 600_000),
    "copy_downtime_ms": (1, 600_000),
    "peer_timeout_ms": (500, 600_000),
    "heartbeat_misses": (2, 100),
}
#: When a VM's packets may leave.
_OUTPUTS = ("compare", "hold", "free")
_SIDES = ("primary", "secondary")
#: All that a class may say; the last two are for a plan.
_OF_CLASS = (*_DEFAULTS, "arbiter", "memory_mib", "checkpoint_mbit")
#: All that may stand at a VM.
_OF_VM = (*_SIDES, "class", *_OF_CLASS)


def settled(vms: object, classes: object = None) -> dict[str, dict[str, Any]]:
    """``vms`` with all settings: the VM's own, else those of its class in ``classes``, else the defaults.

    What has another shape is left out, for `inventory_problems` to tell.
    """
    known = classes if isinstance(classes, Mapping) else {}
    return {
        name: _settled(vm, known)
        for name, vm in (vms.items() if isinstance(vms, Mapping) else ())
        if isinstance(vm, Mapping)
    }


def _settled(vm: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, Any]:
    name = vm.get("class")
    of_class = classes.get(name) if isinstance(name, str) else None
    of_class = of_class if isinstance(of_class, Mapping) else {}
    found = {**_DEFAULTS, **of_class, **{key: vm[key] for key in vm if key != "class"}}
    arbiters = (of_class.get("arbiter"), vm.get("arbiter"))
    if all(isinstance(one, Mapping) and one for one in arbiters) and "endpoints" not in vm["arbiter"]:
        found["arbiter"] = {
            **of_class["arbiter"],
            **vm["arbiter"],
        }  # it only adds to what it would be otherwise
    return found


def inventory_problems(
    vms: object,
    hosts: Sequence[str],
    variables: Mapping[str, Any],
    optional: Sequence[str] = (),
    classes: object = None,
) -> list[str]:
    """Everything in colo_vms, colo_classes and colo_hosts that cannot work, one sentence each; needs no facts and no host.

    ``optional`` are sides that a VM may be without, or have on a host that is gone, for a plan.
    """
    if not isinstance(vms, Mapping):
        return ["colo_vms is not a mapping of VM names to their settings: see inventory/example."]
    classes = {} if classes is None else classes
    if not isinstance(classes, Mapping):
        return ["colo_classes is not a mapping of names to settings of VMs: see inventory/fleet."]
    problems: list[str] = []
    used = []
    for name, of_class in classes.items():
        if not isinstance(name, str):
            problems.append(
                f"colo_classes: {name!r} is no text to YAML, and the name of a class has to be: quote it."
            )
        problems += _setting_problems("colo_classes", name, of_class, _OF_CLASS)
    for name, vm in vms.items():
        problems += _name_problems(name)
        problems += _setting_problems("colo_vms", name, vm, _OF_VM)
        if not isinstance(vm, Mapping):
            continue
        problems += _class_problems(name, vm, classes)
        problems += _side_problems(name, vm, hosts, optional)
        used += [vm.get(side) for side in _SIDES if vm.get(side) in hosts]
    problems += [
        f"{host} has no colo_channel_address: the address at which its peer's channels reach its sshd."
        for host in sorted(set(used))
        if not variables[host].get("colo_channel_address")
    ]
    return problems


def _name_problems(name: object) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"colo_vms: {name!r} is no text to YAML, and the name of a VM has to be: quote it."
    elif not _NAME.fullmatch(name):
        yield f"colo_vms: {name!r} is no name for a VM: letters, digits, '_', '.', '-', at most 63."


def _class_problems(name: object, vm: Mapping[str, Any], classes: Mapping[str, Any]) -> Iterator[str]:
    if "class" in vm and not (isinstance(vm["class"], str) and vm["class"] in classes):
        known = ", ".join(sorted(map(str, classes))) or "none yet"
        yield f"colo_vms: the class of {name} is {vm['class']!r}, which colo_classes does not have; it has: {known}."


def _side_problems(
    name: object, vm: Mapping[str, Any], hosts: Sequence[str], optional: Sequence[str]
) -> Iterator[str]:
    for side in _SIDES:
        host = vm.get(side)
        if side in optional:
            continue
        if not host:
            yield f"colo_vms: {name} has no {side}."
        elif host not in hosts:
            yield f"colo_vms: the {side} of {name} is {host}, which is not in the group colo_hosts ({', '.join(hosts)})."
    if vm.get("primary") and vm.get("primary") == vm.get("secondary"):
        yield f"colo_vms: primary and secondary of {name} are both {vm['primary']}."


def _setting_problems(where: str, name: object, settings: object, keys: Sequence[str]) -> Iterator[str]:
    """What a VM or a class says that nothing reads, or that cannot be."""
    if not isinstance(settings, Mapping):
        example = "inventory/fleet" if where == "colo_classes" else "inventory/example"
        yield f"{where}: {name} is not a mapping of settings: see {example}."
        return
    for key in settings:
        if key not in keys:
            yield f"{where}: {name} has {key!r}, which is none of {', '.join(keys)}."
    for key, (low, high) in _LIMITS.items():
        value = settings.get(key, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            yield f"{where}: {key} of {name} is {value!r}, not a whole number from {low} to {high}."
    if settings.get("output", _OUTPUTS[0]) not in _OUTPUTS:
        yield f"{where}: output of {name} is {settings['output']!r}, which is none of {', '.join(_OUTPUTS)}."


def bridges(vms: Mapping[str, Any], host: str, classes: object = None) -> list[str]:
    """The bridges that ``host`` needs for its VMs."""
    of_host = {name: vm for name, vm in vms.items() if host in (vm.get(side) for side in _SIDES)}
    return sorted({vm["bridge"] for vm in settled(of_host, classes).values()})


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_settled": settled,
            "colo_inventory_problems": inventory_problems,
            "colo_bridges": bridges,
        }
