"""The main job as a newcomer runs it, and what its record must show."""

import json
import subprocess
import sys


def test_the_demo_shows_all_that_it_promises(lab, settings, play):
    done = subprocess.run([sys.executable, "-m", "lab", "demo"], cwd=settings.checkout, check=False)
    record = json.loads((settings.checkout / "build" / "demo" / "timeline.json").read_text())
    assert done.returncode == 0
    assert record["checkpoints"] >= 20
    assert record["checkpoints_with_b"] >= 1
    assert record["pages_compared"] > 30_000  # all of a guest with 128 MiB, but for the holes
    assert record["pages_unexplained"] == []
    assert record["counter_after"] >= record["counter_before"]
    assert record["writes_lost"] == 0
    assert record["failover_s"] > 0
    assert {"power-off", "verified", "answer"} <= {event["event"] for event in record["events"]}

    again = play("failover", "-e", "colo_vm=h1", "-e", "colo_confirm=h1")
    assert again.code == 0
    assert again.changed["xb"] == 0, "what has taken over is not asked to take over again"
    assert "xa, the primary of h1, does not answer on ssh" in play("verify", "-e", "colo_vm=h1").text
