"""What is known of moved connections is there for the next replicator of the guest."""

import json
import os

import pytest

from colo_helper.devices.interface import DeviceError
from colo_helper.replication.moved import MovesFile
from tests.unit.colo_helper.traffic.test_moves import MOVES


def test_the_file_is_of_one_domain(tmp_path):
    path = tmp_path / "moved.json"
    MovesFile(path, 3).write(MOVES)
    assert MovesFile(path, 3).read() == MOVES
    assert MovesFile(path, 4).read() == []


def test_there_is_no_file_when_nothing_is_moved(tmp_path):
    path = tmp_path / "moved.json"
    file = MovesFile(path, 3)
    assert file.read() == []
    file.write(MOVES)
    file.write([{}, {}])
    assert not path.exists()
    assert MovesFile().read() == []


@pytest.mark.parametrize("text", ["", json.dumps({"domid": 3}), json.dumps({"domid": 3, "nics": 1})])
def test_a_damaged_file_is_said(tmp_path, text):
    path = tmp_path / "moved.json"
    MovesFile(path, 3).write(MOVES)
    stamp = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(DeviceError, match=r"moved\.json says of connections cannot be used"):
        MovesFile(path, 3).read()


@pytest.mark.parametrize(("age_s", "known"), [(900, True), (950, False), (-5, False)])
def test_what_nobody_has_served_for_long_is_void(tmp_path, age_s, known):
    path = tmp_path / "moved.json"
    file = MovesFile(path, 3)
    file.write(MOVES)
    then = path.stat().st_mtime_ns - age_s * 10**9
    os.utime(path, ns=(then, then))
    assert MovesFile(path, 3).read() == (MOVES if known else [])
    file.write(MOVES)
    assert MovesFile(path, 3).read() == MOVES, "served again"
