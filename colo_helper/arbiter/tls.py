"""Why there is no encrypted way to the arbiter, in words: what OpenSSL says names neither file nor date."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

#: As Python's ssl prints it: the reason's name, then its text.
_REASON = re.compile(r"\[(?:SSL|X509): ([A-Z0-9_]+)\] (.+?) \(_ssl\.c")
#: A server that refuses a certificate hangs up; who is still sending then does not read why (TLS 1.3).
_HUNG_UP = ("SSLEOFError", "RemoteDisconnected", "ConnectionResetError")


def in_words(said: str, ca: str, certificate: str) -> str:
    """A sentence's part for what a client of https was told; ``said`` itself when it is not about certificates."""
    found = _REASON.search(said)
    reason, text = found.groups() if found else ("", "")
    if reason == "CERTIFICATE_VERIFY_FAILED":
        detail = text.removeprefix("certificate verify failed: ")
        return (
            f"its certificate does not hold against {ca or 'the authorities that this host knows'} ({detail})"
        )
    if reason == "KEY_VALUES_MISMATCH":
        return f"{certificate} is not of the key beside it"
    hung_up = any(word in said for word in _HUNG_UP)
    if "_ALERT_" not in reason and not hung_up:
        return said
    if not certificate:
        return (
            f"it answers nobody without a certificate, and this host shows none{f' ({text})' if text else ''}"
        )
    if hung_up:
        return f"it hung up, and may refuse {certificate}{_ended(certificate)}"
    return f"it refuses {certificate}{_ended(certificate)} ({text})"


def _ended(path: str) -> str:
    """That a certificate has ended, and when; nothing when it has not, or cannot be read."""
    from cryptography import x509  # noqa: PLC0415  # comes with paramiko; slow to import, and only needed here

    try:
        end = x509.load_pem_x509_certificate(Path(path).read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return ""
    return f", which ended on {end:%Y-%m-%d}" if end <= datetime.now(UTC) else ""
