"""The other host is switched off, or it is said why not; the programs are real ones."""

import json
import sys

import pytest

from colo_helper.arbiter.fencing import FencingError, fence, load_fencing, parse_fencing

OFF = [sys.executable, "-c", "pass"]
SECRET = "not-to-be-shown"


def program(code):
    return [sys.executable, "-c", code]


def made(*devices, **more):
    return parse_fencing({"format": 1, "devices": list(devices), **more}, "xa")


def test_a_program_is_told_whom_to_switch_off(tmp_path):
    code = f"import os; open({str(tmp_path / 'said')!r}, 'w').write(os.environ['COLO_FENCE_HOST'] + os.environ['COLO_VM'])"
    fenced = fence(made({"command": program(code)}), "h1")
    assert (fenced.off, fenced.may_go_on) == (True, True)
    assert fenced.sentence.startswith("xa was switched off by python")
    assert (tmp_path / "said").read_text() == "xah1"


def test_the_next_device_is_tried_and_what_failed_is_told():
    code = "import sys; sys.exit('no such outlet')"
    fenced = fence(made({"command": ["/nowhere/fence"]}, {"command": program(code)}, {"command": OFF}), "h1")
    assert fenced.off
    assert "fence: No such file or directory" in fenced.sentence
    assert "ended with 1, no such outlet" in fenced.sentence


@pytest.mark.parametrize("required", [True, False])
def test_a_host_that_cannot_be_switched_off(required):
    slow = {"command": program("import time; time.sleep(60)"), "timeout_s": 1}
    fenced = fence(made(slow, required=required), "h1")
    assert (fenced.off, fenced.may_go_on) == (False, not required)
    assert "not done after 1 s" in fenced.sentence
    assert ("playbooks/failover.yml" in fenced.sentence) is required


def test_an_agent_reads_its_options(tmp_path, monkeypatch):
    agent = tmp_path / "fence_test"
    agent.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'said')!r}, 'w').write(sys.stdin.read())\n"
    )
    agent.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = {"ip": "192.0.2.1", "lanplus": True, "port": 3, "password": SECRET, "action": "reboot"}
    assert fence(made({"agent": "fence_test", "options": options}), "h1").off
    assert sorted((tmp_path / "said").read_text().splitlines()) == [
        "action=off", "ip=192.0.2.1", "lanplus=1", f"password={SECRET}", "port=3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([], "format 1"),
        ({"format": 2}, "format 1"),
        ({"format": 1}, "'devices'"),
        ({"format": 1, "devices": []}, "'devices'"),
        ({"format": 1, "devices": [{}]}, "devices[0]"),
        ({"format": 1, "devices": [{"command": OFF}, {"command": OFF, "agent": "fence_a"}]}, "devices[1]"),
        ({"format": 1, "devices": [{"command": "off"}]}, "devices[0].command"),
        ({"format": 1, "devices": [{"command": []}]}, "devices[0].command"),
        ({"format": 1, "devices": [{"command": OFF, "timeout_s": 0}]}, "devices[0].timeout_s"),
        ({"format": 1, "devices": [{"command": OFF, "timeout_s": True}]}, "devices[0].timeout_s"),
        ({"format": 1, "devices": [{"agent": "/bin/sh"}]}, "devices[0].agent"),
        ({"format": 1, "devices": [{"agent": "fence_a", "options": []}]}, "devices[0].options"),
        ({"format": 1, "devices": [{"agent": "fence_a", "options": {"password": [SECRET]}}]}, "'password'"),
        (
            {"format": 1, "devices": [{"agent": "fence_a", "options": {"password": f"a\n{SECRET}"}}]},
            "'password'",
        ),
        ({"format": 1, "devices": [{"command": OFF}], "required": "yes"}, "'required'"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_is(value, word):
    with pytest.raises(FencingError) as error:
        parse_fencing(value, "xa")
    assert word in str(error.value)
    assert SECRET not in str(error.value)


def test_a_file_is_read_and_named_when_it_is_wrong(tmp_path):
    path = tmp_path / "xa.json"
    assert load_fencing(path, "xa") is None
    path.write_text(json.dumps({"format": 1, "devices": [{"command": OFF}]}))
    assert load_fencing(path, "xa").host == "xa"
    for text in ("{", "{}"):
        path.write_text(text)
        with pytest.raises(FencingError, match=r"xa\.json"):
            load_fencing(path, "xa")
