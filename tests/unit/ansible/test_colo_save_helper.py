"""What xl saves VMs with: taken and given back with dpkg's own programs, on their own database and places."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from colo_helper.helper.main import stock_helper
from tests.unit.ansible.module_host import FakeHost, Runner, utility

USAGE = (2, "", "colo-save-helper: The first argument is '', neither --save-domain nor --restore-domain.\n")


class Xen:
    """The places of Xen's releases on the host, and dpkg's database of them."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.prefix = host.root / "opt"
        self.program = self.prefix / "current" / "bin" / "colo-save-helper"
        self.database = host.root / "dpkg"
        for name in ("info", "updates", "triggers"):
            (self.database / name).mkdir(parents=True)
        for name in ("status", "diversions"):
            (self.database / name).touch()
        self.before_divert: Callable[[], None] = lambda: None
        host.answers["dpkg-divert"] = self._divert
        host.answers["colo-save-helper"] = lambda _words: USAGE

    def _divert(self, words: list[str]) -> tuple[int, str, str]:
        if "--list" not in words:
            self.before_divert()
        return self.divert(*words[1:])

    def divert(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["dpkg-divert", f"--admindir={self.database}", *words],
            capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def place(self, release: str = "4.17") -> Path:
        return self.host.root / "lib" / f"xen-{release}" / "bin" / "libxl-save-helper"

    def install(self, release: str = "4.17", content: str = "stock 1") -> Path:
        """What dpkg does with a package that has the helper, with a real dpkg."""
        place = self.place(release)
        build = self.host.root / "build"
        control = build / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        fields = (
            "Version: 1",
            "Architecture: all",
            "Maintainer: nobody <n@example.org>",
            "Description: helper",
        )
        control.write_text("\n".join((f"Package: xen-utils-{release}", *fields)) + "\n")
        for name in ("xl", "libxl-save-helper"):
            file = build / place.relative_to("/").with_name(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755)
        package = f"{self.host.root}/package.deb"
        subprocess.run(["dpkg-deb", "--build", str(build), package], check=True, capture_output=True)
        options = [f"--admindir={self.database}", "--force-not-root,bad-path,unsafe-io", "--log=/dev/null"]
        subprocess.run(["dpkg", *options, "-i", package], check=True, capture_output=True)
        shutil.rmtree(build)
        return place

    def remove(self, release: str = "4.17") -> None:
        options = [f"--admindir={self.database}", "--force-not-root,bad-path,unsafe-io", "--log=/dev/null"]
        subprocess.run(["dpkg", *options, "-P", f"xen-utils-{release}"], check=True, capture_output=True)

    def install_ours(self) -> None:
        self.program.parent.mkdir(parents=True)
        self.program.write_text("ours")

    def diversions(self) -> str:
        return self.divert("--list")[1]

    def picture(self) -> dict[str, Any]:
        """Every file of Xen's, by name: where a link leads, or what is in it; and the diversions."""
        files = [path for path in (self.host.root / "lib").rglob("*") if path.is_symlink() or path.is_file()]
        return {
            **{str(path): str(path.readlink()) if path.is_symlink() else path.read_text() for path in files},
            "diversions": self.diversions(),
        }


@pytest.fixture
def xen(host: FakeHost) -> Iterator[Xen]:
    """One release of Xen, and ours."""
    xen = Xen(host)
    xen.install()
    xen.install_ours()
    return xen


@pytest.fixture
def converge(xen: Xen, run: Runner) -> Any:
    def call(state: str, **options: Any) -> dict[str, Any]:
        return run("colo_save_helper", state=state, prefix=str(xen.prefix), **options)

    return call


def test_ours_for_every_release_and_back_to_what_was(xen: Xen, converge: Any) -> None:
    xen.install("4.20")
    before = xen.picture()
    mode = stat.S_IMODE(xen.place().stat().st_mode)
    predicted = converge("present", check=True)
    assert predicted["changed"] is True
    assert xen.picture() == before

    result = converge("present")
    assert result["changed"] is True
    assert (result["diff"], result["helpers"]) == (predicted["diff"], predicted["helpers"])
    assert result["helpers"] == {"4.17": "ours", "4.20": "ours"}
    for release in ("4.17", "4.20"):
        place = xen.place(release)
        assert place.readlink() == xen.program
        assert Path(f"{place}.distrib").read_text() == "stock 1"
        assert f"local diversion of {place} to {place}.distrib\n" in xen.diversions()
    taken = xen.picture()
    assert converge("present")["changed"] is False

    predicted = converge("absent", check=True)
    assert predicted["changed"] is True
    assert xen.picture() == taken
    result = converge("absent")
    assert (result["changed"], result["diff"]) == (True, predicted["diff"])
    assert result["helpers"] == {"4.17": "stock", "4.20": "stock"}
    assert xen.picture() == before
    assert stat.S_IMODE(xen.place().stat().st_mode) == mode
    assert converge("absent")["changed"] is False


def test_nothing_is_touched_or_started_where_nothing_is_ours(xen: Xen, converge: Any) -> None:
    before = xen.picture()
    result = converge("absent")
    assert (result["changed"], result["helpers"], result["left_alone"]) == (False, {"4.17": "stock"}, [])
    assert xen.picture() == before
    assert [words[:2] for words in xen.host.calls] == [["dpkg-divert", "--list"]] * 2


def test_a_fresh_host_is_predicted(host: FakeHost, run: Runner) -> None:
    xen = Xen(host)
    xen.install()
    result = run("colo_save_helper", prefix=str(xen.prefix), check=True)
    assert (result["changed"], result["helpers"]) == (True, {"4.17": "ours"})
    assert not xen.program.exists()


def test_an_upgrade_of_xen_changes_its_own_helper_and_not_ours(xen: Xen, converge: Any) -> None:
    converge("present")
    place = xen.install(content="stock 2")
    assert place.readlink() == xen.program
    assert Path(f"{place}.distrib").read_text() == "stock 2"
    assert converge("present")["changed"] is False
    converge("absent")
    assert place.read_text() == "stock 2"


def test_a_new_release_of_xen_is_taken_too(xen: Xen, converge: Any) -> None:
    converge("present")
    xen.install("4.20")
    result = converge("present")
    assert (result["changed"], result["helpers"]) == (True, {"4.17": "ours", "4.20": "ours"})


def test_a_removed_release_of_xen_changes_nothing_and_is_cleaned_away(xen: Xen, converge: Any) -> None:
    xen.install("4.20")
    converge("present")
    xen.remove("4.17")
    assert converge("present")["changed"] is False
    xen.install("4.17", content="stock 3")
    assert xen.place().readlink() == xen.program
    xen.remove("4.17")
    assert converge("absent")["changed"] is True
    assert not xen.place().is_symlink()
    assert xen.diversions() == ""
    assert xen.place("4.20").read_text() == "stock 1"
    assert converge("absent")["changed"] is False


def test_another_prefix(xen: Xen, converge: Any, run: Runner) -> None:
    converge("present")
    other = xen.host.root / "other"
    shutil.copytree(xen.prefix, other)
    assert run("colo_save_helper", prefix=str(other))["changed"] is True
    assert xen.place().readlink() == other / "current" / "bin" / "colo-save-helper"
    assert converge("absent")["changed"] is True
    assert xen.place().read_text() == "stock 1"


@pytest.mark.parametrize("state", ["present", "absent"])
def test_there_is_a_helper_at_every_moment(
    xen: Xen, converge: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state == "absent":
        converge("present")
    place, seen = xen.place(), []

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(place.exists())
            try:
                return original(*arguments, **options)
            finally:
                seen.append(place.exists())

        monkeypatch.setattr(os, name, call)

    for name in ("link", "symlink", "replace", "rename", "unlink"):
        watched(name)
    xen.before_divert = lambda: seen.append(place.exists())
    assert converge(state)["changed"] is True
    assert len(seen) >= 5
    assert all(seen)


class KilledError(BaseException):
    """Not an error that anything handles."""


def kill_at(step: str, xen: Xen, patch: pytest.MonkeyPatch) -> None:
    """Let the module end where it comes to ``step``."""

    def killed(*_arguments: Any, **_options: Any) -> Any:
        raise KilledError

    def divert_then_killed(words: list[str]) -> tuple[int, str, str]:
        answer = xen.divert(*words[1:])
        return answer if "--list" in words else killed()

    if step == "before the diversion":
        patch.setattr(xen, "before_divert", killed)
    elif step == "after the diversion":
        patch.setitem(xen.host.answers, "dpkg-divert", divert_then_killed)
    else:
        patch.setattr(os, step, killed)


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("step", ["link", "before the diversion", "after the diversion", "replace", "unlink"])
def test_an_interrupted_run_leaves_a_helper_and_the_next_goes_on(
    xen: Xen, converge: Any, monkeypatch: pytest.MonkeyPatch, state: str, step: str
) -> None:
    """Killed at each step, then again with the same wish, and with the opposite one."""
    other = {"present": "absent", "absent": "present"}[state]
    for wish in (state, other):
        converge(other)
        start = xen.picture()

        with monkeypatch.context() as patch, contextlib.suppress(KilledError):
            kill_at(step, xen, patch)
            converge(state)
        assert xen.place().exists()
        result = converge(wish)
        assert "failed" not in result, result
        assert result["helpers"] == {"4.17": {"present": "ours", "absent": "stock"}[wish]}
        if wish == other:
            left = {path: what for path, what in xen.picture().items() if not Path(path).name.startswith(".")}
            assert left == start
        assert converge(wish)["changed"] is False


def refused(xen: Xen, converge: Any, before: dict[str, Any]) -> str:
    """The sentence of a refusal that touched nothing."""
    result = converge("present")
    assert result["failed"] is True
    assert xen.picture() == before
    sentence: str = result["msg"]
    return sentence


def test_a_helper_that_does_not_start_never_becomes_xls(xen: Xen, converge: Any) -> None:
    before = xen.picture()
    xen.host.answers["colo-save-helper"] = lambda _words: (1, "", "Traceback\nImportError: no GLIBC_2.36\n")
    assert refused(xen, converge, before) == (
        f"{xen.program} does not start on xa (exit 1, not 2 and its usage): ImportError: no GLIBC_2.36; "
        "xl could save no VM with it. Run playbooks/site.yml with a release whose helper starts, "
        "or set colo_host_save_helper_default: false."
    )
    # The interpreter, too, ends with 2 when it does not find what it shall start.
    xen.host.answers["colo-save-helper"] = lambda _words: (2, "", "/usr/bin/python3: can't open file\n")
    assert "(exit 2, not 2 and its usage): /usr/bin/python3: can't open file; " in refused(
        xen, converge, before
    )


def test_a_release_without_a_save_helper(xen: Xen, converge: Any) -> None:
    xen.program.unlink()
    assert refused(xen, converge, xen.picture()).startswith(
        f"There is no {xen.program} on xa: xl could save no VM with it. "
    )


def test_not_debian(xen: Xen, converge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda *_arguments, **_options: None)
    assert refused(xen, converge, xen.picture()) == (
        "There is no dpkg-divert on xa, so Xen's own save helper cannot be moved aside: this needs Debian; "
        "set colo_host_save_helper_default: false."
    )
    assert converge("absent")["changed"] is False


def test_no_xen_at_all(host: FakeHost, run: Runner) -> None:
    xen = Xen(host)
    result = run("colo_save_helper", prefix=str(xen.prefix))
    assert result["msg"] == (
        f"There is no {host.root}/lib/xen-*/bin/libxl-save-helper on xa: "
        "install Debian's own Xen packages (xen-system-amd64)."
    )
    assert run("colo_save_helper", state="absent", prefix=str(xen.prefix))["changed"] is False


@pytest.mark.parametrize(
    ("owner", "words"),
    [("the administrator", ["--local", "--divert", "PLACE.mine"]),
     ("the package wrapper", ["--package", "wrapper", "--divert", "PLACE.distrib"])],
)  # fmt: skip
def test_somebody_elses_diversion(xen: Xen, converge: Any, owner: str, words: list[str]) -> None:
    place = xen.place()
    words = [word.replace("PLACE", str(place)) for word in words]
    xen.divert(*words, "--rename", "--add", str(place))
    place.write_text("a wrapper")
    before = xen.picture()
    named = f"{place} on xa was diverted to {words[-1]} by {owner}."
    assert refused(xen, converge, before) == (
        f"{named} Take that back (dpkg-divert --rename --remove {place}) and run this again, "
        "or set colo_host_save_helper_default: false."
    )
    result = converge("absent")
    assert (result["changed"], result["helpers"], result["left_alone"]) == (False, {"4.17": "other"}, [named])
    assert xen.picture() == before


def test_a_real_file_where_the_link_should_be(xen: Xen, converge: Any) -> None:
    place = xen.place()
    xen.divert("--local", "--divert", f"{place}.distrib", "--rename", "--add", str(place))
    place.write_text("a wrapper")
    before = xen.picture()
    assert refused(xen, converge, before) == (
        f"{place} on xa is a file that is not Xen's own, where our link should be. Move it away and run this again, "
        "or set colo_host_save_helper_default: false."
    )
    assert converge("absent")["changed"] is False
    assert xen.picture() == before
    place.unlink()
    assert converge("present")["changed"] is True


def test_somebody_elses_link(xen: Xen, converge: Any) -> None:
    place = xen.place()
    place.rename(f"{place}.real")
    place.symlink_to(f"{place}.real")
    assert refused(xen, converge, xen.picture()) == (
        f"{place} on xa is a link to {place}.real. Move it away and run this again, "
        "or set colo_host_save_helper_default: false."
    )


def test_a_file_where_xens_own_would_be_kept(xen: Xen, converge: Any) -> None:
    place = xen.place()
    Path(f"{place}.distrib").write_text("a copy")
    before = xen.picture()
    assert refused(xen, converge, before) == (
        f"{place}.distrib on xa is another file than {place}, and no diversion made it. Move it away and run this again, "
        "or set colo_host_save_helper_default: false."
    )
    assert converge("absent")["changed"] is False
    assert xen.picture() == before


def test_xens_own_is_lost(xen: Xen, converge: Any) -> None:
    converge("present")
    place = xen.place()
    Path(f"{place}.distrib").unlink()
    result = converge("absent")
    assert result["msg"] == (
        f"Xen's own save helper is neither at {place} nor at {place}.distrib on xa: bring it back with "
        "'apt install --reinstall xen-utils-4.17', then run this again."
    )
    xen.install()
    assert converge("absent")["changed"] is True
    assert place.read_text() == "stock 1"


def test_dpkg_refuses(xen: Xen, converge: Any) -> None:
    before = xen.picture()
    xen.host.answers["dpkg-divert"] = lambda words: (
        (0, "", "")
        if "--list" in words
        else (2, "", "dpkg-divert: error: cannot create new file: Read-only\n")
    )
    result = converge("present")
    assert result["msg"] == (
        f"dpkg-divert --add {xen.place()} failed on xa: dpkg-divert: error: cannot create new file: Read-only. "
        "Nothing is half done: run this again when that is mended."
    )
    assert xen.picture() == before
    xen.host.answers["dpkg-divert"] = lambda _words: (2, "", "dpkg-divert: error: corrupt\n")
    assert (
        converge("absent")["msg"]
        == "dpkg-divert on xa does not tell its diversions: dpkg-divert: error: corrupt."
    )


def test_the_preflight_says_which(xen: Xen, converge: Any, run: Runner) -> None:
    assert run("colo_preflight_info")["save_helper"] == {"4.17": "stock"}
    converge("present")
    assert run("colo_preflight_info")["save_helper"] == {"4.17": "ours"}


def test_colo_helper_stays_while_xl_saves_with_it(xen: Xen, converge: Any, run: Runner) -> None:
    converge("present")
    result = run("colo_helper", state="absent", prefix=str(xen.prefix))
    assert result["msg"] == (
        f"xl on xa saves VMs with colo_helper ({xen.place()} points into {xen.prefix}): "
        "set colo_host_save_helper_default: false and run playbooks/site.yml first."
    )
    assert xen.program.exists()
    converge("absent")
    xen.program.unlink()
    assert "failed" not in run("colo_helper", state="absent", prefix=str(xen.prefix))


@pytest.mark.parametrize("diverted", [False, True])
def test_ours_looks_for_xens_own_where_the_module_keeps_it(
    monkeypatch: pytest.MonkeyPatch, diverted: bool
) -> None:
    """What a PV guest is handed over to."""
    module = utility("save_helper")
    place = module.LIBRARIES / module.PLACES.replace("*", "4.17")
    monkeypatch.setattr(os.path, "exists", lambda path: diverted and path == str(module.distrib(place)))
    assert stock_helper("4.17") == str(module.distrib(place) if diverted else place)
