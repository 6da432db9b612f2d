"""Maintenance as a state of one VM on one host."""

import json
from typing import Any

import pytest

from tests.unit.ansible.module_host import FakeHost, Runner, utility
from tests.unit.ansible.test_colo_vm import RUNNING, UNIT, write_config, write_state

REASON = "new disks"


@pytest.fixture
def asked(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A replicator that does as it is told, and what it was asked."""
    requests: list[dict[str, Any]] = []

    def request(_vm: str, verb: str, _timeout_s: float, **why: Any) -> dict[str, Any]:
        requests.append({"verb": verb, **why})
        write_state(host, "replicating", maintenance=why["reason"])
        return {"ok": True}

    monkeypatch.setattr(utility("gate"), "request", request)
    host.units[UNIT] = RUNNING
    write_config(host)
    write_state(host, "replicating", maintenance="")
    return requests


def test_it_begins_once_and_ends_once(run: Runner, asked: list[dict[str, Any]]) -> None:
    assert [run("colo_maintenance", name="h1", reason=REASON)["changed"] for _ in range(2)] == [True, False]
    ended = [run("colo_maintenance", name="h1", state="absent") for _ in range(2)]
    assert [result["changed"] for result in ended] == [True, False]
    assert ended[-1]["maintenance"] == ""
    assert asked == [
        {"verb": "maintenance", "reason": REASON, "forced": False},
        {"verb": "automatic", "reason": "", "forced": False},
    ]


def test_a_dry_run_asks_nobody(run: Runner, asked: list[dict[str, Any]]) -> None:
    result = run("colo_maintenance", name="h1", reason=REASON, check=True)
    assert (result["changed"], result["maintenance"]) == (True, REASON)
    assert REASON in json.dumps(result["diff"])
    assert asked == []


def test_who_confirms_is_heard_again_while_the_vm_is_silent(
    run: Runner, host: FakeHost, asked: list[dict[str, Any]]
) -> None:
    write_state(host, "asking", maintenance=REASON)
    assert run("colo_maintenance", name="h1", reason=REASON)["changed"] is False
    assert run("colo_maintenance", name="h1", reason=REASON, confirm="h1")["changed"] is True
    assert [one["forced"] for one in asked] == [True]


def test_an_end_is_never_forced(run: Runner, host: FakeHost, asked: list[dict[str, Any]]) -> None:
    write_state(host, "replicating", maintenance=REASON)
    assert run("colo_maintenance", name="h1", state="absent", confirm="h1")["changed"] is True
    assert asked == [{"verb": "automatic", "reason": "", "forced": False}]


@pytest.mark.parametrize(("confirm", "forced"), [("", False), ("h2", False), ("h1", True)])
def test_who_confirms_with_the_name_answers_for_it(
    run: Runner, asked: list[dict[str, Any]], confirm: str, forced: bool
) -> None:
    run("colo_maintenance", name="h1", reason=REASON, confirm=confirm)
    assert asked[0]["forced"] is forced


def test_what_the_replicator_refuses_is_said(
    run: Runner, host: FakeHost, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"ok": False, "code": "no_answer", "error": "The arbiter does not answer."}
    monkeypatch.setattr(utility("gate"), "request", lambda *_words, **_why: refusal)
    result = run("colo_maintenance", name="h1", reason=REASON)
    assert (result["failed"], result["msg"], result["code"]) == (True, refusal["error"], "no_answer")


def test_without_a_reason_or_a_replicator_it_says_so(run: Runner, host: FakeHost) -> None:
    assert "Say why h1 shall stay where it is" in run("colo_maintenance", name="h1")["msg"]
    assert (
        "no replicator on xa that could be told" in run("colo_maintenance", name="h1", reason=REASON)["msg"]
    )
    assert run("colo_maintenance", name="h1", state="absent")["changed"] is False
