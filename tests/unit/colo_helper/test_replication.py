from __future__ import annotations

import random

import pytest

from colo_helper.hypervisor.interface import PAGE_BYTES

from tests.unit.colo_helper.emulated_host import RING
from tests.unit.colo_helper.replication_pair import Pair


@pytest.fixture
def pair():
    made = []

    def make(**options):
        made.append(Pair(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def guest_memory(domain):
    return {gfn: bytes(page) for gfn, page in domain.memory.items() if gfn != RING}


def test_after_every_epoch_the_copy_is_equal_although_both_sides_wrote(pair):
    both = pair().start().replicating()
    dice = random.Random(1)
    for epoch in range(1, 6):
        both.both_run()
        for domain, mark in ((both.guest, b"P"), (both.copy, b"S")):
            for gfn in dice.sample(range(64), 20):
                domain.guest_write(gfn, mark + b"%d" % dice.randrange(10**9))
        both.guest.context = b"context %d" % epoch
        both.primary_host.devices[3].state = b"devices %d" % epoch
        record = both.ask("primary", "checkpoint")
        assert record["ok"] is True
        assert record["epoch"] == epoch
        assert record["b_pages"] == 20
        assert record["d_pages"] > 20
        assert guest_memory(both.copy) == guest_memory(both.guest)
        assert both.copy.context == b"context %d" % epoch
        assert both.secondary_host.devices[7].state == b"devices %d" % epoch
    assert both.p_monitor.state.totals.b_nonempty == 5
