"""One host's right, with an arbiter in memory and a clock that the tests turn."""

import threading

import pytest

from colo_helper.arbiter.decisions import Do
from colo_helper.arbiter.emulated import EmulatedArbiter, EmulatedStore
from colo_helper.arbiter.interface import ArbiterError
from colo_helper.arbiter.record import ALONE, PROTECTED
from colo_helper.arbiter.tenure import Tenure
from colo_helper.arbiter.times import Times
from tests.unit.colo_helper.replication_pair import eventually

TIMES = Times(lease_s=10, renew_s=0.01, mute_s=7, still_s=9)


class World:
    """Two hosts, one arbiter, one clock."""

    def __init__(self):
        self.now = 1000.0
        self.store = EmulatedStore(lambda: self.now)
        self.arbiters = {host: EmulatedArbiter(self.store) for host in ("xa", "xb")}
        self.said, self.lost = [], []
        self.renewals = threading.Semaphore(0)
        self.tenures = {host: self.tenure(host) for host in self.arbiters}

    def tenure(self, host):
        arbiter = self.arbiters[host]

        def say(event, sentence):
            self.said.append((host, event, sentence))

        return Tenure(arbiter, "h1", host, TIMES, say, self.lost.append, lambda: self.now)

    def kept(self):
        return self.store.read("h1").record

    def sentences(self, event):
        return [sentence for _, said, sentence in self.said if said == event]

    def renewed(self):
        """Whether a renewal that was asked for now has been granted."""
        return self.tenures["xa"]._asked_s == self.now


@pytest.fixture
def world():
    made = World()
    yield made
    for tenure in made.tenures.values():
        tenure.close()


@pytest.fixture
def pair(world):
    """xa protects h1, xb has a copy."""
    assert world.tenures["xa"].alone("It starts.").do is Do.RUN
    assert world.tenures["xa"].protect("xb", "g1").do is Do.RUN
    return world


def test_there_is_no_right_before_the_arbiter_was_asked(world):
    ours = world.tenures["xa"]
    assert not ours.permits()
    assert ours.must_stand_still()
    world.arbiters["xa"].cut = True
    with pytest.raises(ArbiterError):
        ours.alone("It starts.")
    assert not ours.permits()
    world.arbiters["xa"].cut = False
    assert ours.alone("It starts.").do is Do.RUN
    assert ours.permits()
    assert world.kept() is None, "nobody has to write down what is nobody else's"


def test_a_lease_that_is_renewed_lasts(pair):
    ours = pair.tenures["xa"]
    for _ in range(20):
        pair.now += 6
        eventually(pair.renewed, "renewed")
        assert ours.permits()
    assert pair.sentences("lease") == []
    assert pair.tenures["xb"].take_over("g1", "silence").do is Do.WAIT


def test_an_owner_without_an_arbiter_is_mute_then_still_then_succeeded(pair):
    ours, theirs = pair.tenures["xa"], pair.tenures["xb"]
    eventually(pair.renewed, "renewed")
    pair.arbiters["xa"].cut = True
    pair.now += 6.9
    assert ours.permits()
    pair.now += 0.1
    assert not ours.permits()
    assert not ours.must_stand_still()
    assert theirs.take_over("g1", "silence").do is Do.WAIT
    pair.now += 2
    assert ours.must_stand_still()
    assert theirs.take_over("g1", "silence").do is Do.WAIT
    pair.now += 1
    assert theirs.take_over("g1", "silence").do is Do.RUN
    assert theirs.permits()
    assert (pair.kept().owner, pair.kept().mode, pair.kept().cause) == ("xb", ALONE, "silence")
    eventually(lambda: pair.sentences("lease"), "noticed")
    assert pair.sentences("lease") == ["The lease of h1 was not renewed: The arbiter does not answer: cut."]
    pair.arbiters["xa"].cut = False
    eventually(lambda: pair.lost, "told")
    assert pair.lost == ["h1 is xb's since epoch 2 (silence)."]
    assert not ours.permits()
    assert ours.shared, "the main thread has to ask, and to hear it"
    assert ours.alone("xb was lost").do is Do.STOP
    assert not ours.permits()


def test_an_owner_that_finds_the_arbiter_again_before_anybody_else_goes_on(pair):
    ours = pair.tenures["xa"]
    pair.arbiters["xa"].cut = True
    pair.now += 30
    assert not ours.permits()
    pair.arbiters["xa"].cut = False
    eventually(ours.permits, "a lease again")
    assert (pair.kept().owner, pair.kept().mode, pair.kept().epoch) == ("xa", PROTECTED, 2)
    assert pair.tenures["xb"].take_over("g1", "silence").do is Do.WAIT


def test_whoever_is_first_goes_on_when_both_have_lost_each_other(pair):
    ours, theirs = pair.tenures["xa"], pair.tenures["xb"]
    assert ours.alone("xb was lost").do is Do.RUN
    assert ours.permits()
    ruling = theirs.take_over("g1", "silence")
    assert (ruling.do, ruling.sentence) == (
        Do.STOP,
        "h1 runs on xa (xb was lost), and the copy here is not what it was protected by.",
    )
    assert not theirs.permits()
    pair.now += 3600
    assert ours.permits(), "who is alone needs nobody"


def test_who_is_alone_is_not_protected_again_behind_its_back(pair):
    ours = pair.tenures["xa"]
    pair.arbiters["xa"].cut = True
    eventually(lambda: pair.sentences("lease"), "noticed")
    pair.arbiters["xa"].cut = False
    assert ours.alone("xb was lost").do is Do.RUN
    kept = pair.kept()
    ours.close()
    assert pair.kept() == kept
    assert kept.mode == ALONE


def test_an_answer_that_was_lost_is_found_by_asking_again(pair):
    ours, theirs = pair.tenures["xa"], pair.tenures["xb"]
    pair.arbiters["xa"].lose_answer = True
    with pytest.raises(ArbiterError):
        ours.alone("xb was lost")
    assert ours.alone("xb was lost").do is Do.RUN
    assert theirs.take_over("g1", "silence").do is Do.STOP


def test_a_protection_whose_answer_was_lost_counts(world):
    ours, theirs = world.tenures["xa"], world.tenures["xb"]
    ours.alone("It starts.")
    world.arbiters["xa"].lose_answer = True
    with pytest.raises(ArbiterError):
        ours.protect("xb", "g1")
    assert ours.permits()
    world.now += 7
    assert not ours.permits(), "the other side has its right, although we do not know"
    world.now += 3
    assert theirs.take_over("g1", "silence").do is Do.RUN
    assert ours.alone("xb was lost").do is Do.STOP


def test_nothing_is_shared_before_the_arbiter_was_reached(world):
    ours = world.tenures["xa"]
    ours.alone("It starts.")
    world.arbiters["xa"].cut = True
    with pytest.raises(ArbiterError):
        ours.protect("xb", "g1")
    assert not ours.shared
    assert ours.permits()


def test_who_hands_over_says_nothing_until_it_is_known_what_came_of_it(pair):
    ours = pair.tenures["xa"]
    pair.arbiters["xa"].cut = True
    with pytest.raises(ArbiterError):
        ours.hand_over("xb")
    assert not ours.permits()
    assert ours.shared
    pair.arbiters["xa"].cut = False
    assert ours.alone("The switch-over failed.").do is Do.RUN
    assert ours.permits()


def test_an_operators_word_counts_beside_a_lease_but_not_against_an_owner_that_went_on(pair):
    ours, theirs = pair.tenures["xa"], pair.tenures["xb"]
    assert theirs.taken_over("g0", "An operator decided.").do is Do.STOP, "another copy"
    assert theirs.taken_over("g1", "An operator decided.").do is Do.RUN
    assert (pair.kept().owner, pair.kept().cause) == ("xb", "An operator decided.")
    eventually(lambda: pair.lost, "told")
    assert ours.alone("xb was lost").do is Do.STOP


def test_an_heir_owns_and_the_testator_is_silent(pair):
    ours, theirs = pair.tenures["xa"], pair.tenures["xb"]
    assert ours.hand_over("xb").do is Do.RUN
    assert not ours.permits()
    assert theirs.alone("It was handed over.").do is Do.RUN
    assert theirs.permits()
    assert theirs.protect("xa", "g2").do is Do.RUN
    assert ours.take_over("g2", "silence").do is Do.WAIT


def test_the_next_replicator_of_the_owner_takes_its_lease_up(pair):
    pair.tenures["xa"].close()
    pair.tenures["xa"] = again = pair.tenure("xa")
    assert not again.permits()
    assert again.alone("It was started anew.").do is Do.RUN
    assert pair.tenures["xb"].take_over("g1", "silence").do is Do.STOP
