"""Whether a host can be a witness, or stop being one: pure checks over what was read of its etcd."""

from __future__ import annotations

import base64
import http.client
import json
import platform
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ansible.module_utils.colo import host, preflight
from ansible.module_utils.colo.files import read_text

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

DEBIANS = ("12", "13")
UNIT = "etcd.service"
#: What makes Debian's unit ours: the role's drop-in.
DROP_IN = Path("/etc/systemd/system/etcd.service.d/colo.conf")
#: A unit that somebody has put in the place of the package's.
OTHER_UNIT = Path("/etc/systemd/system/etcd.service")
#: What ours reads.
ENVIRONMENT = Path("/etc/colo/witness/etcd.env")
SETTINGS = Path("/etc/default/etcd")
PROGRAM = Path("/usr/bin/etcd")
DATA = Path("/var/lib/etcd")
#: The role's data directory below DATA, and the members that it was made for.
OURS = "colo"
RECORD = "colo.cluster"
CERTIFICATES = Path("/etc/colo/witness")
_TIMEOUT_S = 5.0
_PREFIX = b"/colo/"
_LEASE = b"/lease"


@dataclass(frozen=True)
class Facts:
    """What was read. ``outdated``: it runs since before its configuration was written.

    ``data`` are the directories with an etcd's data, ``cluster`` the members that ours were made for. ``protected`` are the
    VMs whose lease is kept now; None when etcd does not tell.
    """

    name: str
    distribution: str
    installed: bool
    ours: bool
    active: bool
    outdated: bool
    settings: bool
    other_unit: bool
    data: tuple[str, ...]
    cluster: str
    answers: tuple[str, ...]
    protected: tuple[str, ...] | None


def problems(facts: Facts, cluster: str) -> list[str]:
    """Why the host cannot be one of the witnesses ``cluster``, one sentence each."""
    found = []
    if facts.distribution not in {f"debian {release}" for release in DEBIANS}:
        found.append(
            f"{facts.name}: the distribution is {facts.distribution}, not debian {' or '.join(DEBIANS)}: the witness is proved "
            "with their etcd-server only."
        )
    if strange := _strange(facts):
        found.append(
            f"{facts.name} has an etcd already that the role colo_witness has not made ({'; '.join(strange)}). Use that one by "
            "colo_arbiter.endpoints instead, or remove it first: 'apt purge etcd-server' there removes its data as well."
        )
    if OURS in facts.data and facts.cluster and cluster and facts.cluster != cluster:
        found.append(
            f"{facts.name} has data of the witnesses {facts.cluster}, and the inventory says {cluster}: members are not "
            "changed by the inventory, or two halves could each say who may run: see docs/operations/witness.md, other members."
        )
    return found


def removal_problems(facts: Facts) -> list[str]:
    """Why the witness must not go now."""
    if facts.ours and facts.protected:
        return [
            f"{facts.name} keeps the lease of {', '.join(facts.protected)}, whose primary falls silent without it: run "
            f"playbooks/unprotect.yml -e colo_vm={facts.protected[0]} first."
        ]
    return []


def _strange(facts: Facts) -> list[str]:
    """What shows that there is somebody else's etcd."""
    found = [f"data in {DATA / name}" for name in facts.data if name != OURS]
    if facts.other_unit:
        found.append(f"{OTHER_UNIT} is there")
    if facts.ours:
        return found
    if facts.active:
        found.append(f"{UNIT} runs")
    if facts.settings:
        found.append(f"{SETTINGS} sets something")
    return [*found, *(f"something answers at {address}" for address in facts.answers if not facts.active)]


def sets_something(text: str) -> bool:
    """Whether a file for systemd's EnvironmentFile sets anything; Debian's own only has comments."""
    return any(line.strip() and not line.lstrip().startswith(("#", ";")) for line in text.splitlines())


def is_outdated(started: str) -> bool:
    """Whether the configuration was written after ``started``, systemd's "@SECONDS"."""
    seconds = started.removeprefix("@")
    written = [int(path.stat().st_mtime) for path in (DROP_IN, ENVIRONMENT) if path.is_file()]
    return seconds.isdigit() and any(int(seconds) < moment for moment in written)


def leases(answer: dict[str, Any]) -> tuple[str, ...]:
    """The VMs with a lease, from etcd's answer to a range of all keys below /colo/ (see colo_helper.arbiter.etcd)."""
    keys = [base64.b64decode(entry["key"]) for entry in answer.get("kvs", [])]
    return tuple(sorted(key[len(_PREFIX) : -len(_LEASE)].decode() for key in keys if key.endswith(_LEASE)))


def ask_leases(url: str) -> tuple[str, ...] | None:
    """Ask the etcd of this host by its own certificate; None when it does not tell."""
    where = urlsplit(url)
    ask = {
        "key": base64.b64encode(_PREFIX).decode(),
        "range_end": base64.b64encode(_PREFIX[:-1] + bytes([_PREFIX[-1] + 1])).decode(),
        "keys_only": True,
    }
    try:
        context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))
        context.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
        connection = http.client.HTTPSConnection(
            where.hostname or "", where.port, timeout=_TIMEOUT_S, context=context
        )
        connection.request("POST", "/v3/kv/range", json.dumps(ask), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            return leases(json.load(response)) if response.status == http.client.OK else None
    except (OSError, ValueError, http.client.HTTPException):
        return None


def read_facts(module: AnsibleModule) -> Facts:
    """Read all of it."""
    urls = [url for url in (module.params["client_url"], module.params["peer_url"]) if url]
    system = preflight.parse_os_release(read_text(preflight.OS_RELEASE) or "")
    properties = "--property=ActiveState,ExecMainStartTimestamp"
    _rc, out, _err = host.run_tool(module, ["systemctl", "show", "--timestamp=unix", properties, UNIT])
    unit = host.parse_properties(out)
    active = unit.get("ActiveState") in ("active", "activating", "reloading")
    ours = DROP_IN.is_file()
    own = host.parse_properties(read_text(ENVIRONMENT) or "").get("ETCD_ADVERTISE_CLIENT_URLS", "")
    return Facts(
        name=platform.node().split(".")[0],
        distribution=f"{system.get('ID', 'unknown')} {system.get('VERSION_ID', '')}".strip(),
        installed=PROGRAM.is_file(),
        ours=ours,
        active=active,
        outdated=active and ours and is_outdated(unit.get("ExecMainStartTimestamp", "")),
        settings=sets_something(read_text(SETTINGS) or ""),
        other_unit=OTHER_UNIT.is_file(),
        data=tuple(sorted(path.parent.name for path in DATA.glob("*/member"))),
        cluster=(read_text(DATA / RECORD) or "").strip(),
        answers=tuple(urlsplit(url).netloc for url in urls if not ours and _answers(url)),
        protected=ask_leases(own) if ours and own else None,
    )


def report(module: AnsibleModule) -> dict[str, Any]:
    """What colo_witness_info returns."""
    facts = read_facts(module)
    return {
        "changed": False,
        "installed": facts.installed,
        "ours": facts.ours,
        "active": facts.active,
        "outdated": facts.outdated,
        "data": OURS in facts.data,
        "cluster": facts.cluster,
        "protected": None if facts.protected is None else list(facts.protected),
        "problems": problems(facts, module.params["cluster"]),
        "removal_problems": removal_problems(facts),
    }


def _answers(url: str) -> bool:
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port), _TIMEOUT_S).close()
    except OSError:
        return False
    return True
