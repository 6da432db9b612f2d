from lab.recipe import RECIPES, recipe_for
from lab.sources import parse_targets

TARGETS = """\
http://mirror.example/debian/|bookworm|main
http://mirror.example/debian/|bookworm|contrib
http://mirror.example/debian/|bookworm-updates|main
http://mirror.example/security/|bookworm-security|main
https://other.example/apt/|nodistro|main
https://other.example/apt/|sdk-bookworm|main
"""


def test_only_debian_suites_are_taken_and_each_once():
    suites = parse_targets(TARGETS, "bookworm", "bookworm")
    assert [(s.uri, s.suite) for s in suites] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/security", "bookworm-security"),
    ]


def test_another_release_comes_from_the_same_mirrors():
    suites = parse_targets(TARGETS, "bookworm", "trixie")
    assert [s.suite for s in suites] == ["trixie", "trixie-updates", "trixie-security"]


def test_a_source_names_its_keyring():
    stanza = parse_targets(TARGETS, "bookworm", "bookworm")[0].deb822("/key.gpg")
    assert "Suites: bookworm\n" in stanza
    assert "Signed-By: /key.gpg\n" in stanza


def test_releases_do_not_share_a_layer():
    assert len({r.base_digest for r in RECIPES.values()}) == len(RECIPES)
    assert len({r.image_digest for r in RECIPES.values()}) == len(RECIPES)
    assert recipe_for(12).image_digest == recipe_for(12).image_digest
