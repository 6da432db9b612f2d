"""The fault campaign itself: it goes on where it was killed, and it finds what was planted."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import pytest

from tests.chaos.campaign import Campaign, CampaignError, run
from tests.chaos.emulated.ground import EmulatedGround
from tests.chaos.ground import NOBODY, OTHER, SAME, Outcome
from tests.chaos.journal import Journal, JournalError, read
from tests.chaos.plan import KINDS, STEPS, fault
from tests.chaos.report import report
from tests.chaos.witness import Heard, Witness

ABOUT = {"ground": "none", "seed": 1, "plant": ""}


def outcome(number, **changes):
    values = {
        "label": "freeze, long, primary",
        "sentence": "it freezes",
        "runs": SAME,
        "silence_s": 1.5,
        "took_ms": 20,
        "cause": "It was silent.",
    }
    return Outcome(number, **{**values, **changes})


# ------------------------------------------------------------------------------------------------------- the plan


def test_a_fault_is_known_by_its_number():
    assert [fault(1, number) for number in range(50)] == [fault(1, number) for number in range(50)]
    assert fault(1, 3) != fault(2, 3)


def test_every_kind_meets_every_step():
    met = Counter(
        (one.kind, one.activity, one.step) for one in (fault(1, number) for number in range(100_000))
    )
    for kind in KINDS:
        for activity, steps in STEPS.items():
            for _, step in steps:
                assert met[kind, activity, step] > 0, (kind, activity, step)


# ---------------------------------------------------------------------------------------------------- the witness


def hears(*answers):
    """A witness of guests that said 1, 2, 3, ... one after the other, and of what the bridge heard: (host, token)."""
    witness = Witness()
    for token in range(1, 9):
        witness.said(token, token - 1)
    witness.said(20, 3)  # a copy goes on from what it had when 3 was said
    for at_s, (host, token) in enumerate(answers):
        witness.hear(Heard(at_s, host, token))
    return witness


def test_what_is_lost_on_the_way_or_overtaken_is_no_harm():
    assert hears(("xa", 1), ("xa", 4), ("xa", 3), ("xa", 8)).broken == []


def test_a_takeover_from_what_was_heard_is_no_harm():
    assert hears(("xa", 2), ("xa", 3), ("xb", 20)).broken == []


def test_a_takeover_that_undoes_an_answer_is_found():
    (found,) = hears(("xa", 4), ("xb", 20)).broken
    assert found == "What a client had heard is undone: xb says 20 and knows nothing of 4 (xa)."


def test_two_that_speak_are_found():
    (found,) = hears(("xa", 3), ("xb", 20), ("xa", 3)).broken
    assert found == "Both copies speak: xa says 3 after another one had become the VM."


def test_who_was_made_a_copy_again_may_become_the_vm_again():
    witness = hears(("xa", 3), ("xb", 20))
    witness.may_speak("xa")
    witness.said(21, 20)
    witness.hear(Heard(9.0, "xa", 21))
    assert witness.broken == []
    assert witness.silence_s == 8.0


# ----------------------------------------------------------------------------------------- journal, report, campaign


def test_a_journal_goes_on_behind_a_line_that_was_not_written_to_its_end(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    journal.add(outcome(0))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"number": 1, "lab')
    journal = Journal(path, ABOUT)
    assert journal.done == {0}
    journal.add(outcome(1, exceptions=("Both copies speak.",)))
    journal.close()
    assert list(read(path)) == [outcome(0), outcome(1, exceptions=("Both copies speak.",))]


def test_a_journal_of_another_campaign_is_refused(tmp_path):
    Journal(tmp_path / "journal", ABOUT).close()
    with pytest.raises(JournalError, match="name another file"):
        Journal(tmp_path / "journal", {**ABOUT, "seed": 2})


def test_the_report_has_a_row_for_each_kind_and_a_command_for_each_exception():
    found = [
        outcome(0),
        outcome(1, silence_s=4.0, runs=OTHER),
        outcome(2, label="cut data>", runs=NOBODY, exceptions=("Both copies speak.",)),
    ]
    text = report("A campaign", found, "repeat --only {number}")
    assert "| freeze, long, primary | 2 | 1 | 1 | 0 | 1.5 | 4.0 | 4.0 | 0 |" in text
    assert "| cut data> | 1 | 0 | 0 | 1 | 0.0 | 0.0 | 0.0 | 1 |" in text
    assert "- Both copies speak.\n" in text
    assert "    repeat --only 2\n" in text
    assert "3 faults, 1 with exceptions" in text


class Ground:
    """One that fails at some numbers, each of them once for each time it is named."""

    fails: list[int] = []  # noqa: RUF012 (of one test)

    def run(self, one):
        if one.number in self.fails:
            self.fails.remove(one.number)
            raise RuntimeError("It broke.")
        return outcome(one.number)

    def close(self):
        pass


def test_a_ground_that_fails_is_made_anew(monkeypatch):
    monkeypatch.setattr(Ground, "fails", [1, 1, 2])
    assert [one.number for one in run(1, range(4), Ground)] == [0, 1, 2, 3]


def test_a_ground_that_fails_again_and_again_ends_the_campaign(monkeypatch, tmp_path):
    monkeypatch.setattr(Ground, "fails", [2] * 9)
    journal = Journal(tmp_path / "journal", ABOUT)
    with pytest.raises(CampaignError, match="failed 3 times in a row"):
        Campaign(1, 4, Ground, 1, print).run(journal)
    assert journal.done == {0, 1}


def test_jobs_share_the_numbers(tmp_path):
    journal = Journal(tmp_path / "journal", ABOUT)
    journal.add(outcome(3))
    Campaign(1, 20, Ground, 3, lambda _outcome: None).run(journal)
    journal.close()
    assert sorted(one.number for one in read(tmp_path / "journal")) == list(range(20))


# --------------------------------------------------------------------------------------------- the emulated ground


def test_a_few_faults_of_many_kinds_are_survived():
    outcomes = list(run(1, range(20), EmulatedGround))
    assert [one for one in outcomes if one.exceptions] == []
    assert {one.runs for one in outcomes} >= {SAME, OTHER}


def test_an_output_deadline_behind_the_lease_is_found():
    """Those of the plan's faults that must show it: the owner freezes with the word in its hand that output may leave."""
    telling = (
        number
        for number in itertools.count()
        if (one := fault(1, number)).kind == "freeze"
        and one.lasting == "long"
        and (one.target, one.activity) == ("primary", "checkpoint")
        and (one.step, one.when) == ("line.RECEIVED<", "after")
    )
    numbers = []  # on a machine that is busy not each of them meets the moment
    with closing(run(1, itertools.islice(telling, 40), lambda: EmulatedGround(late=True))) as planted:
        for one in planted:
            numbers.append(one.number)
            if any(text.startswith("Both copies speak: ") for text in one.exceptions):
                break
        else:
            pytest.fail(f"none of {len(numbers)} faults has shown it")
    assert [one.exceptions for one in run(1, numbers, EmulatedGround)] == [()] * len(numbers)


def test_a_campaign_that_was_killed_goes_on(tmp_path):
    journal, text = tmp_path / "journal", tmp_path / "report"
    command = [sys.executable, "-m", "tests.chaos", "--faults", "6", "--seed", "1"]
    command += ["--journal", str(journal), "--report", str(text)]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = journal.read_bytes()
    assert subprocess.run(command, check=False).returncode == 0
    assert journal.read_bytes().startswith(before)
    assert [one.number for one in read(journal)] == list(range(6))
    assert "6 faults, 0 with exceptions" in text.read_text()
