from dataclasses import replace

from lab.demo.timeline import Timeline, judge

GOOD = Timeline(
    changed_again=0,
    refused_alive=True,
    checkpoints=25,
    checkpoints_with_b=20,
    pages_compared=1000,
    pages_different=[0xFEFFC],
    pages_unexplained=[],
    state_unexplained=[],
    failover_s=3.0,
    counter_before=10,
    counter_after=12,
    counter_goes_on=True,
    writes_lost=0,
    said_unprotected=True,
)


def test_a_demo_that_showed_everything_is_good():
    assert judge(GOOD, 20) == []


def test_each_missing_figure_is_a_sentence():
    cases = {
        "protecting it once more changed 2 tasks": replace(GOOD, changed_again=2),
        "a failover was not refused while the primary lived": replace(GOOD, refused_alive=False),
        "19 checkpoints were made, 20 are wanted": replace(GOOD, checkpoints=19),
        "B was empty in every checkpoint: the back channel showed nothing": replace(
            GOOD, checkpoints_with_b=0
        ),
        "no page of the two copies was compared": replace(GOOD, pages_compared=0),
        "frames differ without a reason: [7]": replace(GOOD, pages_unexplained=[7]),
        "CPU or device state differs without a reason: ['cpu CPU 0 rax at 512']": replace(
            GOOD, state_unexplained=["cpu CPU 0 rax at 512"]
        ),
        "the guest did not answer after the failover": replace(GOOD, counter_after=None),
        "the guest went back in time, from 10 to 9": replace(GOOD, counter_after=9),
        "the guest answers after the failover, but its counter stands still": replace(
            GOOD, counter_goes_on=False
        ),
        "writes made before the last checkpoint are missing: 1": replace(GOOD, writes_lost=1),
        "the status of a VM with one copy was not a failure that names it": replace(
            GOOD, said_unprotected=False
        ),
    }
    for sentence, timeline in cases.items():
        assert judge(timeline, 20) == [sentence]


def test_a_demo_that_broke_off_shows_nothing():
    assert len(judge(Timeline(), 20)) == 10
