"""TCP's sequence numbers: 32 bits that go round (RFC 9293, 3.4)."""

from __future__ import annotations

MASK = 0xFFFF_FFFF
HALF = 0x8000_0000


def distance(number: int, since: int) -> int:
    """Return how far ``number`` is ahead of ``since``: from -2**31 to 2**31 - 1."""
    return ((number - since + HALF) & MASK) - HALF


def at_least(number: int, other: int) -> bool:
    """Return whether ``number`` is not behind ``other``."""
    return (number - other) & MASK < HALF
