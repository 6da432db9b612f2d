"""Who may run, from one look."""

import dataclasses
import json

import pytest

from colo_helper.arbiter.decisions import Do, handed_over, primary_lost, protected_by, secondary_lost
from colo_helper.arbiter.record import (
    ALONE,
    PROTECTED,
    Lease,
    Record,
    RecordError,
    Seen,
    pack_lease,
    pack_record,
    parse_lease,
    parse_record,
)
from colo_helper.arbiter.times import DRIFT, LONGEST_S, PAUSING_S, SHORTEST_S, TimesError, times

HERE, THERE = "xa", "xb"
PAIR = Record("h1", HERE, 4, PROTECTED, "xb has a copy of h1", 1000, THERE, "g1")
LEASE = Lease(HERE, 4, 77)
GUARDED = Seen(PAIR, 9, LEASE)
LAPSED = Seen(PAIR, 9)


def of_alone(owner):
    return Seen(Record("h1", owner, 5, ALONE, "xb was lost", 1000), 12)


def test_what_nobody_has_asked_for_belongs_to_who_has_the_guest():
    assert secondary_lost(Seen(), HERE, "h1", "gone", 5).do is Do.RUN
    ruling = secondary_lost(Seen(), HERE, "h1", "gone", 5, given=True)
    assert ruling.do is Do.WAIT
    assert "it has lost what it knew" in ruling.sentence
    first = protected_by(Seen(), HERE, "h1", THERE, "g1", 5)
    assert first.record == Record("h1", HERE, 1, PROTECTED, "xb has a copy of h1", 5, THERE, "g1")
    never = primary_lost(Seen(), THERE, "h1", "g1", "silence", 5)
    assert never.do is Do.STOP
    assert "nobody was given the right" in never.sentence


@pytest.mark.parametrize("seen", [GUARDED, LAPSED], ids=["its lease lasts", "its lease has ended"])
def test_the_owner_that_lost_its_secondary_takes_its_right_back_before_it_goes_on(seen):
    ruling = secondary_lost(seen, HERE, "h1", "xb was lost", 5)
    assert (ruling.do, ruling.record) == (
        Do.CLAIM,
        Record("h1", HERE, 5, ALONE, "xb was lost", 5),
    )


def test_the_owner_that_is_alone_needs_nobody():
    assert secondary_lost(of_alone(HERE), HERE, "h1", "again", 5).do is Do.RUN


def test_a_secondary_waits_for_the_lease_of_its_primary_to_end():
    ruling = primary_lost(GUARDED, THERE, "h1", "g1", "silence", 5)
    assert (ruling.do, ruling.sentence) == (
        Do.WAIT,
        "xa may still let output of h1 leave: its lease has not ended.",
    )
    after = primary_lost(LAPSED, THERE, "h1", "g1", "silence", 5)
    assert (after.do, after.record) == (Do.CLAIM, Record("h1", THERE, 5, ALONE, "silence", 5))


@pytest.mark.parametrize(
    "seen",
    [
        of_alone(HERE),
        Seen(dataclasses.replace(PAIR, generation="g0"), 9),
        Seen(dataclasses.replace(PAIR, secondary="xc"), 9),
    ],
    ids=["its primary goes on alone", "a copy of before", "another host's"],
)
def test_a_copy_that_is_not_what_the_vm_was_protected_by_never_runs(seen):
    ruling = primary_lost(seen, THERE, "h1", "g1", "silence", 5)
    assert ruling.do is Do.STOP
    assert ruling.sentence.startswith("h1 runs on xa (")


def test_who_has_taken_over_is_the_owner_however_often_it_asks():
    assert primary_lost(of_alone(THERE), THERE, "h1", "g1", "silence", 5).do is Do.RUN


@pytest.mark.parametrize("decide", [secondary_lost, lambda *of: handed_over(*of[:3], THERE, of[-1])])
def test_an_owner_that_was_succeeded_stops(decide):
    ruling = decide(of_alone(THERE), HERE, "h1", "xb was lost", 5)
    assert (ruling.do, ruling.sentence) == (Do.STOP, "h1 is xb's since epoch 5 (xb was lost).")
    assert protected_by(of_alone(THERE), HERE, "h1", THERE, "g2", 5).do is Do.STOP


def test_an_heir_owns_the_vm_before_it_runs():
    ruling = handed_over(GUARDED, HERE, "h1", THERE, 5)
    assert (ruling.do, ruling.record) == (
        Do.CLAIM,
        Record("h1", THERE, 5, ALONE, "h1 was handed over by xa", 5, given_by="xa"),
    )


@pytest.mark.parametrize("lease_s", [SHORTEST_S, 5, 10, 60, LONGEST_S])
def test_an_owner_stops_before_its_lease_ends_even_with_the_slowest_clock(lease_s):
    of = times(lease_s)
    assert 0 < of.renew_s < of.mute_s < of.still_s
    assert (of.still_s + PAUSING_S) * (1 + DRIFT) < lease_s
    assert of.mute_s - of.renew_s > 1, "a renewal may take its time, or fail once"


@pytest.mark.parametrize("lease_s", [SHORTEST_S - 1, 0, -5, LONGEST_S + 1])
def test_a_lease_that_makes_no_sense_is_refused(lease_s):
    with pytest.raises(TimesError, match=f"A lease of {lease_s} s makes no sense"):
        times(lease_s)


def test_what_is_kept_can_be_read_again():
    assert parse_record(pack_record(PAIR)) == PAIR
    before = json.loads(pack_record(PAIR))
    del before["given_by"]  # as a release before this one writes it
    assert parse_record(json.dumps(before).encode()) == PAIR
    assert parse_lease(pack_lease(HERE, 4), 77) == LEASE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2}',
        b'{"format": 1, "vm": "h1"}',
        pack_record(dataclasses.replace(PAIR, mode="both")),
        pack_record(dataclasses.replace(PAIR, epoch=0)),
        pack_record(dataclasses.replace(PAIR, owner="")),
        pack_record(dataclasses.replace(PAIR, epoch="4")),
    ],
)
def test_what_cannot_be_believed_is_an_error(data):
    with pytest.raises(RecordError):
        parse_record(data)
    with pytest.raises(RecordError):
        parse_lease(data if b"vm" not in data else b'{"format": 1, "holder": 7}', 1)
