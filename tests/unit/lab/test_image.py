"""The cache: a layer is whole or not there."""

from types import SimpleNamespace

import pytest

import lab.image
from lab.errors import LabError
from lab.recipe import recipe_for


def builds(monkeypatch, outcome):
    made = []

    def run(script, variables, _log):
        made.append(script.name)
        outcome(script, variables)

    monkeypatch.setattr(lab.image, "_run_isolated", run)
    monkeypatch.setattr(
        lab.image, "debian_suites", lambda _codename: [SimpleNamespace(uri="u", deb822=lambda _k: "s")]
    )
    monkeypatch.setattr(lab.image, "acquire_settings", lambda: "")
    return made


def test_an_image_is_built_once(tmp_path, monkeypatch):
    made = builds(monkeypatch, lambda _s, _v: None)
    one = lab.image.ensure_image(recipe_for(12), tmp_path, print)
    two = lab.image.ensure_image(recipe_for(12), tmp_path, print)
    assert one == two
    assert made == ["build-base.sh", "build-image.sh"]


def test_a_failed_build_leaves_nothing_and_is_tried_again(tmp_path, monkeypatch):
    def fail(script, _variables):
        if script.name == "build-image.sh":
            raise LabError("no space")

    made = builds(monkeypatch, fail)
    for _ in range(2):
        with pytest.raises(LabError, match="no space"):
            lab.image.ensure_image(recipe_for(12), tmp_path, print)
    assert made == ["build-base.sh", "build-image.sh", "build-image.sh"], "the base is kept"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(("building", "image"))] == []


def test_what_a_killed_build_left_is_removed(tmp_path, monkeypatch):
    builds(monkeypatch, lambda _s, _v: None)
    (tmp_path / f"building-base-{recipe_for(12).base_digest}" / "rootfs").mkdir(parents=True)
    lab.image.ensure_image(recipe_for(12), tmp_path, print)
    assert not list(tmp_path.glob("building-*"))


def test_a_full_disk_is_named_before_anything_is_made(tmp_path, monkeypatch):
    made = builds(monkeypatch, lambda _s, _v: None)
    monkeypatch.setattr(lab.image.shutil, "disk_usage", lambda _p: SimpleNamespace(free=100 * 2**20))
    with pytest.raises(LabError, match="has 100 MiB free and the image takes up to 5120 MiB"):
        lab.image.ensure_image(recipe_for(12), tmp_path, print)
    assert made == []


def test_a_failing_script_is_quoted(tmp_path):
    script = tmp_path / "broken.sh"
    script.write_text("echo the mirror is gone >&2; exit 7\n")
    with pytest.raises(LabError, match=r"broken.sh failed with exit code 7(.|\n)*the mirror is gone"):
        lab.image._run_isolated(script, {}, tmp_path / "log")
