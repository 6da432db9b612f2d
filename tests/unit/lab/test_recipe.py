import pytest

import lab.recipe
from lab.errors import LabError
from lab.recipe import recipe_for


def test_a_changed_file_changes_the_image_but_not_the_base(tmp_path, monkeypatch):
    (tmp_path / "build-base.sh").write_text("base")
    (tmp_path / "guest").write_text("one")
    monkeypatch.setattr(lab.recipe, "FILES", tmp_path)
    recipe = recipe_for(12)
    base, image = recipe.base_digest, recipe.image_digest
    (tmp_path / "guest").write_text("two")
    assert recipe.base_digest == base
    assert recipe.image_digest != image


def test_a_changed_mode_changes_the_image(tmp_path, monkeypatch):
    (tmp_path / "build-base.sh").write_text("base")
    monkeypatch.setattr(lab.recipe, "FILES", tmp_path)
    before = recipe_for(12).image_digest
    (tmp_path / "build-base.sh").chmod(0o755)
    assert recipe_for(12).image_digest != before


def test_an_unknown_release_is_named():
    with pytest.raises(LabError, match="no recipe for Debian 11; it has 12, 13"):
        recipe_for(11)
