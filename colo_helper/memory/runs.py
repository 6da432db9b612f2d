"""A bitmap as its runs of set bits: how far from the end of the last one, and how long.

| bytes | field |
|---|---|
| 1 | width of a distance in bytes: 1, 2 or 4 |
| 1 | width of a length in bytes: 1, 2 or 4 |
| width each | distances: clean frames before each run |
| width each | lengths: dirty frames in each run |

All numbers are little endian. What does not fit its width is written in parts: a longer distance as runs of length 0
after the greatest distance there is, a longer run as several with a distance of 0 between them. So one outlier does
not widen all the others.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import floordiv

from bitarray import bitarray

_CODES = {1: "B", 2: "H", 4: "I"}
_HEAD_BYTES = 2


def count_runs(bits: bitarray, dirty: int) -> int:
    """Return the number of runs of set bits, of which there are ``dirty``: those that follow no other."""
    following = bits >> 1  # bit n: frame n - 1
    following &= bits
    return dirty - following.count()


def encode_runs(bits: bitarray) -> bytes:
    """Return the runs of a little-endian bitmap. Takes about half a microsecond for each."""
    gaps, lengths = _runs(bits)
    gap_width, length_width = _best_widths(gaps, lengths)
    gap_most, length_most = _most(gap_width), _most(length_width)
    if gaps and (max(gaps) > gap_most or max(lengths) > length_most):
        parts = list(_split(gaps, lengths, gap_most, length_most))
        gaps, lengths = [gap for gap, _ in parts], [length for _, length in parts]
    return bytes((gap_width, length_width)) + _dump(gap_width, gaps) + _dump(length_width, lengths)


def decode_runs(data: bytes | memoryview, frames: int) -> bitarray:
    """Return the bitmap of ``frames`` bits. Raises ValueError with a sentence about the damage.

    Memory: the bitmap and a copy of ``data``, whatever it says; time: a fraction of a microsecond for each run in
    ``data``.
    """
    if len(data) < _HEAD_BYTES:
        raise ValueError("its list of runs has no head")
    gap_width, length_width = data[0], data[1]
    if gap_width not in _CODES or length_width not in _CODES:
        raise ValueError(f"its runs are of {gap_width} and {length_width} bytes")
    runs, rest = divmod(len(data) - _HEAD_BYTES, gap_width + length_width)
    if rest:
        raise ValueError(f"its list of runs ends within a run, {rest} bytes into it")
    middle = _HEAD_BYTES + runs * gap_width
    gaps = _load(gap_width, data[_HEAD_BYTES:middle])
    lengths = _load(length_width, data[middle:])
    end = sum(gaps) + sum(lengths)
    if end > frames:
        raise ValueError(f"its runs end at frame {end:#x}, beyond its own end at {frames:#x}")
    bits = bitarray(frames, endian="little")
    bits.setall(0)
    position = 0
    for gap, length in zip(gaps, lengths, strict=True):
        position += gap
        bits[position : position + length] = 1
        position += length
    return bits


def _runs(bits: bitarray) -> tuple[list[int], list[int]]:
    """Return the distance before each run and its length."""
    gaps, lengths = [], []
    find, end, frames = bits.find, 0, len(bits)
    while (start := find(1, end)) >= 0:
        gaps.append(start - end)
        end = find(0, start)
        if end < 0:
            end = frames
        lengths.append(end - start)
        if end == frames:
            break
    return gaps, lengths


def _most(width: int) -> int:
    return (1 << (8 * width)) - 1


def _parts(values: list[int], width: int) -> int:
    """Return about how many parts too many the values need in this width."""
    most = _most(width)
    return sum(map(floordiv, values, repeat(most))) if values and max(values) > most else 0


def _best_widths(gaps: list[int], lengths: list[int]) -> tuple[int, int]:
    """Return the widths that make the list shortest."""
    more_gaps = {width: _parts(gaps, width) for width in _CODES}
    more_lengths = {width: _parts(lengths, width) for width in _CODES}
    return min(
        ((gap, length) for gap in _CODES for length in _CODES),
        key=lambda widths: (len(gaps) + more_gaps[widths[0]] + more_lengths[widths[1]]) * sum(widths),
    )


def _split(
    gaps: Iterable[int], lengths: Iterable[int], gap_most: int, length_most: int
) -> Iterator[tuple[int, int]]:
    """Yield the runs with what does not fit in parts."""
    for gap, length in zip(gaps, lengths, strict=True):
        while gap > gap_most:
            yield gap_most, 0
            gap -= gap_most  # noqa: PLW2901 - what is left of it
        while length > length_most:
            yield gap, length_most
            gap, length = 0, length - length_most  # noqa: PLW2901 - what is left of it
        yield gap, length


def _dump(width: int, values: Iterable[int]) -> bytes:
    numbers = array(_CODES[width], values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _load(width: int, data: bytes | memoryview) -> array[int]:
    numbers = array(_CODES[width])
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
