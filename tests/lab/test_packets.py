"""What a client sees of a VM whose packets are compared: every answer, and a checkpoint only where the copies differ.

The client is on the lab's bridge, on neither of the hosts. Only in a full run; the demo and molecule protect a VM with
compared packets as well.
"""

import time

import pytest

from colo_helper.quantiles import nearest_rank
from lab.guests import Client

pytestmark = pytest.mark.full
EQUAL, DIFFERENT = 100, 20


def asked(client, line, count):
    """Ask again and again; returns the answers and the times, in milliseconds, sorted."""
    answers, times = [], []
    for number in range(count):
        started = time.monotonic()
        answers.append(client.ask(line.format(number)))
        times.append(round((time.monotonic() - started) * 1000))
    return answers, sorted(times)


def spread(times):
    return f"p50 {nearest_rank(times, 0.5)} ms, p99 {nearest_rank(times, 0.99)} ms"


def counters(vm):
    """The packets' counters as of the next checkpoint."""
    return vm.wait_for_checkpoints(1)["packets"]


def grown(before, after):
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def test_equal_answers_leave_without_a_checkpoint(protected, settings):
    client = Client(settings, "h1", timeout_s=30)
    client.ask("echo first")
    before = counters(protected)
    answers, times = asked(client, "echo {}", EQUAL)
    found = grown(before, counters(protected))
    client.close()
    print(f"{EQUAL} equal answers: {spread(times)}; {found}")
    assert answers == [f"echo={number}\n" for number in range(EQUAL)]
    assert found["released"] >= EQUAL
    assert found.get("asked_divergence", 0) == 0


def test_answers_that_differ_all_arrive(protected, settings):
    client = Client(settings, "h1", timeout_s=30)
    before = counters(protected)
    answers, times = asked(client, "clock", DIFFERENT)
    found = grown(before, counters(protected))
    client.close()
    print(f"{DIFFERENT} different answers: {spread(times)}; {found}")
    assert len(set(answers)) == DIFFERENT
    assert all(answer.startswith("clock=") for answer in answers)
    assert found["asked_divergence"] >= DIFFERENT
