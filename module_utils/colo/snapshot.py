"""One reading of a protected VM on a host, and what follows from it. What follows is pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host
from ansible.module_utils.colo.base import Failure, host_name
from ansible.module_utils.colo.files import read_json, read_text

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

CONFIGURATIONS = Path("/etc/colo/vms")
STATES = Path("/var/lib/colo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: Phases in which nobody keeps a second copy up to date any more.
ENDED = frozenset({"unprotected", "stopped", "failed"})
#: Phases of a copy that was the VM until a switch-over.
STANDING_BY = frozenset({"standby", "handed_over"})
#: Phases of a secondary whose copy may be the only one left.
ALONE = frozenset({"peer_lost", "active"})
#: Phases of a secondary whose copy the next replicator takes up (colo_helper.replication.decisions.secondary).
_COPIES = frozenset({"replicating", "resyncing", "torn", "peer_lost"}) | STANDING_BY
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Snapshot:
    """``domain`` is None when there is none, ``domains_known`` tells that from Xen not answering."""

    vm: str
    host: str
    config: dict[str, Any] | None
    unit: dict[str, str]
    state: dict[str, Any] | None
    verification: dict[str, Any] | None
    domain: dict[str, Any] | None
    domains_known: bool
    same_boot: bool

    @property
    def alive(self) -> bool:
        """Whether the replicator's process runs."""
        return self.unit["active"] in {"active", "activating", "reloading", "deactivating"}

    @property
    def phase(self) -> str:
        """The phase that state.json tells; empty without one, or when it tells of before the last boot."""
        return str((self.state or {}).get("phase", "")) if self.same_boot else ""

    @property
    def reason(self) -> str:
        """The replicator's own sentence."""
        return str((self.state or {}).get("reason", ""))

    @property
    def taken_over(self) -> bool:
        """The VM goes on here after a takeover."""
        return self.phase == "active" and (self.alive or self.domain is not None)

    @property
    def stands_still(self) -> bool:
        """The VM is this host's, and its domain is paused, with no replicator that would let it run."""
        return self.taken_over and not self.alive and "p" in (self.domain or {}).get("state", "")

    @property
    def alone(self) -> bool:
        """This copy may be the only one left: whoever removes it must mean it."""
        return self.phase in ALONE and (self.alive or self.domain is not None)

    @property
    def kept(self) -> bool:
        """A copy without a primary, or one that was the VM until a switch-over: it may be all that is left of the VM."""
        return (self.phase in ALONE | STANDING_BY and (self.alive or self.own_domain)) or self.copy_left

    @property
    def own_domain(self) -> bool:
        """Whether there is a domain, and not one of that name that somebody has made beside the replicator's."""
        return self.domain is not None and (self.state or {}).get("domid") in (None, self.domain["domid"])

    @property
    def copy_left(self) -> bool:
        """Whether a copy is here that no replicator keeps, and that the next one would go on with."""
        secondary = (self.state or {}).get("role") == "secondary" and self.phase in _COPIES
        return secondary and not self.alive and self.own_domain

    @property
    def may_run_vm(self) -> bool:
        """The VM may be running here; when Xen does not tell, it may."""
        return self.alive or self.domain is not None or not self.domains_known

    @property
    def protection(self) -> str:
        """``running``, ``active`` (goes on alone after a takeover), ``standby`` (after a switch-over) or ``stopped``."""
        if self.taken_over:
            return "active"
        if self.phase in STANDING_BY and not self.alive and self.domain is not None:
            return "standby"
        return "running" if self.alive and self.phase not in ENDED else "stopped"

    @property
    def headless(self) -> bool:
        """Whether the domain of a protected VM has no device model any more, so that it can do nothing."""
        if (
            self.config is None
            or self.domain is None
            or (self.state or {}).get("domid") != self.domain["domid"]
        ):
            return False  # one that is being built has none yet
        return self.domain.get("headless") is True

    def sentence(self) -> str:
        """What an operator should know first."""
        lost = (
            " The device model of its domain has ended, so it can do nothing any more."
            if self.headless
            else ""
        )
        return self._sentence() + lost

    def _sentence(self) -> str:
        where = f"{self.vm} on {self.host}"
        journal = f"Look at: journalctl -u {host.unit_name(self.vm)}"
        if self.alive:
            return self.reason or f"The replicator of {where} has not said anything yet."
        if self.stands_still:
            return f"{self.reason} It is paused, and no replicator lets it run: playbooks/failover.yml starts one.".lstrip()
        if self.taken_over:
            return f"{self.reason} No replicator watches over it.".lstrip()
        if self.phase and self.phase not in ENDED | STANDING_BY | {"active"}:
            died = f"The replicator of {where} died ({self.unit['result']}) while {self.phase}."
            return f"{died} It last said: {self.reason or 'nothing.'} {journal}"
        if self.unit["active"] == "failed" and self.phase not in ENDED | STANDING_BY:
            return f"The replicator of {where} failed ({self.unit['result']}). {journal}"
        return self._at_rest(where)

    def _at_rest(self, where: str) -> str:
        if self.config is None:
            return f"{where} is not protected."
        if self.state is not None and not self.same_boot:
            return f"{where} has not been protected since {self.host} was started."
        return self.reason or f"The replicator of {where} does not run."

    def export(self) -> dict[str, Any]:
        """As colo_vm_info returns it."""
        return {
            "name": self.vm,
            "config": self.config,
            "unit": self.unit,
            "alive": self.alive,
            "state": self.state,
            "stale": self.state is not None and not self.same_boot,
            "phase": self.phase,
            "protection": self.protection,
            "verification": self.verification,
            "domain": self.domain,
            "domains_known": self.domains_known,
            "may_run_vm": self.may_run_vm,
            "sentence": self.sentence(),
        }


def check_name(vm: str) -> None:
    """Refuse what could not be the name of a VM, a unit and a directory at once."""
    if not NAME.fullmatch(vm):
        raise Failure(
            f"{vm!r} is no name for a protected VM: letters, digits, '_', '.' and '-', at most 63, no '..', "
            "and a letter or a digit first."
        )


def config_path(vm: str) -> Path:
    """What the replicator of ``vm`` shall do."""
    return CONFIGURATIONS / f"{vm}.json"


def read_state(vm: str) -> dict[str, Any] | None:
    """What the replicator of ``vm`` here has written down last."""
    return read_json(STATES / vm / "state.json")


def known_vms() -> list[str]:
    """Every VM that this host has a configuration or a history of."""
    names = {path.stem for path in CONFIGURATIONS.glob("*.json")} | {
        path.parent.name for path in STATES.glob("*/state.json")
    }
    return sorted(name for name in names if NAME.fullmatch(name))


def take(module: AnsibleModule, vm: str, domains: dict[str, dict[str, Any]] | None) -> Snapshot:
    """Read everything about one VM; ``domains`` comes from ``host.read_domains``."""
    state = read_state(vm)
    boot_id = (read_text(BOOT_ID) or "").strip()
    return Snapshot(
        vm=vm,
        host=host_name(),
        config=read_json(config_path(vm)),
        unit=host.read_unit(module, vm),
        state=state,
        verification=read_json(STATES / vm / "verify.json"),
        domain=(domains or {}).get(vm),
        domains_known=domains is not None,
        same_boot=state is not None and state.get("boot_id", boot_id) == boot_id,
    )


def report(module: AnsibleModule) -> dict[str, Any]:
    """What colo_vm_info returns."""
    names: list[str] = module.params["names"] or known_vms()
    for name in names:
        check_name(name)
    domains = host.read_domains(module)
    return {"changed": False, "vms": [take(module, name, domains).export() for name in names]}
