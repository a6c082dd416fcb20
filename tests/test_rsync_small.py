"""Small versions that C makes at once: the recorded bytes or none, whatever the files hold."""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs.rsync import Link, SmallVersion
from tests.rsync_reference import Copy, Literal, encode
from tests.store.places import open_descriptors

LARGEST = 1 << 20  # bytes of anything on the way


def sha1(data: bytes) -> bytes:
    return hashlib.sha1(data).digest()


class Place(NamedTuple):
    """A mirror and a directory with increments."""

    mirror: Path
    increments: Path

    def make(self, *versions: SmallVersion) -> list[bytes | None]:
        fds = [os.open(directory, os.O_RDONLY | os.O_DIRECTORY) for directory in self]
        try:
            return [None if made is None else bytes(made.data) for made in rsync.make_small(*fds, versions)]
        finally:
            for fd in fds:
                os.close(fd)


@contextmanager
def new_place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as made:
        place = Place(Path(made, "mirror"), Path(made, "increments"))
        for directory in place:
            directory.mkdir()
        yield place


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as made:
        yield made


def in_mirror(place: Place, data: bytes, name: str = "f") -> SmallVersion:
    (place.mirror / name).write_bytes(data)
    return SmallVersion(len(data), sha1(data), [Link(name.encode(), in_mirror=True)])


class Step(NamedTuple):
    """How a version is kept in a chain: as it is, or as what differs from the one after it."""

    content: bytes
    is_whole: bool
    members: int  # 0: not compressed


CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=40), st.integers(0, 400)),
)
STEPS = st.lists(st.builds(Step, CONTENTS, st.booleans(), st.integers(0, 3)), min_size=1, max_size=6)


def compressed(data: bytes, members: int) -> bytes:
    size = len(data) // members + 1
    return b"".join(gzip.compress(data[at : at + size]) for at in range(0, members * size, size))


def write_chain(place: Place, newest: bytes, steps: Sequence[Step]) -> list[SmallVersion]:
    """Keeps `newest` in the mirror, and what was before, step by step; all the versions."""
    versions, links, after = [in_mirror(place, newest)], [Link(b"f", in_mirror=True)], newest
    for number, step in enumerate(steps):
        kept = step.content if step.is_whole else b"".join(rsync.delta(rsync.Signature.of(after), step.content))
        packed = compressed(kept, step.members) if step.members else kept
        (place.increments / f"f.{number}").write_bytes(packed)
        link = Link(b"f.%d" % number, is_compressed=bool(step.members))
        links = [link] if step.is_whole else [*links, link]
        versions.append(SmallVersion(len(step.content), sha1(step.content), links))
        after = step.content
    return versions


@given(CONTENTS, STEPS)
def test_versions_are_what_they_were(newest: bytes, steps: list[Step]) -> None:
    with new_place() as place:
        versions = write_chain(place, newest, steps)
        assert place.make(*versions) == [newest, *(step.content for step in steps)]


@given(CONTENTS, STEPS, st.data())
def test_what_is_damaged_is_not_made(newest: bytes, steps: list[Step], data: st.DataObject) -> None:
    with new_place() as place:
        versions = write_chain(place, newest, steps)
        victim = data.draw(st.sampled_from(sorted([*place.mirror.iterdir(), *place.increments.iterdir()])))
        content = victim.read_bytes()
        at = data.draw(st.integers(0, len(content)))
        victim.write_bytes(
            content[:at] + data.draw(st.binary(max_size=30)) + content[at + data.draw(st.integers(0, 9)) :]
        )
        for made, right in zip(place.make(*versions), [newest, *(step.content for step in steps)], strict=True):
            assert made in (None, right)


def test_many_are_made_at_once(place: Place) -> None:
    contents = [os.urandom(number * 10) for number in range(300)]
    versions = [in_mirror(place, content, f"{number}") for number, content in enumerate(contents)]
    long = rsync.MOST_LINKS - 1
    diffs = [Step(b"version %d" % number, False, number % 2) for number in range(long)]
    chain = write_chain(place, b"newest", diffs)[-1]
    before = open_descriptors()
    assert place.make(*versions[:150], chain, *versions[150:], chain) == [
        *contents[:150], b"version %d" % (long - 1), *contents[150:], b"version %d" % (long - 1)
    ]  # fmt: skip
    assert open_descriptors() == before
    assert place.make() == []


def test_what_is_no_regular_file_is_not_opened(place: Place) -> None:
    version = in_mirror(place, b"file")
    os.mkfifo(place.mirror / "fifo")
    (place.mirror / "link").symlink_to("f")
    (place.mirror / "directory").mkdir()
    others = [
        version._replace(links=[Link(name, in_mirror=True)]) for name in (b"fifo", b"link", b"directory", b"none")
    ]
    assert place.make(*others, version) == [None, None, None, None, b"file"]


def test_other_sizes_and_sums_are_refused(place: Place) -> None:
    version = in_mirror(place, b"file")
    assert place.make(version._replace(size_bytes=3), version._replace(size_bytes=5)) == [None, None]
    assert place.make(version._replace(sha1=sha1(b"else"))) == [None]
    assert place.make(version._replace(links=[Link(b"f")])) == [None]  # it lies in the other directory


@pytest.mark.parametrize(("size", "is_made"), [(LARGEST, True), (LARGEST + 1, False)])
def test_there_is_a_largest_file(place: Place, size: int, is_made: bool) -> None:
    data = bytes(size)
    assert place.make(in_mirror(place, data)) == [data if is_made else None]
    (place.increments / "z").write_bytes(gzip.compress(data))
    assert place.make(SmallVersion(size, sha1(data), [Link(b"z", is_compressed=True)])) == [data if is_made else None]
    copies = encode([Literal(bytes(1024)), *[Copy(0, 1024)] * (size // 1024 - 1), Literal(bytes(size % 1024))])
    (place.increments / "d").write_bytes(copies)
    in_mirror(place, bytes(1024))
    version = SmallVersion(size, sha1(data), [Link(b"f", in_mirror=True), Link(b"d")])
    assert place.make(version) == [data if is_made else None]


@pytest.mark.parametrize(
    "commands",
    [[Copy(0, 5)], [Copy(4, 1)], [Copy(3, 2)], [Copy(2**40, 1)], [Copy(0, 2**40)], [Literal(b"x"), Copy(9, 9)]],
)
def test_nothing_beyond_the_basis_is_copied(place: Place, commands: list[Copy | Literal]) -> None:
    version = in_mirror(place, b"four")
    (place.increments / "d").write_bytes(encode(commands))
    assert place.make(SmallVersion(4, version.sha1, [*version.links, Link(b"d")])) == [None]


def test_a_bomb_takes_no_memory(place: Place) -> None:
    in_mirror(place, b"x" * 1000)
    (place.increments / "d").write_bytes(encode([Copy(0, 1000)] * 100_000))
    (place.increments / "z").write_bytes(gzip.compress(bytes(50 << 20)))
    bombs = [[Link(b"f", in_mirror=True), Link(b"d")], [Link(b"z", is_compressed=True)]]
    assert place.make(*(SmallVersion(9, sha1(b"x"), links) for links in bombs)) == [None, None]


@pytest.mark.parametrize(
    "version",
    [
        SmallVersion(1, bytes(20), []),
        SmallVersion(1, bytes(20), [Link(b"f")] * (rsync.MOST_LINKS + 1)),
        SmallVersion(1, bytes(19), [Link(b"f")]),
        SmallVersion(-1, bytes(20), [Link(b"f")]),
        *(SmallVersion(1, bytes(20), [Link(name)]) for name in (b"", b".", b"..", b"b/file", b"a\0b")),
    ],
)
def test_misuse(place: Place, version: SmallVersion) -> None:
    with pytest.raises(rsync.ParameterError):
        place.make(version)
