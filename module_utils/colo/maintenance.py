"""Maintenance of one VM on one host as a state: while it lasts nobody takes over by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import gate, host, snapshot
from ansible.module_utils.colo.base import DesiredState, Failure

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_TIMEOUT_S = 60.0


class Maintenance(DesiredState):
    """``maintenance`` is the reason, empty when there is none; ``asking``: whether the VM is silent until somebody can tell."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.vm: str = module.params["name"]

    def read(self) -> dict[str, Any]:
        """What the replicator says."""
        now = self._look()
        return {
            "maintenance": str((now.state or {}).get("maintenance", "")),
            "asking": now.alive and now.phase == "asking",
        }

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """By state; refused where no replicator could be told."""
        snapshot.check_name(self.vm)
        now = self._look()
        wanted = "" if self.module.params["state"] == "absent" else self.module.params["reason"].strip()
        if not now.alive and (wanted or before["maintenance"]):
            raise Failure(f"{self.vm} has no replicator on {now.host} that could be told: {now.sentence()}")
        return {"maintenance": wanted, "asking": before["asking"] and not (wanted and self._confirmed)}

    def apply(self, _before: dict[str, Any], desired: dict[str, Any]) -> None:
        """Tell the replicator."""
        answer = gate.request(
            self.vm,
            "maintenance" if desired["maintenance"] else "automatic",
            _TIMEOUT_S,
            reason=desired["maintenance"],
            forced=desired["maintenance"] != "" and self._confirmed,
        )
        if not answer.get("ok"):
            raise Failure(str(answer.get("error")), code=answer.get("code"))

    @property
    def _confirmed(self) -> bool:
        return bool(self.module.params["confirm"] == self.vm)

    def _look(self) -> snapshot.Snapshot:
        return snapshot.take(self.module, self.vm, host.read_domains(self.module))
