"""Answers Prometheus: every scrape asks the replicators anew, so nothing that it shows is older than the scrape."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificate
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric

from colo_helper.control.look import STATE_ROOT, known_vms, look
from colo_helper.exporter.families import families
from colo_helper.monitor.files import read_json
from colo_helper.monitor.sdnotify import Notifier

#: Where the role colo_arbiter has it.
CERTIFICATE = Path("/etc/colo/arbiter/certificate.pem")
#: A replicator that is stuck must not keep Prometheus waiting; what it wrote last is shown then.
_ANSWER_S = 2.0


class Collector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, root: Path = STATE_ROOT, certificate: Path = CERTIFICATE) -> None:
        self._root = root
        self._certificate = certificate

    def describe(self) -> list[Metric]:
        """Return what there may be, for the registry; it asks nobody."""
        return families([], {}, [], {})

    def collect(self) -> Iterator[Metric]:
        """Look at every VM."""
        states: list[dict[str, Any]] = []
        verified: dict[str, dict[str, Any]] = {}
        unreadable: list[str] = []
        for vm in known_vms(self._root):
            try:
                state = look(vm, self._root, _ANSWER_S)
                comparison = self._root / vm / "verify.json"
                if comparison.exists():
                    verified[vm] = read_json(comparison)
            except (OSError, ValueError) as error:
                unreadable.append(vm)
                sys.stderr.write(f"{vm}: {error}\n")
            else:
                states += [state] if state else []
        yield from families(states, verified, unreadable, _expiries(self._certificate))


def _expiries(path: Path) -> dict[str, float]:
    try:
        return {str(path): load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()}
    except FileNotFoundError:
        return {}  # this host asks no arbiter
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return {}


def serve(address: str, port: int) -> int:
    """Answer until the service manager ends this; returns the exit status when it cannot."""
    registry = CollectorRegistry()
    registry.register(Collector())
    try:
        _server, thread = start_http_server(port, address, registry)
    except OSError as error:
        sys.stderr.write(f"Prometheus cannot be answered at {address} port {port}: {error.strerror}.\n")
        return 1
    Notifier().ready()
    thread.join()
    return 0
