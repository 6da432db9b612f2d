import argparse
import os

import pytest

from lab import cli
from lab.errors import LabError
from lab.lab import check_root, releases_like, releases_of
from lab.settings import Settings


@pytest.mark.parametrize(
    ("text", "bits"), [("10mbit", 10_000_000), ("500Kbit", 500_000), ("1gbit", 10**9), ("800bit", 800)]
)
def test_rates(text, bits):
    assert cli.parse_rate(text) == bits


@pytest.mark.parametrize("text", ["", "10", "mbit", "0mbit", "-1kbit", "1.5mbit"])
def test_what_is_no_rate(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no rate"):
        cli.parse_rate(text)


def test_not_root_is_a_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(cli.LabError, match=r"lab down needs root .*sudo make"):
        check_root("lab down")


def test_two_checkouts_have_two_labs(tmp_path):
    one = Settings(tmp_path / "one", tmp_path)
    two = Settings(tmp_path / "two", tmp_path)
    assert one.lab_id != two.lab_id
    assert one.netns != two.netns
    assert one.process_name("xa") != two.process_name("xa")


def test_a_lab_keeps_its_releases_and_a_new_host_has_the_firsts():
    assert releases_like({}, 2) == {"xa": 12, "xb": 12}
    assert releases_like({"xa": 13, "xb": 12}, 3) == {"xa": 13, "xb": 12, "xc": 13}
    assert releases_like({"xa": 13, "xb": 12, "xc": 12}, 2) == {"xa": 13, "xb": 12}


def test_releases_are_said_for_all_hosts_or_for_each():
    assert releases_of([13], 3) == {"xa": 13, "xb": 13, "xc": 13}
    assert releases_of([12, 13], 2) == {"xa": 12, "xb": 13}
    with pytest.raises(
        LabError, match="2 Debian releases for the hosts xa, xb and xc: give one, or one for each"
    ):
        releases_of([12, 13], 3)
