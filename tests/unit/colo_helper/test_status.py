"""What `colo-helper status VM` says beside its first line."""

from colo_helper.commands import details

PACKETS = {"primary": 12, "released": 10, "waiting": 2, "asked_divergence": 3, "asked_memory": 0}


def test_it_says_why_and_when_and_what_became_of_the_packets():
    state = {
        "last": {"why": "The interval has passed."},
        "interval": {"interval_ms": 504.98, "sentence": "Few pages are written."},
        "packets": PACKETS,
    }
    assert details(state) == [
        "  Last checkpoint: The interval has passed.",
        "  Next within 505 ms: Few pages are written.",
        "  Packets: 10 of 12 have left, 2 wait; checkpoints that they asked for: 3 divergence",
    ]


def test_connections_of_an_earlier_takeover_are_told():
    assert details({"packets": {**PACKETS, "moved": 2}})[1:] == [
        "  Connections that go on from an earlier takeover, with their numbers moved: 2"
    ]


def test_a_secondary_has_none_of_it():
    assert details({"last": None, "interval": None, "packets": None}) == []
