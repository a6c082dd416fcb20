"""librsync's delta format in plain Python: slow, small, and written from docs/format.md 6.6 alone.

The tests hold `histfs.rsync` against it. A delta is the magic, then commands, then a byte 0; numbers are big-endian:

    01..40  literal of that many bytes          41 42 43 44  literal, its length in 1, 2, 4, 8 bytes
    45..54  copy: 45 + 4*i + j has the position in 2^i bytes, then the length in 2^j bytes      00  end
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAGIC = bytes.fromhex("72730236")
LARGEST = 2**63 - 1


class DeltaError(Exception):
    """Not a delta, or not one for this basis."""


class Literal(NamedTuple):
    data: bytes


class Copy(NamedTuple):
    position: int
    length: int


def parse(delta: bytes) -> Iterator[Literal | Copy]:
    """The commands of `delta`, one by one; DeltaError where it goes wrong. What follows the end is ignored."""
    if delta[:4] != MAGIC:
        raise DeltaError("magic")
    at = 4

    def number(width: int) -> int:
        nonlocal at
        at += width
        if at > len(delta):
            raise DeltaError("cut off")
        return int.from_bytes(delta[at - width : at], "big")

    while op := number(1):
        if op > 0x54:
            raise DeltaError(f"command {op:#x}")
        position = number(1 << (op - 0x45 >> 2)) if op >= 0x45 else 0
        length = op if op <= 0x40 else number(1 << (op - 0x41 if op < 0x45 else op - 0x45 & 3))
        if not 0 < length <= LARGEST or position > LARGEST:
            raise DeltaError("number")
        if op >= 0x45:
            yield Copy(position, length)
        else:
            at += length
            if at > len(delta):
                raise DeltaError("cut off")
            yield Literal(delta[at - length : at])


def apply(basis: bytes, delta: bytes, max_size: int) -> bytes:
    """What `delta` makes of `basis`."""
    made = bytearray()
    for command in parse(delta):
        if isinstance(command, Literal):
            made += command.data
        elif command.position + command.length > len(basis):
            raise DeltaError("basis too short")
        else:
            made += basis[command.position : command.position + command.length]
        if len(made) > max_size:
            raise DeltaError("too large")
    return bytes(made)


def encode(commands: Iterable[Literal | Copy], widen: int = 0, end: bytes = b"\0") -> bytes:
    """A delta of these commands; numbers are up to `widen` sizes wider than they must be (a reader must not mind)."""
    parts = [MAGIC]
    for command in commands:
        if isinstance(command, Literal):
            i = _width(len(command.data), widen)
            if len(command.data) <= 0x40 and not widen:
                parts.append(bytes([len(command.data)]))
            else:
                parts += bytes([0x41 + i]), len(command.data).to_bytes(1 << i, "big")
            parts.append(command.data)
        else:
            i, j = _width(command.position, widen), _width(command.length, widen)
            parts += bytes([0x45 + 4 * i + j]), command.position.to_bytes(1 << i, "big")
            parts.append(command.length.to_bytes(1 << j, "big"))
    return b"".join(parts) + end


def _width(number: int, widen: int) -> int:
    smallest = next(i for i in range(4) if number < 1 << (8 << i))
    return min(3, smallest + widen)
