"""Deterministic mutations of files: input number `i` of a seed file is always the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# Values at the limits of number formats, and bytes that end or open things in text formats.
_INTERESTING = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\x7f\xff\xff\xff",
    b"\0\0\0\0", b"-1", b"9" * 40, b"nan", b"inf", b"1e999", b"{", b"}", b"[", b"]", b'"', b"\n",
    b"\\u0000", b"null", b"../../x", b"%s", b"\xef\xbb\xbf",
)  # fmt: skip

Rng = np.random.Generator


def mutated(seeds: Sequence[bytes], target: str, i: int) -> bytes:
    """Return mutation `i` of one of the seed files of a target."""
    rng = np.random.default_rng([i, *target.encode()])
    data = seeds[int(rng.integers(len(seeds)))]
    for _ in range(int(rng.integers(1, 5))):
        change = _CHANGES[int(rng.integers(len(_CHANGES)))]
        data = change(data, rng, seeds)
    return data


def _position(data: bytes, rng: Rng) -> int:
    # Half of the mutations are in the header, where formats keep their sizes and counts.
    end = min(len(data), 200) if rng.random() < 0.5 else len(data)
    return int(rng.integers(0, max(1, end)))


def _flip(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[_position(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    value, at = _INTERESTING[int(rng.integers(len(_INTERESTING)))], _position(data, rng)
    return data[:at] + value + data[at + len(value) :]


def _insert(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    value, at = _INTERESTING[int(rng.integers(len(_INTERESTING)))], _position(data, rng)
    return data[:at] + value + data[at:]


def _truncate(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    return data[: _position(data, rng)]


def _remove(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    at = _position(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 64)) :]


def _repeat(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    at, length = _position(data, rng), int(rng.integers(1, 64))
    return data[:at] + data[at : at + length] * int(rng.integers(2, 20)) + data[at:]


def _zero(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    at, length = _position(data, rng), int(rng.integers(1, 256))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def _splice(data: bytes, rng: Rng, seeds: Sequence[bytes]) -> bytes:
    other = seeds[int(rng.integers(len(seeds)))]
    return data[: _position(data, rng)] + other[_position(other, rng) :]


_CHANGES: tuple[Callable[[bytes, Rng, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _set, _insert, _truncate, _remove, _repeat, _zero, _splice,
)  # fmt: skip
