"""The arbiter that a configuration names."""

from __future__ import annotations

from colo_helper.arbiter.etcd import EtcdArbiter, Identity
from colo_helper.arbiter.times import times
from colo_helper.replication.config import ArbiterConfig

#: How long one endpoint is given at least, in seconds.
_SHORTEST_ASK_S = 0.5


def arbiter_of(asked: ArbiterConfig) -> EtcdArbiter:
    """Return the arbiter, which is given as long for an answer as a renewal may take."""
    timeout_s = max(_SHORTEST_ASK_S, times(asked.lease_s).renew_s / len(asked.endpoints))
    return EtcdArbiter(asked.endpoints, Identity(asked.ca, asked.certificate, asked.key), timeout_s)
