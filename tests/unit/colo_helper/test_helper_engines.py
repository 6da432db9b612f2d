"""Save and restore on emulated domains: what arrives, in which order the parents are called, and what stays behind."""

import errno
import threading

import pytest

from colo_helper.helper.argv import FLAG_BASELINE, StreamType
from colo_helper.hypervisor import abi
from colo_helper.hypervisor.emulated import EmulatedDomain
from colo_helper.hypervisor.interface import PAGE_BYTES
from tests.unit.colo_helper.helper_pair import (
    CONSOLE,
    IOREQ,
    RINGS,
    STORE,
    Pair,
    differing,
    empty_domain,
    guest,
)

NOT_LIVE = -1


@pytest.mark.parametrize("flags", [0, NOT_LIVE])
def test_a_plain_copy_is_the_guest(flags):
    pair = Pair(flags=flags)
    saving, restoring = pair.run()
    assert (saving.completed, saving.status, saving.broken) == ((0, 0), 0, "")
    assert (restoring.completed, restoring.status, restoring.broken) == ((0, 0), 0, "")
    source, target = pair.source, pair.target
    assert differing(source, target) == []
    assert (target.context, target.tsc, target.cpu_policy) == (source.context, source.tsc, source.cpu_policy)
    assert {i: v for i, v in target.params.items() if i in source.params} == source.params
    assert target.params[abi.PARAM_STORE_EVTCHN] == 5
    assert target.params[abi.PARAM_CONSOLE_EVTCHN] == 6
    assert target.grants == ((0, STORE), (0, CONSOLE))
    assert all(target.memory[gfn] == bytes(PAGE_BYTES) for gfn in RINGS), "rings begin empty"
    assert pair.restorer.results == [(STORE, CONSOLE)]
    assert pair.restorer.missing == [0]
    assert not source.log_dirty
    assert not pair.saver.qemu_logging


def test_the_parents_are_called_in_the_order_they_know():
    pair = Pair()
    pair.run()
    assert pair.saver.called == ["qemu_logdirty_on", "suspend", "qemu_logdirty_off"]
    assert pair.restorer.called == ["static_data_done", "restore_results"]


def test_whole_superpages_are_populated_as_such_and_single_frames_where_there_are_none():
    pair = Pair(source=guest(pages=3000))
    pair.run()
    orders = pair.target.journal.count("populate")
    assert orders >= 2
    fallback = Pair(source=guest(pages=3000))
    fallback.target.superpages = False
    fallback.run()
    assert differing(fallback.source, fallback.target) == []
    assert fallback.target.journal.count("populate") > orders


def test_remus_applies_whole_checkpoints_and_fails_over_when_the_stream_breaks():
    pair = Pair(StreamType.REMUS)
    epochs = []

    def next_epoch():
        epochs.append(1)
        if len(epochs) == 4:
            return 0
        pair.source.guest_write(10 + len(epochs), b"epoch %d" % len(epochs))
        pair.source.context = b"context of epoch %d" % len(epochs)
        return 1

    pair.saver.script["checkpoint"] = next_epoch
    saving, restoring = pair.run()
    assert saving.completed == (0, 0)
    assert restoring.completed == (0, 0), "the end of the stream is the failover"
    assert differing(pair.source, pair.target) == []
    assert pair.target.context == b"context of epoch 3"
    assert pair.saver.called == [
        "qemu_logdirty_on",
        *["suspend", "postcopy", "checkpoint"] * 4,
        "qemu_logdirty_off",
    ]
    assert pair.restorer.called == ["static_data_done", *["checkpoint"] * 4, "restore_results"]
    assert any("Failover" in line for line in pair.restorer.lines)


class ColoGuests:
    """Lets both sides of a COLO pair dirty pages of their own between checkpoints and compares them at each.

    The two parents tell each other what libxl's two sides do: applied, compared, another checkpoint.
    """

    def __init__(self, pair, epochs=4):
        self.pair, self.epochs, self.count, self.differences = pair, epochs, 0, []
        self.applied, self.compared, self.another = (threading.Semaphore(0) for _ in range(3))
        pair.saver.script["wait_checkpoint"] = self.between
        pair.saver.script["postcopy"] = self.compare
        pair.restorer.script["postcopy"] = self.secondary_runs
        pair.restorer.script["wait_checkpoint"] = lambda: 1 if self.another.acquire(timeout=30) else 0

    def secondary_runs(self):
        """libxl lets the secondary's writes be logged when it runs for the first time."""
        self.pair.target.log_dirty = True
        self.applied.release()
        return 1 if self.compared.acquire(timeout=30) else 0

    def compare(self):
        assert self.applied.acquire(timeout=30)
        self.differences.append(differing(self.pair.source, self.pair.target))
        self.compared.release()
        return 1

    def between(self):
        self.count += 1
        if self.count < self.epochs:
            self.pair.source.guest_write(20 + self.count, b"primary %d" % self.count)
            self.pair.target.guest_write(300 + self.count, b"secondary %d" % self.count)
            self.pair.target.guest_write(20 + self.count, b"both, but differently")
            self.pair.source.guest_write(STORE, b"the primary's own ring")
            self.pair.target.guest_write(IOREQ, b"the secondary's own request page")
        self.another.release()
        return int(self.count < self.epochs)


def test_colo_makes_both_copies_equal_although_each_went_its_own_way():
    pair = Pair(StreamType.COLO)
    guests = ColoGuests(pair)
    assert pair.target.nr_frames() == 1, "an empty domain reports that its highest frame is 0"
    saving, restoring = pair.run()
    assert (saving.completed, restoring.completed) == ((0, 0), (0, 0))
    assert guests.differences == [[], [], [], []]
    assert pair.saver.called[:6] == [
        "qemu_logdirty_on",
        *["suspend", "checkpoint", "postcopy", "wait_checkpoint", "suspend"],
    ]
    loop = ["checkpoint", "restore_results", "postcopy", "wait_checkpoint", "suspend"]
    assert pair.restorer.called[:11] == ["static_data_done", *loop, *loop]
    assert pair.restorer.called[-1] == "restore_results"
    figures = [dict(pair.saver.figures[at : at + 5]) for at in range(0, len(pair.saver.figures), 5)]
    assert [figure["b_pages"] for figure in figures] == [0, 3, 3, 3]
    assert all(figure["d_pages"] >= max(figure["a_pages"], figure["b_pages"]) for figure in figures)
    assert pair.target.memory[STORE] == bytes(PAGE_BYTES), "the copy's own ring was not touched"
    assert not pair.source.log_dirty


def baseline_pair():
    """A guest and its copy, equal but for the copy's ring; both stand still."""
    source = guest()
    target = empty_domain(source)
    target.memory = {gfn: bytearray(page) for gfn, page in source.memory.items()}
    target.params, target.specials = dict(source.params), source.specials
    target.memory[STORE][:4] = b"mine"
    target.pause_count = source.pause_count = 1
    return Pair(StreamType.COLO, FLAG_BASELINE, source, target), target


def test_colo_from_a_baseline_sends_only_what_is_dirty():
    pair, target = baseline_pair()
    guests = ColoGuests(pair)
    saving, restoring = pair.run()
    assert (saving.completed, restoring.completed) == ((0, 0), (0, 0))
    assert guests.differences == [[], [], [], []]
    assert "populate" not in target.journal
    assert "set_cpu_policy" not in target.journal
    assert target.memory[STORE][:4] == b"mine"
    assert dict(pair.saver.figures[:5]) == dict.fromkeys(
        ("a_pages", "b_pages", "d_pages", "ahead_pages", "sent_pages"), 0
    )


def test_what_the_parent_says_may_differ_is_sent_first():
    pair, _ = baseline_pair()
    pair.target.memory[11][:] = pair.target.memory[12][:] = b"\5" * PAGE_BYTES
    pair.first_b = (11, 12)
    guests = ColoGuests(pair)
    saving, _ = pair.run()
    assert saving.completed == (0, 0)
    assert guests.differences == [[], [], [], []]
    assert dict(pair.saver.figures[:5])["b_pages"] == 2


def test_many_dirty_pages_are_sent_ahead_and_those_written_again_once_more():
    """D is what a reader expects although most of it went before the pause; what only the secondary wrote goes too."""
    pair, _ = baseline_pair()
    guests = ColoGuests(pair)
    between = guests.between
    written = range(0x100, 0x100 + 400)

    def write_much():
        for gfn in written:
            pair.source.guest_write(gfn, b"much %d" % guests.count)
        pair.target.guest_write(0x100, b"sent ahead, so it need not go again")
        pair.target.guest_write(0x20, b"not sent ahead")
        return between()

    def clean(final):
        bitmap = EmulatedDomain.clean_dirty(pair.source, final)
        if not final and bitmap.count >= len(written):
            pair.source.guest_write(0x101, b"written again after it was sent ahead")
        return bitmap

    pair.saver.script["wait_checkpoint"] = write_much
    pair.source.clean_dirty = clean
    saving, restoring = pair.run()
    assert (saving.completed, restoring.completed) == ((0, 0), (0, 0))
    assert guests.differences == [[], [], [], []]
    figures = [dict(pair.saver.figures[at : at + 5]) for at in range(0, len(pair.saver.figures), 5)]
    assert figures[1]["ahead_pages"] >= len(written)
    assert figures[1]["a_pages"] >= len(written)
    assert figures[1]["d_pages"] > figures[1]["a_pages"]
    assert figures[1]["sent_pages"] < 20


def test_a_guest_that_is_not_suspended_is_not_saved():
    pair = Pair()
    pair.saver.suspend = lambda: 1  # says so, but does not
    saving, restoring = pair.run()
    assert saving.completed == (-1, errno.EIO)
    assert restoring.completed[0] == -1
    assert any("is not suspended" in line for line in pair.saver.lines)
    assert not pair.source.log_dirty


def test_frames_given_back_on_the_primary_are_taken_away_on_the_secondary():
    pair = Pair(StreamType.COLO)
    guests = ColoGuests(pair, epochs=3)
    between = guests.between

    def balloon():
        if guests.count == 0:
            for gfn in range(400, 410):
                del pair.source.memory[gfn]
                pair.source.dirty.add(gfn)
        return between()

    pair.saver.script["wait_checkpoint"] = balloon
    pair.run()
    assert guests.differences[-1] == []
    assert 405 not in pair.target.memory
