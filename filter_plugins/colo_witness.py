"""What follows from the group colo_witnesses, as pure functions: plain data in, sentences, URLs or settings out."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

CLIENT_PORT, PEER_PORT = 2379, 2380
ADDRESS = "colo_witness_address"
ON_HOST = "colo_witness_on_host"
WATCHDOG = "colo_host_watchdog_s"
#: As in colo_helper.replication.config and colo_helper.arbiter.times, which the controller need not have.
DEFAULT_LEASE_S, LEASES_S = 10, (3, 600)
#: What the role colo_arbiter puts on each Xen host.
FILES = {
    "ca": "/etc/colo/arbiter/ca.pem",
    "certificate": "/etc/colo/arbiter/certificate.pem",
    "key": "/etc/colo/arbiter/key.pem",
}


def urls(witnesses: Iterable[str], variables: Mapping[str, Any], port: int = CLIENT_PORT) -> list[str]:
    """Where each witness is asked, in an order that does not depend on the inventory's."""
    return [f"https://{_bracketed(variables[name][ADDRESS])}:{port}" for name in sorted(witnesses)]


def cluster(witnesses: Iterable[str], variables: Mapping[str, Any]) -> str:
    """All of them as etcd's ``--initial-cluster``."""
    names = sorted(witnesses)
    return ",".join(
        f"{name}={url}" for name, url in zip(names, urls(names, variables, PEER_PORT), strict=True)
    )


def restarts(witnesses: Iterable[str], variables: Mapping[str, Any]) -> list[str]:
    """Those that run with what was configured before this run or the last one, and were not only started now.

    Reads what the role colo_witness has registered on each.
    """

    def changed(name: str, what: str) -> bool:
        return bool((variables[name].get(what) or {}).get("changed"))

    looks = {name: variables[name].get("colo_witness_look") or {} for name in sorted(witnesses)}
    return [
        name
        for name, look in looks.items()
        if look.get("installed")
        and (look.get("outdated") or changed(name, "colo_witness_written"))
        and not changed(name, "colo_witness_started")
    ]


def arbiter(
    vm: Mapping[str, Any],
    general: Mapping[str, Any] | None,
    witnesses: Sequence[str],
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    """The arbiter of a VM as the role colo_vm takes it: the VM's own, else the general one, else the witnesses.

    One that is given without endpoints adds to what it would be otherwise; one that is empty is none.
    """
    derived = {"endpoints": urls(witnesses, variables), **FILES} if witnesses else {}
    return _over(_over(derived, general), vm.get("arbiter"))


def _over(otherwise: dict[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return otherwise
    return {**otherwise, **given} if given and not given.get("endpoints") else dict(given)


def problems(
    witnesses: Sequence[str], vms: object, general: object, variables: Mapping[str, Any]
) -> list[str]:
    """Everything about the witnesses and arbiters that cannot work, one sentence each; needs no host."""
    settings = (
        {str(name): vm for name, vm in vms.items() if isinstance(vm, Mapping)}
        if isinstance(vms, Mapping)
        else {}
    )
    found = []
    if witnesses and len(witnesses) % 2 == 0:
        found.append(
            f"The group colo_witnesses has {len(witnesses)} hosts ({', '.join(witnesses)}): an even number survives no more "
            "failures than one less, and more can fail. Have one, three or five."
        )
    for name in witnesses:
        used = [
            vm for vm, sides in settings.items() if name in (sides.get("primary"), sides.get("secondary"))
        ]
        if used and not boolean(variables[name].get(ON_HOST, False), strict=False):
            found.append(
                f"{name} is a witness and a host of {', '.join(used)}: when it dies, nobody is left to say who may run. Take a "
                f"host that runs neither copy ({ON_HOST}: true allows it all the same, for tests)."
            )
    addresses = _address_problems(witnesses, variables)
    given = {"colo_arbiter": general} if general is not None else {}
    given |= {
        f"colo_vms: arbiter of {name}": vm["arbiter"] for name, vm in settings.items() if "arbiter" in vm
    }
    shapes = [
        f"{what} is not a mapping of settings: see docs/operations/protect.md."
        for what, value in given.items()
        if not isinstance(value, Mapping)
    ]
    found += [*addresses, *shapes]
    if not addresses and not shapes:
        arbiters = {
            name: arbiter(vm, general, witnesses, variables)  # type: ignore[arg-type]  # its shape was looked at
            for name, vm in settings.items()
        }
        for name, of_vm in arbiters.items():
            found += _arbiter_problems(name, of_vm, settings[name].get("output"))
            hosts = (settings[name].get("primary"), settings[name].get("secondary"))
            for host in (host for host in hosts if host in variables):
                found += _watchdog_problems(name, of_vm, host, variables[host].get(WATCHDOG, 0))
    return found


def _arbiter_problems(vm: str, of_vm: Mapping[str, Any], output: object) -> list[str]:
    if not of_vm:
        return []
    if not of_vm.get("endpoints"):
        return [
            f"colo_vms: the arbiter of {vm} has no endpoints: give them, or put the hosts of a witness into the group "
            "colo_witnesses."
        ]
    if output == "free":
        return [
            f"colo_vms: output of {vm} is 'free', and it has an arbiter: what leaves at once cannot be stopped when the lease "
            "ends. Use compare or hold, or 'arbiter: {}' for a VM that shall have none."
        ]
    lease_s = of_vm.get("lease_s", DEFAULT_LEASE_S)
    shortest, longest = LEASES_S
    if not isinstance(lease_s, int) or isinstance(lease_s, bool) or not shortest <= lease_s <= longest:
        return [
            f"colo_vms: lease_s of {vm} is {lease_s!r}: give whole seconds, from {shortest} to {longest}."
        ]
    return []


def _watchdog_problems(vm: str, of_vm: Mapping[str, Any], host: object, seconds: object) -> list[str]:
    """Xen has to be first: an owner's last renewal may be a quarter of its lease old when its host freezes."""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not (seconds == 0 or 2 <= seconds <= 300):
        return [f"{WATCHDOG} of {host} is {seconds!r}: give a whole number from 2 to 300, or 0 for none."]
    lease_s = of_vm.get("lease_s", DEFAULT_LEASE_S) if of_vm else None
    if seconds and isinstance(lease_s, int) and seconds > lease_s * 2 // 3:
        return [
            f"{WATCHDOG} of {host} is {seconds}, and the lease of {vm} lasts {lease_s} s: Xen has to restart a frozen host "
            f"before the other has the VM. Give at most {lease_s * 2 // 3}, or the VM a longer lease."
        ]
    return []


def _address_problems(witnesses: Sequence[str], variables: Mapping[str, Any]) -> list[str]:
    found = []
    seen: dict[str, str] = {}
    for name in witnesses:
        address = variables[name].get(ADDRESS)
        if not address:
            found.append(f"{name} has no {ADDRESS}: the IP address at which the Xen hosts reach the witness.")
            continue
        if not _is_address(address):
            found.append(
                f"{ADDRESS} of {name} is {address!r}, not an IP address: the witness shall not depend on a name server."
            )
        elif address in seen:
            found.append(f"{ADDRESS} of {name} is {address}, which is that of {seen[address]}.")
        seen.setdefault(str(address), name)
    return found


def _is_address(text: object) -> bool:
    try:
        return not ipaddress.ip_address(str(text)).is_unspecified
    except ValueError:
        return False


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class FilterModule:
    """The filters, by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "colo_witness_urls": urls,
            "colo_witness_cluster": cluster,
            "colo_witness_problems": problems,
            "colo_witness_restarts": restarts,
            "colo_arbiter_of": arbiter,
        }
