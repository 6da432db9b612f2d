"""The protection of one VM on one host as a state: protected, unprotected, standby or active after the roles changed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import gate, host, snapshot
from ansible.module_utils.colo.base import DesiredState, Failure, host_name, render
from ansible.module_utils.colo.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible.module_utils.basic import AnsibleModule

FORMAT = 1
#: How often the state file is read, and how often Xen and systemd are asked although it says nothing new, seconds.
_POLL_S, _LOOK_S = 0.5, 5.0
_STOP_TIMEOUT_S = 120.0
_TAKEOVER_TIMEOUT_S = 120.0
_SWITCH_TIMEOUT_S = 120.0
#: What the replicator may need beyond its time-out to say that its primary is lost, seconds.
_NOTICE_S = 10.0


#: Phases of a secondary that is ready for its primary, or has it.
_WAITING_SECONDARY = frozenset({"waiting", "receiving", "resyncing", "replicating"}) | snapshot.STANDING_BY


def configuration(params: dict[str, Any]) -> dict[str, Any]:
    """What the replicator shall do: the contents of VM.json."""
    config = {
        "format": FORMAT,
        "vm": params["name"],
        "role": params["role"],
        "peer": {"name": params["peer"]["name"]},
        "peer_timeout_ms": params["peer_timeout_ms"],
        "heartbeat_misses": params["heartbeat_misses"],
        "bridge": params["bridge"],
    }
    if params["role"] == "primary":
        config["peer"] = {key: params["peer"][key] for key in ("name", "address", "port")}
        if params["peer"]["heartbeat_address"]:
            config["peer"]["heartbeat_address"] = params["peer"]["heartbeat_address"]
        for key in ("interval_ms", "min_interval_ms", "latency_ms", "copy_downtime_ms", "output"):
            config[key] = params[key]
    if params.get("arbiter"):
        config["arbiter"] = {key: value for key, value in params["arbiter"].items() if value}
    return config


def refuse_protection(now: snapshot.Snapshot, role: str) -> None:
    """Raise the sentence why ``now`` must not become a protected VM in ``role``. Two running copies are the worst."""
    if not now.domains_known:
        raise Failure(
            f"Xen on {now.host} does not tell its domains ('xl list' fails or hangs): mend that first."
        )
    if role == "primary":
        if now.domain is None:
            raise Failure(
                f"There is no domain {now.vm} on {now.host}, its primary. If it runs on its other host, run "
                f"playbooks/reprotect.yml; if it runs nowhere, start it here with 'xl create /etc/xen/{now.vm}.cfg', then "
                "protect it."
            )
        if now.phase in snapshot.STANDING_BY:
            raise Failure(
                f"The domain {now.vm} on {now.host} is a copy from before a switch-over ({now.phase}), not the VM: if that "
                "runs on the other host, run playbooks/reprotect.yml; if it runs nowhere, playbooks/failover.yml lets this copy"
                " go on."
            )
        if now.alone and not now.taken_over:
            raise Failure(
                f"{now.host} holds a secondary copy of {now.vm} that has lost its primary: let it take over with "
                f"playbooks/failover.yml first."
            )
        return
    if now.taken_over:
        raise Failure(
            f"{now.vm} goes on alone on {now.host} since its takeover: make {now.host} its primary in colo_vms, "
            "then protect it."
        )
    if now.alone:
        raise Failure(
            f"The copy of {now.vm} on {now.host} has lost its primary and may be the only one left: "
            f"run playbooks/failover.yml to go on with it, or playbooks/unprotect.yml to give it up."
        )
    if now.domain is not None and now.protection == "stopped":
        raise Failure(
            f"There is a domain {now.vm} on {now.host}, its secondary, that no replicator keeps: it could become a second "
            f"running copy. When it is not the VM that people use, remove it there with 'xl destroy {now.vm}'."
        )


def refuse_fencing(peer: str, said: str) -> None:
    """Raise when what is said (JSON) of how ``peer`` is switched off cannot work; better now than when it has to be."""
    fencing = gate.load("arbiter.fencing")
    try:
        known = fencing.parse_fencing(json.loads(said), peer)
    except (ValueError, fencing.FencingError) as error:
        raise Failure(
            f"How {peer} is switched off: {error} Correct its colo_fencing in the inventory."
        ) from error
    problems = fencing.missing(known)
    if problems:
        raise Failure(f"{host_name()} cannot switch {peer} off: {' '.join(problems)}")


def refuse_arbiter(arbiter: dict[str, Any] | None) -> None:
    """Raise the sentence for a file that the host would ask its arbiter with and does not have."""
    for name in ("ca", "certificate", "key"):
        path = (arbiter or {}).get(name)
        if arbiter and path and not Path(path).is_file():
            raise Failure(
                f"There is no {path} on {host_name()}, and without it the host cannot ask the arbiter at "
                f"{arbiter['endpoints'][0]}: run playbooks/witness.yml; when that etcd is your own, put the file there."
            )


class ProtectedVm(DesiredState):
    """The replicator of one VM on this host."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.params: dict[str, Any] = module.params
        self.vm: str = module.params["name"]
        self.state: str = module.params["state"]
        self._started: float | None = None
        self._restarts = False

    def look(self) -> snapshot.Snapshot:
        """Read all there is to know now."""
        return snapshot.take(self.module, self.vm, host.read_domains(self.module))

    def read(self) -> dict[str, Any]:
        """The configuration and whether the protection runs."""
        snapshot.check_name(self.vm)
        now = self.look()
        return {"config": now.config, "protection": now.protection, "replicator": now.alive}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """By state; each refuses what would risk the VM."""
        now = self.look()
        if self.state == "protected":
            if not self.module.check_mode:
                gate.require_helper()
            refuse_protection(now, self.params["role"])
            refuse_arbiter(self.params["arbiter"])
            if self.params["fencing"] and gate.helper_installed():
                refuse_fencing(self.params["peer"]["name"], self.params["fencing"])
            desired = {"config": configuration(self.params), "protection": "running", "replicator": True}
            self._restarts = now.alive and before != desired
            return desired
        if self.state == "unprotected":
            if now.config is None and not now.alive:  # nothing of ours is left, whatever domain is
                return before
            self._refuse_discarding(now)
            return {
                "config": None,
                "protection": "active" if now.taken_over else "stopped",
                "replicator": False,
            }
        if self.state == "standby":
            self._refuse_switching(now)
            return {**before, "protection": "standby", "replicator": False}
        self._refuse_takeover(now)
        if now.taken_over:
            return {**before, "replicator": before["replicator"] or now.stands_still}
        return {**before, "protection": "active"}

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """By state."""
        if self.state == "protected":
            self._protect(before, desired["config"])
        elif self.state == "unprotected":
            self._unprotect()
        elif self.state == "standby":
            self._switch()
        else:
            self._take_over()

    def finish(self) -> None:
        """Wait until the protection protects."""
        if self.state == "protected" and self.params["wait"]:
            self._wait_protected()

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """The desired state's two fields, and what the replicator says now."""
        now = self.look()
        return {
            "name": self.vm,
            "config": state["config"],
            "protection": state["protection"],
            "restarts": self._restarts,
            "phase": now.phase,
            "reason": now.reason,
            "checkpoints": checkpoints(now),
        }

    def diff(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
        """Both fields, under the configuration's name."""
        header = str(snapshot.config_path(self.vm))
        return {
            "before_header": header,
            "after_header": header,
            "before": render(before),
            "after": render(after),
        }

    # protected

    def _protect(self, before: dict[str, Any], config: dict[str, Any]) -> None:
        if self.look().alive:
            self._systemctl("stop")
        if before["config"] != config:
            write_atomically(snapshot.config_path(self.vm), render(config))
        self._systemctl("enable", "--quiet")  # from now on at every boot
        self._started = time.monotonic()
        self._systemctl("start", "--no-block")

    def _wait_protected(self) -> None:
        timeout_s: float = self.params["wait_timeout_s"]
        role, wanted = self.params["role"], self.params["wait_checkpoints"]

        def done(now: snapshot.Snapshot) -> bool:
            if role == "secondary":
                return now.alive and now.phase in _WAITING_SECONDARY
            return now.alive and now.phase == "replicating" and checkpoints(now) >= wanted

        now = self._wait(done, timeout_s)
        if has_ended(now) or not now.alive:
            raise Failure(
                f"The replicator of {self.vm} on {now.host} ended as {now.phase or now.unit['active']}: "
                f"{now.reason or 'it left no reason'} Look at: journalctl -u {host.unit_name(self.vm)}",
                state=now.state, unit=now.unit,
            )  # fmt: skip
        if not done(now):
            raise Failure(
                f"{self.vm} on {now.host} is not protected after {timeout_s:g} s: {progress(now, wanted)}. "
                f"The replicator says: {now.reason or 'nothing'} It goes on; run this again to wait longer.",
                state=now.state, unit=now.unit,
            )  # fmt: skip

    def _wait(self, done: Callable[[snapshot.Snapshot], bool], timeout_s: float) -> snapshot.Snapshot:
        """Look again and again (state.json is replaced by renaming, and the standard library has no inotify).

        What Xen and systemd say costs more than reading a file, so they are asked when that has news. Ends when ``done``,
        when the replicator has ended, or in time. A state from before the start counts as none.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            now = self._fresh(self.look())
            if done(now) or has_ended(now) or time.monotonic() > deadline:
                return now
            until = min(deadline, time.monotonic() + _LOOK_S)
            said = _news(now.state)
            while time.monotonic() < until and _news(snapshot.read_state(self.vm)) == said:
                time.sleep(_POLL_S)

    def _fresh(self, now: snapshot.Snapshot) -> snapshot.Snapshot:
        """Without a state that was written before this module started the replicator."""
        written = float((now.state or {}).get("updated_monotonic_s", 0.0))
        if self._started is None or written >= self._started:
            return now
        return snapshot.Snapshot(**{**vars(now), "state": None, "same_boot": False})

    # unprotected

    def _refuse_discarding(self, now: snapshot.Snapshot) -> None:
        if now.kept and not now.taken_over and not self._confirmed:
            why = (
                "is from before a switch-over"
                if now.phase in snapshot.STANDING_BY
                else "has lost its primary"
                if now.phase in snapshot.ALONE
                else f"is left by a replicator that died ({now.phase})"
            )
            starts = now.copy_left and now.phase not in snapshot.ALONE | snapshot.STANDING_BY
            first = f"'systemctl start {host.unit_name(self.vm)}' there, then run" if starts else "run"
            raise Failure(
                f"The copy of {self.vm} on {now.host} {why} and may be the only one left: {first} "
                f"playbooks/failover.yml to go on with it, or confirm with its name ({self.vm}) that it shall be destroyed."
            )

    @property
    def _confirmed(self) -> bool:
        return bool(self.params["confirm"] == self.vm)

    def _unprotect(self) -> None:
        now = self.look()
        if now.alive and not now.taken_over:
            try:
                confirmed = {"reason": "It was confirmed with the VM's name.", "forced": True}
                answer = gate.request(
                    self.vm, "stop", _STOP_TIMEOUT_S, **(confirmed if self._confirmed else {})
                )
            except Failure as failure:
                self.module.warn(f"{failure.sentence} It is stopped by systemd.")
            else:
                if not answer.get("ok"):
                    raise Failure(
                        f"The replicator of {self.vm} on {now.host} does not stop: {answer.get('error')}",
                        code=answer.get("code"),
                    )
        self._systemctl("disable", "--quiet", "--now")
        left = self.look()
        remove = f"When the VM runs on its other host, remove this one with 'xl destroy {self.vm}'"
        if left.copy_left and not self._confirmed:
            raise Failure(
                f"A copy of {self.vm} is left on {now.host} ({left.phase}), and its replicator has not given it up; its "
                f"configuration stays. {remove}, then run this again. If it is all that is left of {self.vm}: 'systemctl start "
                f"{host.unit_name(self.vm)}' there, then playbooks/failover.yml."
            )
        snapshot.config_path(self.vm).unlink(missing_ok=True)
        role = (now.state or {}).get("role") if now.phase else (now.config or {}).get("role")
        if role == "secondary" and not now.taken_over and left.domain is not None:
            self.module.warn(f"A domain {self.vm} is left on {now.host}, which was its secondary. {remove}.")

    # standby

    def _refuse_switching(self, now: snapshot.Snapshot) -> None:
        if now.phase in snapshot.STANDING_BY:
            return
        if not self.module.check_mode:
            gate.require_helper()
        role = (now.state or {}).get("role")
        if not (now.alive and now.phase == "replicating" and role == "primary"):
            raise Failure(
                f"{self.vm} cannot be handed over by {now.host}: only a primary that replicates can, and this is "
                f"{role or 'no replicator'} in phase {now.phase or 'unknown'}. {now.reason}".rstrip()
            )

    def _switch(self) -> None:
        answer = gate.request(self.vm, "switchover", _SWITCH_TIMEOUT_S)
        if not answer.get("ok"):
            raise Failure(
                f"{host_name()} does not hand {self.vm} over: {answer.get('error')}", code=answer.get("code")
            )
        now = self._wait(lambda now: now.protection == "standby", _SWITCH_TIMEOUT_S)
        if now.phase != "standby":
            raise Failure(
                f"The switch-over of {self.vm} on {now.host} was not confirmed: {now.reason} Look at both hosts with "
                "playbooks/status.yml before anything else.",
                state=now.state,
            )

    # active

    def _refuse_takeover(self, now: snapshot.Snapshot) -> None:
        if self.params["confirm"] != self.vm:
            raise Failure(f"A takeover of {self.vm} must be confirmed with its name: confirm: {self.vm}")
        if self.params["override"] and not self.params["reason"]:
            raise Failure(f"Say why {self.vm} shall go on here although the arbiter says no: reason.")
        if now.taken_over:
            return
        if not (now.alive or now.alone):
            gate.require_helper()
            raise Failure(
                f"{now.host} has no running replicator of {self.vm}, so there is no copy that could take over: "
                f"{now.sentence()}"
            )
        if (now.config or {}).get("role") != "secondary":
            raise Failure(
                f"{now.host} is not the secondary of {self.vm}: run this on the host that holds the copy."
            )
        if self.module.check_mode and now.phase != "peer_lost":
            raise Failure(
                f"{now.host} would not take over {self.vm} now: its phase is {now.phase or 'unknown'}, "
                f"and only a copy that has lost its primary may. {now.reason}".rstrip(),
                code="primary_alive",
            )

    def _take_over(self) -> None:
        now = self.look()
        if not now.alive:
            # The copy outlived its replicator; a new one goes on with it where the old one was.
            self._started = time.monotonic()
            self._systemctl("start")
            now = self._wait(lambda now: now.alive and now.phase in snapshot.ALONE, _TAKEOVER_TIMEOUT_S)
            if now.taken_over:
                return
        elif not now.alone:
            # A primary that has just died is noticed when it has been silent for long enough; one that lives stays heard.
            silence_s = float((now.config or {}).get("peer_timeout_ms", 0)) / 1000
            self._wait(lambda now: now.alone, silence_s + _NOTICE_S)
        answer = gate.request(
            self.vm,
            "takeover",
            _TAKEOVER_TIMEOUT_S,
            reason=self.params["reason"],
            forced=self.params["override"],
        )
        if answer.get("ok"):
            now = self._wait(lambda now: now.taken_over, _TAKEOVER_TIMEOUT_S)
            if now.taken_over:
                return
            raise Failure(
                f"{now.host} accepted the takeover of {self.vm} but is {now.phase or 'without a state'}: {now.reason}",
                state=now.state,
            )
        raise Failure(
            f"{host_name()} does not take over {self.vm}: {answer.get('error')}",
            code=answer.get("code"),
            answer=answer,
        )

    def _systemctl(self, *verb: str) -> None:
        argv = ["systemctl", *verb, host.unit_name(self.vm)]
        rc, out, err = host.run_tool(self.module, argv)
        if rc:
            said = " ".join((err or out).split())
            raise Failure(
                f"'{' '.join(argv)}' failed on {host_name()}: {said} Run playbooks/site.yml if the unit is missing."
            )


def has_ended(now: snapshot.Snapshot) -> bool:
    """Whether no checkpoint will come. A primary that lost its secondary and looks for it again may still get there."""
    if now.unit["active"] in {"failed", "inactive"}:
        return True
    return now.phase in snapshot.ENDED | snapshot.ALONE and not (now.alive and now.phase == "unprotected")


def _news(state: dict[str, Any] | None) -> tuple[object, object]:
    """What of a state may be what is waited for."""
    known = state or {}
    return known.get("phase"), known.get("totals")


def checkpoints(now: snapshot.Snapshot) -> int:
    """Checkpoints made since the replicator started."""
    totals = (now.state or {}).get("totals") or {}
    return int(totals.get("checkpoints", 0))


def progress(now: snapshot.Snapshot, wanted: int) -> str:
    """How far it has come, for a sentence."""
    state = now.state or {}
    if now.phase == "replicating":
        return f"it has made {checkpoints(now)} of {wanted} checkpoints"
    steps = state.get("progress") or {}
    if steps.get("step"):
        mib = float(steps.get("bytes") or 0) / 2**20
        return f"its phase is {now.phase}, step {steps['step']}, {mib:.1f} MiB in {float(steps.get('elapsed_s') or 0):.0f} s"
    return f"its phase is {now.phase or 'not known yet'}"


def verify(module: AnsibleModule) -> dict[str, Any]:
    """What colo_vm_verify does and returns."""
    vm: str = module.params["name"]
    snapshot.check_name(vm)
    if module.check_mode:
        nothing = {"pages_compared": 0, "different": [], "unexplained": [], "state": {}}
        return {"changed": False, "verified": False, **nothing}
    now = snapshot.take(module, vm, host.read_domains(module))
    if not now.alive:
        gate.require_helper()
        raise Failure(f"{vm} cannot be verified: {now.sentence()}")
    answer = gate.request(vm, "verify", float(module.params["timeout_s"]))
    if not answer.get("ok"):
        raise Failure(f"{vm} on {now.host} was not verified: {answer.get('error')}", code=answer.get("code"))
    result = {
        key: answer.get(key) for key in ("epoch", "pages_compared", "different", "unexplained", "state")
    }
    if not result["state"]:
        raise Failure(
            f"The replicator of {vm} on {now.host} is of an earlier release and compared memory only: unprotect and protect "
            f"{vm}, then verify it again.",
            **result,
        )
    problems = _unexplained(result)
    if problems:
        peer = ((now.config or {}).get("peer") or {}).get("name", "its secondary")
        raise Failure(
            f"{' and '.join(problems)} of {vm} differ between {now.host} and {peer} without an explanation: {peer} does not "
            f"hold a copy of it. Keep /var/lib/colo/{vm}/verify.json of {now.host} for a report, then protect {vm} anew.",
            **result,
        )
    return {"changed": False, "verified": True, **result}


def _unexplained(result: dict[str, Any]) -> list[str]:
    """What differs without an explanation: a part of a sentence for each of memory, CPU and devices."""
    problems = []
    pages = result["unexplained"] or []
    if pages:
        problems.append(f"{len(pages)} of {result['pages_compared']} pages (first: frame {pages[0]:#x})")
    for part, name in (("cpu", "CPU state"), ("devices", "device state")):
        places = result["state"][part]["unexplained"]
        if places:
            first = places[0]
            where = f"{first['record']} {first['instance']}, {first['field'] or 'bytes'} at {first['offset']}"
            problems.append(
                f"{len(places)} field{'s' if len(places) > 1 else ''} of the {name} (first: {where})"
            )
    return problems
