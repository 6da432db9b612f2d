"""What Prometheus sees of the VMs, and the alerts on it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing
from datetime import UTC, datetime

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateBuilder, Name, NameAttribute
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from colo_helper.exporter.families import families
from colo_helper.exporter.server import Collector, serve
from colo_helper.monitor.monitor import Monitor
from colo_helper.monitor.sdnotify import Notifier
from colo_helper.monitor.state import Checkpoint, State
from tests.unit.ansible.module_host import REPOSITORY

RULES = yaml.safe_load((REPOSITORY / "roles" / "colo_monitoring" / "files" / "colo.rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORD = Checkpoint(
    7, 20, 3, 22, 0, 22, 5000, 12.5, {"suspend": 1.0}, 2.5, 3.5, "2026-01-01T00:00:10+00:00", "It was time."
)
CHANNELS = {
    "life": "alive",
    "peer_epoch": 7,
    "round_trip": {"p50_ms": 0.5},
    "broken": {"heartbeat": "No route to host."},
    "reopened": {"forward": 0, "back": 2, "heartbeat": 1},
}
PACKETS = {"primary": 12, "released": 10, "waiting": 2, "asked_divergence": 3, "asked_memory": 0}


@pytest.fixture
def monitor(tmp_path):
    directory = tmp_path / "h1"
    directory.mkdir()
    one = Monitor(directory, State("h1", "primary", "connecting", "It starts.", "xb"), Notifier(""))
    one.checkpoint(RECORD, CHANNELS, PACKETS, {"interval_ms": 500.0, "sentence": "Few pages."})
    one.enter("replicating", "Both run.")
    return one


def samples(text):
    """Each sample's value by its name, its VM and its other labels in their names' order, as Prometheus reads them."""
    return {
        (
            sample.name,
            sample.labels.pop("vm"),
            *(sample.labels[key] for key in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(root):
    registry = CollectorRegistry()
    registry.register(Collector(root))
    return samples(generate_latest(registry).decode())


def test_a_replicator_that_does_not_run_protects_nothing(monitor, tmp_path):
    monitor.verification(
        {"unexplained": [5], "state": {"cpu": {"unexplained": []}, "devices": {"unexplained": [1]}}}
    )
    found = scraped(tmp_path)
    assert found["colo_state", "h1", "xb", "replicating", "primary"] == 1
    assert found["colo_replicator_running", "h1"] == 0
    assert found["colo_protected", "h1"] == 0
    assert found["colo_epoch", "h1"] == 7
    assert found["colo_checkpoints_total", "h1"] == 1
    assert found["colo_sent_bytes_total", "h1"] == 5000
    assert found["colo_last_pause_seconds", "h1"] == 0.0125
    assert found["colo_pause_p99_seconds", "h1"] == 0.0125
    assert found["colo_round_trip_p50_seconds", "h1"] == 0.0005
    assert found["colo_interval_seconds", "h1"] == 0.5
    assert found["colo_last_checkpoint_timestamp_seconds", "h1"] == 1767225610
    assert (found["colo_channel_broken", "h1", "heartbeat"], found["colo_channel_broken", "h1", "back"]) == (
        1,
        0,
    )
    assert found["colo_channel_reopened_total", "h1", "back"] == 2
    assert found["colo_checkpoints_asked_total", "h1", "divergence"] == 3
    assert found["colo_verified_unexplained", "h1"] == 2


def test_a_vm_is_protected_while_its_replicator_says_so(monitor):
    def protected(**changes):
        state = {**monitor.snapshot(), "running": True, **changes}
        (family,) = [one for one in families([state], {}, [], {}) if one.name == "colo_protected"]
        return family.samples[0].value

    assert protected() == 1
    assert protected(phase="unprotected") == 0
    assert protected(running=False) == 0


def test_a_secondary_before_its_first_checkpoint_has_no_figures_of_one(tmp_path):
    directory = tmp_path / "h1"
    directory.mkdir()
    Monitor(directory, State("h1", "secondary", "waiting", "", "xa"), Notifier("")).enter(
        "waiting", "It waits."
    )
    found = scraped(tmp_path)
    assert found["colo_epoch", "h1"] == 0
    assert not [key for key in found if key[0].startswith("colo_last")]


def test_a_damaged_state_is_told_and_hides_no_other(monitor, tmp_path, capsys):
    (tmp_path / "h2").mkdir()
    (tmp_path / "h2" / "state.json").write_text("[")
    found = scraped(tmp_path)
    assert found["colo_unreadable", "h2"] == 1
    assert found["colo_epoch", "h1"] == 7
    assert "h2: " in capsys.readouterr().err


def test_it_tells_when_the_certificate_for_the_arbiter_expires(tmp_path, capsys):
    key = Ed25519PrivateKey.generate()
    name = Name([NameAttribute(NameOID.COMMON_NAME, "xa")])
    ends = datetime(2029, 1, 1, tzinfo=UTC)
    builder = CertificateBuilder(name, name, key.public_key(), 7, datetime(2026, 1, 1, tzinfo=UTC), ends)
    path = tmp_path / "certificate.pem"
    assert list_of_certificates(path) == []
    path.write_bytes(builder.sign(key, None).public_bytes(Encoding.PEM))
    assert list_of_certificates(path) == [ends.timestamp()]
    path.write_text("damaged")
    assert list_of_certificates(path) == []
    assert "certificate.pem: " in capsys.readouterr().err


def list_of_certificates(path):
    found = {family.name: family for family in Collector(path.parent / "no", path).collect()}
    return [sample.value for sample in found["colo_certificate_expires_timestamp_seconds"].samples]


def test_an_address_that_is_taken_is_told(capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert serve("127.0.0.1", port) == 1
    assert (
        capsys.readouterr().err
        == f"Prometheus cannot be answered at 127.0.0.1 port {port}: Address already in use.\n"
    )


def test_the_program_answers_over_http_once_it_has_said_so(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "colo_helper.cli", "exporter", "127.0.0.1", str(port)]
    manager = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as said:
        said.bind(str(manager))
        said.settimeout(60)
        with subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": str(manager)}) as program:
            try:
                assert said.recv(64) == b"READY=1"
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    text = answer.read().decode()
            finally:
                program.terminate()
    assert "# TYPE colo_protected gauge" in text


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_on_what_there_is_and_says_what_it_means(alert):
    known = {
        family.name + ("_total" if family.type == "counter" else "") for family in families([], {}, [], {})
    }
    assert set(re.findall(r"\bcolo_\w+", alert["expr"])) <= known
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
