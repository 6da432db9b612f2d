"""A VM while it is protected, seen from the controller: what its replicators say and do."""

import json
import os
import time
from dataclasses import dataclass

from lab import guests, ssh
from lab.errors import LabError
from lab.settings import HOSTS, Settings, address, host_number, peer_of

HELPER = "/opt/colo-helper/current/bin/colo-helper"
#: The guest of the tests that can do with any: h1 has virtio-net, h2 e1000.
GUEST = os.environ.get("COLO_GUEST", "h1")
_WAIT_S = 120
_BOOT_S = 600
_COPY_S = 400


@dataclass
class ProtectedVm:
    """Where nothing else is said its primary is ``home``, and what is asked of "a host" is asked of that."""

    settings: Settings
    name: str = "h1"
    home: str = "xa"

    @property
    def unit(self):
        """Its replicators' unit."""
        return f"colo-replicator@{self.name}"

    def on(self, host, line, timeout_s=60):
        """Run a shell line on a host."""
        return ssh.run(self.settings, host, line, timeout_s, kept=True)

    def status(self, host=None):
        """What `colo-helper status` says there: two seconds of an emulated host's only CPU."""
        return json.loads(self.on(host or self.home, f"{HELPER} status {self.name} --json"))

    def written(self, host):
        """What the replicator there has written down last; empty when it never has."""
        return json.loads(
            self.on(host, f"cat /var/lib/colo/{self.name}/state.json 2>/dev/null || echo '{{}}'")
        )

    def have_guest(self, host):
        """Have the guest run on a host, which has room for one in the lab; boots it where another one is."""
        if self.name not in self.domains(host):
            self.on(host, "xl destroy h1 2>/dev/null || true")
            guests.create(self.settings, self.name, host)
            guests.wait_answer(self.settings, self.name, _BOOT_S)

    def is_replicating(self):
        """Whether both copies run and checkpoints are made."""
        said = [self.on(host, f"{HELPER} status {self.name} --json 2>/dev/null; true") for host in HOSTS]
        found = [json.loads(text or "[]") for text in said]  # a list where nothing is known of it
        return all(one and one["running"] and one["phase"] == "replicating" for one in found)

    def processes(self):
        """The replicators' pids, by host."""
        line = f"systemctl show --property=MainPID --value {self.unit}"
        return {host: int(self.on(host, line)) for host in HOSTS}

    def domains(self, host):
        """Names of the guests on a host."""
        return [line.split()[0] for line in self.on(host, "xl list").splitlines()[2:]]

    def events(self, host):
        """All that the replicator on a host has written down, the oldest first."""
        return [
            json.loads(line)
            for line in self.on(host, f"cat /var/lib/colo/{self.name}/events.jsonl").splitlines()
        ]

    def wait_for(self, host, phase, timeout_s=_WAIT_S):
        """Wait until the replicator on a host is in a phase; returns its reason."""
        return self._wait(lambda: self._in_phase(host, phase), f"{host} {phase}", timeout_s)

    def wait_for_event(self, host, event, count):
        """Wait until a replicator on a host has written an event down so many times; returns its last sentence."""

        def seen():
            found = [one["sentence"] for one in self.events(host) if one["event"] == event]
            return found[-1] if len(found) >= count else None

        return self._wait(seen, f"{count} times {event} on {host}")

    def wait_for_checkpoints(self, count=3):
        """Wait until so many more have been made; returns the primary's status then."""
        before = self.written(self.home)["epoch"]

        def made():
            now = self.written(self.home)
            assert now["phase"] == "replicating", now["reason"]
            return now if now["epoch"] >= before + count else None

        return self._wait(made, f"{count} checkpoints")

    def verify(self, host):
        """One checkpoint, and all of both copies compared; returns what was found."""
        self.on(host, f"{HELPER} ctl {self.name} verify", 300)
        return json.loads(self.on(host, f"cat /var/lib/colo/{self.name}/verify.json"))

    def take_over(self, host):
        """The operator's decision, as soon as it is allowed."""
        self.wait_for(host, "peer_lost")
        answer = json.loads(self.on(host, f"{HELPER} ctl {self.name} takeover", 120))
        assert answer["ok"] is True

    def give_roles(self, primary, secondary):
        """Give both hosts these roles, as playbooks do but without their minute; the new secondary first."""
        config = f"/etc/colo/vms/{self.name}.json"
        old = [json.loads(self.on(host, f"cat {config}")) for host in (primary, secondary)]
        of_primary = next(one for one in old if one["role"] == "primary")
        of_secondary = next(one for one in old if one["role"] == "secondary")
        number = host_number(secondary)
        peer = {
            "name": secondary,
            "address": address("data", number),
            "port": 22,
            "heartbeat_address": address("mgmt", number),
        }
        for host, new in (
            (secondary, {**of_secondary, "peer": {"name": primary}}),
            (primary, {**of_primary, "peer": peer}),
        ):
            if "arbiter" in new:
                new["arbiter"]["host"] = host
            text = json.dumps(new)
            self.on(host, f"cat > {config} <<'END'\n{text}\nEND\nsystemctl restart {self.unit}", 120)

    def protect_from(self, primary):
        """Have the VM protected from a host on; the one that comes back holds the copy."""
        self.give_roles(primary, peer_of(primary))
        self.home = primary
        self.wait_for(primary, "replicating", _COPY_S)

    def wait_reachable(self, host):
        """Wait until a host that boots answers on ssh."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                self.on(host, "true")
            except LabError:
                assert time.monotonic() < deadline, f"{host} does not answer on ssh"
                time.sleep(1)  # sshd of a host that boots tells nobody
            else:
                return

    def _in_phase(self, host, phase):
        if self.written(host).get("phase") != phase:
            return None
        now = self.status(host)  # what is written may be an earlier replicator's
        return now["reason"] if now["phase"] == phase else None

    def _wait(self, look, what, timeout_s=_WAIT_S):
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            assert time.monotonic() < deadline, f"never came: {what}; {[self.status(host) for host in HOSTS]}"
            time.sleep(1)  # a program on another host
        return found
