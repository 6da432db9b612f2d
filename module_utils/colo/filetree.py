"""A handful of small files and directories as one state: one task instead of ten on a slow host."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import DesiredState, Failure, host_name, render
from ansible.module_utils.colo.files import read_text, write_atomically

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


class FileTree(DesiredState):
    """Keyed by path: None when absent, otherwise kind, mode, owner, group and (of a file) content."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.entries: list[dict[str, Any]] = module.params["files"]
        self.check_command: list[str] = module.params["validate"]

    def read(self) -> dict[str, Any]:
        """What stands at each path."""
        return {entry["path"]: read_entry(Path(entry["path"])) for entry in self.entries}

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """What shall stand there; refuses to replace one kind by another."""
        wanted = {}
        for entry in self.entries:
            path, kind = entry["path"], entry["state"]
            found = before[path]
            if kind != "absent" and found and found["kind"] != kind:
                raise Failure(
                    f"{path} on {host_name()} is a {found['kind']}, not a {kind}: move it away and run again."
                )
            if kind == "file" and entry["content"] is None:
                raise Failure(f"{path} has no content: give it one, or make it a directory.")
            wanted[path] = (
                None
                if kind == "absent"
                else {
                    "kind": kind,
                    "mode": f"{int(entry['mode'] or ('0755' if kind == 'directory' else '0644'), 8):04o}",
                    "owner": entry["owner"],
                    "group": entry["group"],
                    "content": entry["content"] if kind == "file" else None,
                }
            )
        return wanted

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """Write what differs; when the validation then refuses, put everything back as it was."""
        changed = [path for path in desired if before[path] != desired[path]]
        try:
            for path in changed:
                write_entry(Path(path), desired[path])
            self._validate()
        except (Failure, OSError):
            for path in reversed(changed):
                write_entry(Path(path), before[path])
            raise

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """Only the paths: contents are in the diff."""
        return {"paths": sorted(path for path, entry in state.items() if entry)}

    def diff(self, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
        """One diff a file, contents as they are and the rest as one line above."""
        return diff_entries(before, after)

    def _validate(self) -> None:
        if not self.check_command:
            return
        rc, out, err = self.module.run_command(self.check_command)
        if rc:
            said = " ".join((err or out).split())
            raise Failure(
                f"{' '.join(self.check_command)} on {host_name()} refuses the new files: {said}. "
                "Everything was put back as it was.",
                validation=said,
            )


def read_entry(path: Path, *, content: bool = True) -> dict[str, Any] | None:
    """What stands at ``path``; None when nothing does. A file that is secret is read without its content."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    kind = (
        "directory"
        if stat.S_ISDIR(status.st_mode)
        else "file"
        if stat.S_ISREG(status.st_mode)
        else "special file"
    )
    return {
        "kind": kind,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": _name(pwd.getpwuid, status.st_uid),
        "group": _name(grp.getgrgid, status.st_gid),
        "content": read_text(path) if content and kind == "file" else None,
    }


def write_entry(path: Path, entry: dict[str, Any] | None) -> None:
    """Bring about what ``read_entry`` would then return."""
    if entry is None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    mode, uid, gid = int(entry["mode"], 8), _id("user", entry["owner"]), _id("group", entry["group"])
    if entry["kind"] == "file":
        write_atomically(path, entry["content"], mode=mode, uid=uid, gid=gid)
        return
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.chown(path, uid, gid)


def diff_entries(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
    """One diff for each path of ``after`` whose entry changes; see ``show``."""
    return [
        {
            "before_header": path,
            "after_header": path,
            "before": show(before[path]),
            "after": show(after[path]),
        }
        for path in after
        if before[path] != after[path]
    ]


def show(entry: dict[str, Any] | None) -> str:
    """An entry as text for a diff."""
    if entry is None:
        return ""
    return render({key: value for key, value in entry.items() if key != "content"}) + (entry["content"] or "")


def _id(kind: str, name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise Failure(
            f"There is no {kind} {name} on {host_name()}: run playbooks/site.yml, which makes it."
        ) from None


def _name(lookup: Any, number: int) -> str:  # noqa: ANN401
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)
