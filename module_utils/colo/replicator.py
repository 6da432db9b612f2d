"""The program that protects a VM on this host: with which release of colo_helper it runs, and how it gets to the one in use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host, snapshot
from ansible.module_utils.colo.base import DesiredState, Failure
from ansible.module_utils.colo.release import current_digest, digest_of_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible.module_utils.basic import AnsibleModule

#: Phases in which a replicator can be started anew and finds all that it needs: no copy is under way.
RESTARTABLE = frozenset(
    {"replicating", "resyncing", "waiting", "unprotected", "connecting", "peer_lost", "awaiting_guest"}
)
#: How often is looked for what systemd or the replicator has done.
_POLL_S = 0.5


class Replicator(DesiredState):
    """``release`` is the digest that the running replicator was started from, empty when none runs."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.vm: str = module.params["name"]
        self.prefix = Path(module.params["prefix"])
        self._found = ""
        self._outdated = False

    def read(self) -> dict[str, Any]:
        """What runs."""
        return {"release": digest_of_process(self.prefix, host.main_pid(self.module, self.vm))}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """The release in use, where a replicator runs; refused while a copy is being made."""
        snapshot.check_name(self.vm)
        self._found = before["release"]
        wanted = current_digest(self.prefix)
        if not before["release"] or not wanted or before["release"] == wanted:
            return before
        self._outdated = True
        now = self._look()
        if now.phase not in RESTARTABLE:
            raise Failure(
                f"{self.vm} on {now.host} is {now.phase or 'without a phase'}, and its replicator is not started anew now: "
                f"wait until it replicates. {now.reason}".rstrip()
            )
        return {"release": wanted}

    def apply(self, _before: dict[str, Any], _desired: dict[str, Any]) -> None:
        """End the program as a crash would, so that nothing is taken apart; systemd starts it again (Restart=on-abnormal)."""
        unit = host.unit_name(self.vm)
        argv = ["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", unit]
        code, out, err = host.run_tool(self.module, argv)
        if code != 0:
            raise Failure(f"'{' '.join(argv)}' failed on {self._look().host}: {(err or out).strip()}")

    def finish(self) -> None:
        """Wait for the program, and for the pair when that is wanted."""
        wanted = current_digest(self.prefix)
        if self.read()["release"] or self._look().alive:
            self._wait(
                lambda now: now.unit["active"] == "active" and self.read()["release"] == wanted,
                f"runs with release {wanted}",
            )
        if self.module.params["wait_replicating"]:
            self._wait(lambda now: now.alive and now.phase == "replicating", "replicates")

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """With what the replicator says."""
        now = self._look()
        return {
            "name": self.vm,
            "found": self._found,
            "outdated": self._outdated,
            **state,
            "phase": now.phase,
            "reason": now.reason,
        }

    def _wait(self, done: Callable[[snapshot.Snapshot], bool], what: str) -> None:
        timeout_s = self.module.params["wait_timeout_s"]
        deadline = time.monotonic() + timeout_s
        while not done(now := self._look()):
            if time.monotonic() > deadline:
                raise Failure(
                    f"The replicator of {self.vm} on {now.host} has not come so far in {timeout_s:g} s that it {what}: it is "
                    f"{now.phase or now.unit['active']}. {now.reason} Look at: journalctl -u {host.unit_name(self.vm)}"
                )
            time.sleep(_POLL_S)  # another program: systemd has no event for a module

    def _look(self) -> snapshot.Snapshot:
        return snapshot.take(
            self.module, self.vm, None
        )  # nothing here depends on domains, and Xen need not be asked
