"""What a host can tell of its VMs when somebody has to find out what happened, as one archive without a secret."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo import host
from ansible.module_utils.colo.base import Failure, host_name
from ansible.module_utils.colo.files import read_json
from ansible.module_utils.colo.snapshot import CONFIGURATIONS, STATES, check_name, known_vms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible.module_utils.basic import AnsibleModule

#: What the replicator of a VM writes down.
WRITTEN = ("state.json", "verify.json", "events.jsonl")
XEN_LOGS = Path("/var/log/xen")
#: Of a log that has grown large, its end.
LAST_BYTES = 4 << 20
#: Settings whose values stay on the host.
SECRET = re.compile(r"pass|secret|token|key|community|credential", re.IGNORECASE)
HIDDEN = "(not gathered)"

COMMANDS = {
    "xl-info.txt": ["xl", "info"],
    "xl-list.txt": ["xl", "list", "-v"],
    "xl-dmesg.txt": ["xl", "dmesg"],
    "addresses.txt": ["ip", "-br", "address"],
    "bridges.txt": ["bridge", "link"],
    "clock.txt": ["timedatectl"],
    "packages.txt": ["dpkg-query", "-W", "xen-*", "qemu-system-xen", "linux-image-*"],
}


def without_secrets(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Settings with the values of those that may be secret replaced; what a path is named stays."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if SECRET.search(name) and not str(part).startswith("/") else without_secrets(part)
            for name, part in value.items()
        }
    return [without_secrets(part) for part in value] if isinstance(value, list) else value


def end_of(path: Path, most: int = LAST_BYTES) -> bytes:
    """A file, or its end when it is larger."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - most))
        return stream.read()


def journal(module: AnsibleModule, since: str, *units: str) -> bytes:
    """What units have said."""
    command = ["journalctl", "--no-pager", "--output=short-iso-precise", f"--since={since}"]
    return host.run_tool(module, [*command, *(f"--unit={unit}" for unit in units)])[1].encode()


def parts(module: AnsibleModule, names: list[str], since: str) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each file of the archive."""
    for name, command in COMMANDS.items():
        _rc, out, err = host.run_tool(module, command)
        yield name, (out + err).encode()
    yield "starts.txt", journal(module, since, "xendomains")
    for vm in names:
        config = read_json(CONFIGURATIONS / f"{vm}.json")
        yield f"{vm}/config.json", json.dumps(without_secrets(config), indent=2).encode()
        for path in (STATES / vm / name for name in WRITTEN):
            if path.is_file():
                yield f"{vm}/{path.name}", end_of(path)
        yield f"{vm}/journal.txt", journal(module, since, host.unit_name(vm))
        for path in sorted(XEN_LOGS.glob(f"*-{vm}.log")):
            yield f"{vm}/{path.name}", end_of(path)


def gather(module: AnsibleModule) -> dict[str, Any]:
    """Write the archive; return its path and what is in it."""
    target, since = Path(module.params["path"]), module.params["since"]
    names: list[str] = module.params["names"] or known_vms()
    for name in names:
        check_name(name)
    if module.check_mode:
        return {"changed": True, "path": str(target), "files": []}
    held = []
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, contents in parts(module, names, since):
                entry = tarfile.TarInfo(f"{host_name()}/{name}")
                entry.size, entry.mode = len(contents), 0o600
                archive.addfile(entry, io.BytesIO(contents))
                held.append(name)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise Failure(f"{host_name()}: {target} cannot be written: {error.strerror}.") from error
    return {"changed": True, "path": str(target), "files": held}
