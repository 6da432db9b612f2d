"""The table of moved connections as it travels."""

import pytest

from colo_helper.proxy.packet import parse
from colo_helper.proxy.rewrite import Move
from colo_helper.traffic.moves import pack_moves, unpack_moves
from tests.unit.colo_helper.proxy.frames import tcp

MOVES = [{}, {parse(tcp(0)).flow: Move(5, 0), parse(tcp(0, six=True)).flow: Move(2**32 - 1, 7)}]


def test_the_table_arrives_as_it_was():
    assert unpack_moves(pack_moves(MOVES)) == MOVES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[3]",
        b'[{"zz": [1, 2]}]',
        b'[{"00": [1]}]',
        b'[{"00": [1, -1]}]',
        b'[{"00": [4294967296, 1]}]',
    ],
)
def test_what_is_not_well_formed_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 (json's own errors as well)
        unpack_moves(data)
