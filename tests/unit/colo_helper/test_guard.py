"""What xendomains is kept from starting: in its own files, looked at by the shell that it is."""

from __future__ import annotations

import json
import subprocess

import pytest

from colo_helper.guard import boot, toolstack

#: How xendomains goes through its directories (xen-utils-common).
_LOOK = """shopt -s nullglob; . "$1"
for file in $XENDOMAINS_SAVE/*; do if [ -f $file ]; then cat "$file"; fi; done
for file in $XENDOMAINS_AUTO/*; do cat "$file"; done"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host that boots, with saved memory of h1 and h2, and configurations of h1 and h3; h1 and h4 are protected."""
    for name in ("vms", "save", "auto", "run", "state"):
        (tmp_path / name).mkdir()
    for name in ("h1", "h2"):
        (tmp_path / "save" / name).write_text(f"memory of {name}\n")
    for name in ("h1", "h3"):
        (tmp_path / "auto" / f"{name}.cfg").write_text(f'name = "{name}"\n')
    (tmp_path / "auto" / ".hidden").write_text('name = "h4"\n')
    (tmp_path / "settings").write_bytes(
        b"# \xe9, as a Latin-1 editor leaves it\n"
        b"export XENDOMAINS_SAVE='%(at)s/save'  # a comment\nTOP=%(at)s; XENDOMAINS_RESTORE=true\n"
        b'XENDOMAINS_AUTO="$TOP/auto"\n' % {b"at": str(tmp_path).encode()}
    )
    namer = tmp_path / "xen-init-name"
    namer.write_text('#!/bin/sh\nsed -n \'s/^name = "\\(.*\\)"$/\\1/p\' "$1"\n')
    namer.chmod(0o755)
    monkeypatch.setattr(toolstack, "_NAME", str(namer))
    monkeypatch.setattr(toolstack, "SETTINGS", tmp_path / "settings")
    monkeypatch.setattr(toolstack, "INSTEAD", tmp_path / "run" / ".xendomains")
    monkeypatch.setattr(toolstack, "ALLOWED", tmp_path / "run" / ".xen-auto")
    for name, directory in (("CONFIG", "vms/{vm}.json"), ("STATE_DIR", "state/{vm}")):
        monkeypatch.setattr(boot, name, str(tmp_path / directory))
    for name in ("h1", "h4"):
        (tmp_path / "vms" / f"{name}.json").write_text("{")  # what is in it is the replicator's matter
    return tmp_path


def started(host):
    """What xendomains starts, with the settings that its unit shows it."""
    instead = host / "run" / ".xendomains"
    settings = instead if instead.exists() else host / "settings"
    return subprocess.check_output(["bash", "-c", _LOOK, "look", str(settings)], text=True).splitlines()


def events(host):
    return [json.loads(line) for line in (host / "state" / "h1" / "events.jsonl").read_text().splitlines()]


def test_of_protected_vms_nothing_is_started_and_of_others_everything(host):
    assert started(host) == ["memory of h1", "memory of h2", 'name = "h1"', 'name = "h3"']
    assert boot.main() == 0
    assert started(host) == ["memory of h2", 'name = "h3"']
    saved = host / "save" / toolstack.HELD / "h1"
    assert saved.read_text() == "memory of h1\n"
    assert (host / "auto" / "h1.cfg").exists(), "operators' files stay as they are"
    assert not (host / "state" / "h4").exists(), "nothing would have started it"
    (event,) = events(host)
    assert event["event"] == "held"
    assert event["sentence"] == (
        f"xendomains does not start h1, which may run elsewhere. There is its memory as this host saved it, {saved} (xl "
        f"restore) and its configuration {host}/auto/h1.cfg (xl create)."
    )


def test_the_next_boot_holds_again_and_later_memory_takes_the_place_of_earlier(host):
    boot.main()
    (host / "save" / "h1").write_text("later\n")
    (host / "auto" / "h5.cfg").write_text('name = "h5"\n')
    boot.main()
    assert started(host) == ["memory of h2", 'name = "h3"', 'name = "h5"']
    assert (host / "save" / toolstack.HELD / "h1").read_text() == "later\n"


def test_a_vm_whose_name_cannot_be_read_is_not_started(host, capsys):
    (host / "auto" / "odd.cfg").write_text("name = what\n")
    boot.main()
    assert started(host) == ["memory of h2", 'name = "h3"']
    assert f"{host}/auto/odd.cfg is passed over: its VM's name cannot be read" in capsys.readouterr().err


def test_without_anything_of_a_protected_vm_xendomains_sees_its_own_settings(host):
    (host / "run" / ".xendomains").write_text("of a start that failed")
    for path in (host / "save" / "h1", host / "auto" / "h1.cfg"):
        path.unlink()
    boot.main()
    assert not (host / "run" / ".xendomains").exists()
    (host / "settings").unlink()
    boot.main()


def test_a_host_without_protected_vms_is_as_it_was(host):
    for path in (host / "vms").iterdir():
        path.unlink()
    boot.main()
    assert started(host) == ["memory of h1", "memory of h2", 'name = "h1"', 'name = "h3"']


@pytest.mark.parametrize("broken", ["save", "run"])
def test_what_cannot_be_held_is_an_error_by_which_xendomains_is_not_started(host, broken):
    if broken == "save":
        (host / "save" / toolstack.HELD).write_text("no directory")
    else:
        (host / "run").rmdir()
    with pytest.raises(OSError, match=r"File exists|No such file"):
        boot.main()


def test_a_full_disk_is_no_reason_not_to_hold(host, monkeypatch, capsys):
    def full(_path, _value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(boot, "append_line", full)
    boot.main()
    assert started(host) == ["memory of h2", 'name = "h3"']
    assert "an event was not kept" in capsys.readouterr().err
