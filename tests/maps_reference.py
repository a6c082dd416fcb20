"""Extent maps in plain Python: slow, small, and made from the commands that `rsync_reference` parses.

The tests hold `histfs.rsync` against it. A map is a list of (source, offset in it, length); source 0 is the basis, HOLE
is where literals lie that nobody wants.
"""

from collections.abc import Iterable, Iterator, Mapping

from tests.rsync_reference import Copy, Literal, encode, parse

BASIS = 0
HOLE = 65535
Extent = tuple[int, int, int]
Map = list[Extent]


def merged(extents: Iterable[Extent]) -> Map:
    """The same bytes in as few extents as possible."""
    made: Map = []
    for source, offset, length in extents:
        if made and made[-1][0] == source and (source == HOLE or made[-1][1] + made[-1][2] == offset):
            made[-1] = (source, made[-1][1], made[-1][2] + length)
        else:
            made.append((source, offset, length))
    return made


def of_delta(delta: bytes, source: int) -> Map:
    """The map of `delta`; literals lie in `source` one after the other."""
    made, spooled = [], 0
    for command in parse(delta):
        if isinstance(command, Copy):
            made.append((BASIS, *command))
        else:
            made.append((source, spooled, len(command.data)))
            spooled += len(command.data)
    return merged(made)


def literals(delta: bytes) -> bytes:
    return b"".join(command.data for command in parse(delta) if isinstance(command, Literal))


def commands(delta: bytes) -> bytes:
    """`delta` without the bytes of its literals (only where `encode` would have written it the same way)."""
    parsed = list(parse(delta))
    stripped = encode([])[:-1]
    for command in parsed:
        encoded = encode([command])[4:-1]
        stripped += encoded[: -len(command.data)] if isinstance(command, Literal) else encoded
    return stripped + b"\0"


def cut(extents: Map, offset: int, length: int) -> Iterator[Extent]:
    """Where `length` bytes from `offset` on lie."""
    at = 0
    for source, start, size in extents:
        low, high = max(at, offset), min(at + size, offset + length)
        if low < high:
            yield source, 0 if source == HOLE else start + low - at, high - low
        at += size


def compose(older: Map, newer: Map) -> Map:
    """`older` with its basis looked up in `newer`; ValueError if it wants more than there is."""
    size = sum(length for _, _, length in newer)
    made: Map = []
    for source, offset, length in older:
        if source == BASIS and offset + length > size:
            raise ValueError("basis too short")
        made += cut(newer, offset, length) if source == BASIS else [(source, offset, length)]
    return merged(made)


def wanted(newer: Map, older: Map) -> set[int]:
    """Which bytes of the target of `newer` the map `older` refers to."""
    return {at for source, offset, length in older if source == BASIS for at in range(offset, offset + length)}


def read(extents: Map, sources: Mapping[int, bytes]) -> bytes:
    return b"".join(sources[source][offset : offset + length] for source, offset, length in extents)
