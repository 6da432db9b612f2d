"""Mutations that know where numbers stand in these formats: at multiples of 4 and 8, little endian."""

from __future__ import annotations

from random import Random

_NUMBERS = (
    0,
    1,
    7,
    8,
    0x7F,
    0xFF,
    0xFFFF,
    0x1_0000,
    100_000,
    (4 << 20) + 1,
    (128 << 20) + 1,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
)


def mutate(data: bytes, rng: Random, most_bytes: int) -> bytes:
    """Return ``data`` with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        _CHANGES[rng.randrange(len(_CHANGES))](changed, rng)
    return bytes(changed[:most_bytes])


def _at(data: bytearray, rng: Random) -> int:
    """Return a place: mostly near the start, where the headers are."""
    limit = min(len(data), 1 << rng.randint(3, 16))
    return rng.randrange(limit) if limit else 0


def _flip(data: bytearray, rng: Random) -> None:
    if data:
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    at = _at(data, rng) // width * width
    value = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(8 * width)
    data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def _cut(data: bytearray, rng: Random) -> None:
    del data[_at(data, rng) :]


def _remove(data: bytearray, rng: Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice((1, 4, 8, 64))]


def _repeat(data: bytearray, rng: Random) -> None:
    at = _at(data, rng) // 8 * 8
    piece = data[at : at + 8 * rng.randint(1, 40)]
    data[at:at] = piece * rng.choice((1, 2, 30))


def _move(data: bytearray, rng: Random) -> None:
    at = _at(data, rng) // 8 * 8
    piece = bytes(data[at : at + 8 * rng.randint(1, 10)])
    to = _at(data, rng) // 8 * 8
    data[to : to + len(piece)] = piece


_CHANGES = (_flip, _flip, _number, _number, _number, _cut, _remove, _repeat, _move)
