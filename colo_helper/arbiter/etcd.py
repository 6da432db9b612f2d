"""The arbiter in etcd 3.4 or newer, over its JSON gateway.

Two keys for each VM: ``/colo/VM/record`` stays, ``/colo/VM/lease`` goes with its lease. Every change is one transaction that
requires both to be what was seen. (Transactions, revisions and leases: etcd's API reference, api/etcdserverpb/rpc.proto.)
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception
from etcd3gw.lease import Lease as EtcdLease

from colo_helper.arbiter import tls
from colo_helper.arbiter.interface import ArbiterError, RefusedError
from colo_helper.arbiter.record import (
    PROTECTED,
    Lease,
    Record,
    RecordError,
    Seen,
    pack_lease,
    pack_record,
    parse_lease,
    parse_record,
)

_API = "/v3/"
#: What the client raises, and what reading an answer that is none of etcd's does (OSError: a certificate that is not there).
_ERRORS = (Etcd3Exception, OSError, ValueError, LookupError, TypeError, AttributeError)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a host proves itself with: paths of PEM files. Without a CA the way to etcd is not encrypted."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


class EtcdArbiter:
    """See Arbiter. ``endpoints`` are URLs, asked in turn until one answers within ``timeout_s``; the last that did is first."""

    def __init__(self, endpoints: Sequence[str], identity: Identity, timeout_s: float) -> None:
        self._identity = identity
        self._clients = [_client(url, identity, timeout_s) for url in endpoints]

    def read(self, vm: str) -> Seen:
        """See Arbiter."""
        return _seen(self._transact([], [_get(_record_key(vm)), _get(_lease_key(vm))], [])[1])

    def change(self, seen: Seen, record: Record, lease_s: int) -> Seen:
        """See Arbiter."""
        record_key, lease_key = _record_key(record.vm), _lease_key(record.vm)
        look = [_get(record_key), _get(lease_key)]
        lease_is = (
            _equal(lease_key, "VALUE", value=_text(pack_lease(seen.lease.holder, seen.lease.epoch)))
            if seen.lease
            else _equal(lease_key, "VERSION", version=0)
        )
        compare = [_equal(record_key, "MOD", mod_revision=seen.version), lease_is]
        puts = [_put(record_key, pack_record(record)), {"request_delete_range": {"key": lease_key}}]
        granted = 0
        if record.mode == PROTECTED:
            granted = self._ask(lambda etcd: etcd.lease(lease_s)).id
            puts[1] = _put(lease_key, pack_lease(record.owner, record.epoch), granted)
        done, answers = self._transact(compare, [*puts, *look], look)
        if granted and not done:
            self._end(granted)
        if not done:
            raise RefusedError(_seen(answers))
        if seen.lease:
            self._end(seen.lease.number)
        return _seen(answers[2:])

    def renew(self, lease: Lease) -> bool:
        """See Arbiter."""
        return self._ask(lambda etcd: EtcdLease(lease.number, etcd).refresh()) > 0

    def _end(self, number: int) -> None:
        """End a lease that holds no key any more; if that fails it ends by itself."""
        try:
            self._ask(lambda etcd: EtcdLease(number, etcd).revoke())
        except ArbiterError:
            return

    def _transact(
        self, compare: list[dict[str, Any]], success: list[dict[str, Any]], failure: list[dict[str, Any]]
    ) -> tuple[bool, list[dict[str, Any]]]:
        """Do ``success`` when all of ``compare`` holds, else ``failure``; returns whether it held, and the answers."""
        body = {"compare": compare, "success": success, "failure": failure}

        def ask(etcd: Etcd3Client) -> tuple[bool, list[dict[str, Any]]]:
            answer: Any = etcd.transaction(body)
            return bool(answer.get("succeeded")), list(answer["responses"])

        return self._ask(ask)

    def _ask(self, ask: Callable[[Etcd3Client], T]) -> T:
        """Ask the endpoints in turn. A write that was not answered may have been done all the same."""
        problems = []
        for etcd in list(self._clients):
            try:
                answer = ask(etcd)
            except _ERRORS as error:
                why = (getattr(error, "detail_text", "") or str(error) or type(error).__name__).strip()
                if etcd.protocol == "https":
                    why = tls.in_words(why, self._identity.ca, self._identity.certificate)
                problems.append(f"{etcd.base_url}: {why}")
            else:
                self._clients.remove(etcd)
                self._clients.insert(0, etcd)
                return answer
        raise ArbiterError(f"The arbiter does not answer: {'; '.join(problems)}.")


def _client(url: str, identity: Identity, timeout_s: float) -> Etcd3Client:
    parts = urlsplit(url)
    client = Etcd3Client(
        host=parts.hostname or "",
        port=parts.port or 2379,
        protocol=parts.scheme,
        ca_cert=identity.ca or None,
        cert_cert=identity.certificate or None,
        cert_key=identity.key or None,
        timeout=timeout_s,
        api_path=_API,
    )
    # No proxy and no other authority that the environment names (REQUESTS_CA_BUNDLE would count more than our CA).
    client.session.trust_env = False
    return client


def _seen(answers: list[dict[str, Any]]) -> Seen:
    """Read the answers to both looks; raises ArbiterError."""
    try:
        found = [answer.get("response_range", {}).get("kvs", []) for answer in answers]
        record, lease = (kvs[0] if kvs else None for kvs in found)
        return Seen(
            parse_record(base64.b64decode(record["value"])) if record else None,
            int(record["mod_revision"]) if record else 0,
            parse_lease(base64.b64decode(lease["value"]), int(lease.get("lease", 0))) if lease else None,
        )
    except (RecordError, *_ERRORS) as error:
        raise ArbiterError(f"What the arbiter keeps cannot be read: {error}") from error


def _record_key(vm: str) -> str:
    return _text(f"/colo/{vm}/record".encode())


def _lease_key(vm: str) -> str:
    return _text(f"/colo/{vm}/lease".encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _get(key: str) -> dict[str, Any]:
    return {"request_range": {"key": key}}


def _put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    return {"request_put": {"key": key, "value": _text(value), "lease": lease}}


def _equal(key: str, target: str, **what: int | str) -> dict[str, Any]:
    return {"key": key, "result": "EQUAL", "target": target, **what}
