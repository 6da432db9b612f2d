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
from itertools import islice, repeat
from operator import floordiv

from bitarray import bitarray

_CODES = {1: "B", 2: "H", 4: "I"}
_HEAD_BYTES = 2
_PLACES, _RUNS_AT_A_PLACE = 8, 8


def mean_run(bits: bitarray) -> float:
    """Return about how long a run of set bits is, from a few runs at each of a few places; 0 when nothing is set."""
    runs = dirty = 0
    for place in range(_PLACES):
        for start, end in islice(_runs(bits, len(bits) * place // _PLACES), _RUNS_AT_A_PLACE):
            runs += 1
            dirty += end - start
    return dirty / runs if runs else 0.0


def encode_runs(bits: bitarray, most_runs: int) -> tuple[bytes, int] | None:
    """Return the runs of a little-endian bitmap, and how many bits are set; None when there are too many runs.

    Takes about half a microsecond for each run.
    """
    gaps, lengths = [], []
    position = 0
    for start, end in islice(_runs(bits, 0), most_runs + 1):
        gaps.append(start - position)
        lengths.append(end - start)
        position = end
    if len(gaps) > most_runs:
        return None
    dirty = sum(lengths)
    gap_width, length_width = _best_widths(gaps, lengths)
    gap_most, length_most = _most(gap_width), _most(length_width)
    if gaps and (max(gaps) > gap_most or max(lengths) > length_most):
        parts = list(_split(gaps, lengths, gap_most, length_most))
        gaps, lengths = [gap for gap, _ in parts], [length for _, length in parts]
    data = bytes((gap_width, length_width)) + _dump(gap_width, gaps) + _dump(length_width, lengths)
    return data, dirty


def decode_runs(data: bytes | memoryview, frames: int) -> tuple[bitarray, int]:
    """Return the bitmap of ``frames`` bits, and how many are set. Raises ValueError with a sentence about the damage.

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
    dirty = sum(lengths)
    end = sum(gaps) + dirty
    if end > frames:
        raise ValueError(f"its runs end at frame {end:#x}, beyond its own end at {frames:#x}")
    bits = bitarray(frames, endian="little")
    bits.setall(0)
    position = 0
    for gap, length in zip(gaps, lengths, strict=True):
        position += gap
        bits[position : position + length] = 1
        position += length
    return bits, dirty


def _runs(bits: bitarray, position: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of set bits from ``position`` on."""
    find, frames = bits.find, len(bits)
    while (start := find(1, position)) >= 0:
        position = find(0, start)
        if position < 0:
            yield start, frames
            return
        yield start, position


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
