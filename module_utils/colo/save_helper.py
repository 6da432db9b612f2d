"""The program that xl saves and restores guests with: Xen's own, or ours in its place, for every parent.

A diversion of dpkg moves Xen's own aside, so that packages of Xen are upgraded there, and a symbolic link takes its place.
``dpkg-divert --rename`` would leave xl without a helper until the link is there. So the file gets its second name first,
the diversion is only recorded, and one rename replaces the file by the link; the way back is the same in reverse order.
Wherever that is interrupted, xl has a working helper, and the next run goes on from there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.colo.base import DesiredState, Failure, host_name
from ansible.module_utils.colo.files import switch_link
from ansible.module_utils.colo.host import ENVIRONMENT

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

#: Debian installs each release of Xen below a directory of its own.
LIBRARIES = Path("/usr/lib")
NAME = "libxl-save-helper"
PLACES = f"xen-*/bin/{NAME}"
#: Below a prefix: follows ``current``, so a new release is used at once.
PROGRAM = "current/bin/colo-save-helper"
#: The program was started and understood that it had got no arguments.
USAGE_STATUS = 2
VARIABLE = "colo_host_save_helper_default"
LOCAL = "LOCAL"


def distrib(path: str | Path) -> Path:
    """Where Xen's own is while ours has its place; dpkg-divert's usual name, where ours looks for it."""
    return Path(f"{path}.distrib")


def is_ours(link: str | None) -> bool:
    """Whether a link leads to our program, below whichever prefix."""
    return link is not None and link.endswith(f"/{PROGRAM}")


def link_of(path: Path) -> str | None:
    """Where a link points to; None when it is none."""
    return str(path.readlink()) if path.is_symlink() else None


def same_file(path: Path, other: Path) -> bool:
    """Whether one file has both names."""
    return path.is_file() and other.is_file() and path.samefile(other)


def classify(path: Path) -> str:
    """What xl of a release starts: ours, stock (Xen's own), other (somebody else's) or none."""
    if path.is_symlink():
        return "ours" if is_ours(link_of(path)) else "other"
    if not path.exists():
        return "none"
    kept = distrib(path)
    return "other" if kept.exists() and not same_file(path, kept) else "stock"


def release_of(path: str | Path) -> str:
    """The release of Xen that a place belongs to, like 4.17."""
    return Path(path).parent.parent.name.removeprefix("xen-")


def places() -> list[Path]:
    """The places on this host, also where a link leads nowhere or only a moved helper is left."""
    paths = [directory / NAME for directory in sorted(LIBRARIES.glob("xen-*/bin"))]
    return [path for path in paths if os.path.lexists(path) or distrib(path).exists()]


def describe() -> dict[str, str]:
    """What the preflight tells: the helper of each release of Xen. Starts nothing."""
    return {release_of(path): classify(path) for path in places()}


def places_linked_into(prefix: Path) -> list[str]:
    """The places where xl finds our program below ``prefix``: without it, xl could save nothing any more."""
    return [str(path) for path in places() if link_of(path) == str(prefix / PROGRAM)]


def require_program(module: AnsibleModule, program: Path, consequence: str) -> None:
    """Start our helper once without arguments: it has to say how it is used. ``consequence`` ends the sentence."""
    if not program.is_file():
        raise Failure(f"There is no {program} on {host_name()}: {consequence}")
    rc, out, err = module.run_command([str(program)], environ_update=ENVIRONMENT)
    if rc != USAGE_STATUS or program.name not in err:
        raise Failure(
            f"{program} does not start on {host_name()} (exit {rc}, not {USAGE_STATUS} and its usage): "
            f"{last_words(err or out)}; {consequence}"
        )


def last_words(text: str) -> str:
    """What a program said last, as a part of a sentence."""
    lines = text.strip().splitlines()
    return lines[-1].rstrip(".") if lines else "nothing"


def parse_diversions(text: str) -> dict[str, tuple[str, str]]:
    """``dpkg-divert --list``: path to where it was diverted, and the package that did, or LOCAL."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(?:local )?diversion of (\S+) to (\S+?)(?: by (\S+))?", line)
        if match:
            found[match[1]] = (match[2], match[3] or LOCAL)
    return found


class SaveHelper(DesiredState):
    """Keyed by place: what xl starts there, the link, who diverted the file whereto, and whether Xen's own is aside."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        self.program = Path(module.params["prefix"]) / PROGRAM
        self.present: bool = module.params["state"] == "present"
        self.dpkg_divert: str | None = module.get_bin_path("dpkg-divert")

    def read(self) -> dict[str, Any]:
        """What is at each place."""
        diversions = self._diversions()
        state = {}
        for name in sorted({*map(str, places()), *diversions}):
            path, aside = Path(name), distrib(name)
            diverted_to, diverted_by = diversions.get(name, (None, None))
            helper = classify(path)
            if helper == "stock" and diverted_by and not same_file(path, aside):
                helper = "other"  # Xen's own goes elsewhere, so this is none
            state[name] = {
                "helper": helper,
                "link": link_of(path),
                "diverted_to": diverted_to,
                "diverted_by": diverted_by,
                "kept": aside.exists(),
            }
        return state

    def desired(self, before: dict[str, Any]) -> dict[str, Any]:
        """Ours at every place, or at none that we had taken. Raises Failure where that would break something."""
        if not self.present:
            return {path: self._without(path, entry) for path, entry in before.items()}
        if not places():
            raise Failure(
                f"There is no {LIBRARIES}/{PLACES} on {host_name()}: install Debian's own Xen packages (xen-system-amd64)."
            )
        if self.dpkg_divert is None:
            raise Failure(
                f"There is no dpkg-divert on {host_name()}, so Xen's own save helper cannot be moved aside: "
                f"this needs Debian; set {VARIABLE}: false."
            )
        for path, entry in before.items():
            require_free(path, entry)
        # A dry run cannot start a helper whose release is only predicted, too.
        if not self.module.check_mode:
            require_program(
                self.module,
                self.program,
                "xl could save no VM with it. "
                f"Run playbooks/site.yml with a release whose helper starts, or set {VARIABLE}: false.",
            )
        return {path: self._with(path, entry) for path, entry in before.items()}

    def apply(self, before: dict[str, Any], desired: dict[str, Any]) -> None:
        """One place after the other."""
        for path, entry in desired.items():
            if before[path] == entry:
                continue
            if self.present:
                self._take(Path(path), before[path])
            else:
                self._give_back(Path(path), before[path])

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        """The helper of each release, and what was found that is none of ours."""
        return {
            "helpers": {release_of(path): entry["helper"] for path, entry in state.items()},
            "left_alone": [
                describe_other(path, entry) for path, entry in state.items() if is_foreign(path, entry)
            ],
        }

    def _with(self, path: str, before: dict[str, Any]) -> dict[str, Any]:
        if not Path(path).parent.is_dir():
            return before  # only a diversion is left of that release of Xen
        return {
            "helper": "ours",
            "link": str(self.program),
            "diverted_to": str(distrib(path)),
            "diverted_by": LOCAL,
            # Of a removed package nothing is left to keep; the diversion waits for its return.
            "kept": before["kept"] or before["helper"] == "stock",
        }

    def _without(self, path: str, before: dict[str, Any]) -> dict[str, Any]:
        """As before where nothing is ours."""
        if is_foreign(path, before):
            return before
        interrupted = before["kept"] and same_file(Path(path), distrib(path))
        if before["helper"] != "ours" and before["diverted_by"] is None and not interrupted:
            return before
        if not before["kept"] and Path(path).with_name("xl").exists():
            raise Failure(
                f"Xen's own save helper is neither at {path} nor at {distrib(path)} on {host_name()}: bring it back with "
                f"'apt install --reinstall xen-utils-{release_of(path)}', then run this again."
            )
        if self.dpkg_divert is None and before["diverted_by"]:
            raise Failure(f"There is no dpkg-divert on {host_name()} to take back the diversion of {path}.")
        helper = "stock" if before["kept"] else "none"
        return {"helper": helper, "link": None, "diverted_to": None, "diverted_by": None, "kept": False}

    def _take(self, path: Path, before: dict[str, Any]) -> None:
        """Put our link in the place of Xen's own helper."""
        aside = distrib(path)
        linked = before["helper"] == "stock" and not before["kept"]
        if linked:
            os.link(path, aside)
        if before["diverted_by"] is None:
            try:
                self._divert("--add", path)
            except Failure:
                if linked:
                    aside.unlink()
                raise
        switch_link(path, str(self.program))

    def _give_back(self, path: Path, before: dict[str, Any]) -> None:
        """Put Xen's own helper back into its place."""
        aside = distrib(path)
        if before["kept"] and before["helper"] != "stock":
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            os.link(aside, temporary)
            temporary.replace(path)
        if before["diverted_by"]:
            self._divert("--remove", path)
        if before["kept"]:
            aside.unlink()
        else:
            path.unlink(missing_ok=True)

    def _divert(self, action: str, path: Path) -> None:
        argv = ["--local", "--no-rename", "--divert", str(distrib(path)), action, str(path)]
        rc, out, err = self.module.run_command([self.dpkg_divert, *argv], environ_update=ENVIRONMENT)
        if rc:
            raise Failure(
                f"dpkg-divert {action} {path} failed on {host_name()}: {last_words(err or out)}. "
                "Nothing is half done: run this again when that is mended.",
                command=" ".join(["dpkg-divert", *argv]),
            )

    def _diversions(self) -> dict[str, tuple[str, str]]:
        if self.dpkg_divert is None:
            return {}
        argv = [self.dpkg_divert, "--list", str(LIBRARIES / PLACES)]
        rc, out, err = self.module.run_command(argv, environ_update=ENVIRONMENT)
        if rc:
            raise Failure(f"dpkg-divert on {host_name()} does not tell its diversions: {last_words(err)}.")
        return parse_diversions(out)


def is_foreign(path: str, entry: dict[str, Any]) -> bool:
    """Whether somebody else has changed which program is at a place."""
    elsewhere = entry["diverted_by"] is not None and (entry["diverted_to"], entry["diverted_by"]) != (
        str(distrib(path)),
        LOCAL,
    )
    return elsewhere or entry["helper"] == "other"


def describe_other(path: str, entry: dict[str, Any]) -> str:
    """A sentence on what somebody else did there."""
    if entry["diverted_by"]:
        by = "the administrator" if entry["diverted_by"] == LOCAL else f"the package {entry['diverted_by']}"
        return f"{path} on {host_name()} was diverted to {entry['diverted_to']} by {by}."
    if entry["link"]:
        return f"{path} on {host_name()} is a link to {entry['link']}."
    return f"{distrib(path)} on {host_name()} is another file than {path}, and no diversion made it."


def require_free(path: str, entry: dict[str, Any]) -> None:
    """Raise the sentence when our link would take somebody else's place."""
    if not is_foreign(path, entry):
        return
    real_file = entry["diverted_to"] == str(distrib(path)) and entry["diverted_by"] == LOCAL
    if real_file:
        what = f"a link to {entry['link']}" if entry["link"] else "a file that is not Xen's own"
        sentence = (
            f"{path} on {host_name()} is {what}, where our link should be. Move it away and run this again"
        )
    elif entry["diverted_by"]:
        sentence = f"{describe_other(path, entry)} Take that back (dpkg-divert --rename --remove {path}) and run this again"
    else:
        sentence = f"{describe_other(path, entry)} Move it away and run this again"
    raise Failure(f"{sentence}, or set {VARIABLE}: false.")
