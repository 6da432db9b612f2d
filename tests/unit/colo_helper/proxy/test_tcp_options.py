"""TCP's options are walked through as far as they are sound."""

from __future__ import annotations

import pytest

from colo_helper.proxy.packet import ACK, SYN, parse
from colo_helper.proxy.tcp_options import opening, options
from tests.unit.colo_helper.proxy.frames import tcp

MSS, SACK_PERMITTED, STAMPS = b"\x02\x04\x05\xb4", b"\x04\x02", b"\x08\x0a" + bytes(range(8))


@pytest.mark.parametrize(
    ("text", "walked"),
    [
        (b"", []),
        (MSS + b"\x01" + SACK_PERMITTED, [(2, 54, 4), (4, 59, 2)]),
        (SACK_PERMITTED + b"\x00" + MSS, [(4, 54, 2)]),  # ended
        (SACK_PERMITTED + b"\x02\x00", [(4, 54, 2)]),  # would never end
        (SACK_PERMITTED + b"\x02\x01", [(4, 54, 2)]),
        (SACK_PERMITTED + b"\x02\x03", [(4, 54, 2)]),  # goes beyond the header
        (SACK_PERMITTED + b"\x01\x02", [(4, 54, 2)]),  # its length would be payload
    ],
)
def test_options(text, walked):
    assert list(options(parse(tcp(1, 2, SYN, b"\x04\x02", text)))) == walked


def test_what_an_opening_settles():
    packet = parse(tcp(1, 2, SYN | ACK, options=MSS + SACK_PERMITTED + STAMPS))
    assert opening(packet) == b"\x12" + MSS + SACK_PERMITTED + STAMPS[:2]
