"""Damaged metadata files: the sessions that need them say so, the others stay whole."""

import gzip
import os
import random
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import repositories, witness
from tests.hostile.repositories import DATA, FIRST, SECOND, metadata_path, put

BOTH: dict[int, set[bytes]] = {FIRST: {b""}, SECOND: {b""}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    repositories.make(path)
    return path


def bind_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def device_of_zeros(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


NOT_FILES: list[Callable[[Path], object]] = [os.mkfifo, Path.mkdir, bind_socket, link_to_zero, link_to_itself]
if os.geteuid() == 0:
    NOT_FILES.append(device_of_zeros)


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_something_else_in_the_place_of_the_newest_list(
    repository: Path, tmp_path: Path, make_node: Callable[[Path], object]
) -> None:
    put(metadata_path(repository, SECOND), make_node)
    witness.check(repository, tmp_path, BOTH)


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_something_else_in_the_place_of_a_diff(
    repository: Path, tmp_path: Path, make_node: Callable[[Path], object]
) -> None:
    put(metadata_path(repository, FIRST), make_node)
    witness.check(repository, tmp_path, {FIRST: {b""}})


@pytest.mark.parametrize("name", ["chars_to_quote", "special_escapes"])
@pytest.mark.parametrize("make_node", NOT_FILES)
def test_something_else_in_the_place_of_a_rule(
    repository: Path, tmp_path: Path, name: str, make_node: Callable[[Path], object]
) -> None:
    put(repository / DATA / name, make_node)
    witness.check(repository, tmp_path, BOTH)


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_something_else_in_the_place_of_what_is_not_read(
    repository: Path, tmp_path: Path, make_node: Callable[[Path], object]
) -> None:
    """The names say it all; a reader has no business in these files."""
    for path in (repository / DATA).glob("*.data"):
        put(path, make_node)
    for path in (repository / DATA).glob("increments.*"):
        put(path, make_node)
    put(repository / DATA / "lock.yml", make_node)
    witness.check(repository, tmp_path, {})


GARBAGE = random.Random(1).randbytes(300)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: GARBAGE,
    "compressed garbage": lambda _: gzip.compress(GARBAGE),
    "compressed nothing": lambda _: gzip.compress(b""),
    "only the magic": lambda _: b"\x1f\x8b",
    "no trailer": lambda whole: whole[:-8],
    "wrong checksum": lambda whole: whole[:-8] + b"1234" + whole[-4:],
    "wrong length": lambda whole: whole[:-4] + b"1234",
    "half": lambda whole: whole[: len(whole) // 2],
    "garbage after it": lambda whole: whole + GARBAGE,
    "zeros": lambda whole: bytes(len(whole)),
    "another format": lambda whole: zlib.compress(gzip.decompress(whole)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_list(repository: Path, tmp_path: Path, damage: str) -> None:
    """A reader may show what it could save, if it says that something is missing."""
    path = metadata_path(repository, SECOND)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    witness.check(repository, tmp_path, BOTH)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage not in ("empty", "compressed nothing")])
def test_a_damaged_diff(repository: Path, tmp_path: Path, damage: str) -> None:
    path = metadata_path(repository, FIRST)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    witness.check(repository, tmp_path, {FIRST: {b""}})


@pytest.mark.parametrize("session_time", [FIRST, SECOND])
def test_a_missing_list(repository: Path, tmp_path: Path, session_time: int) -> None:
    metadata_path(repository, session_time).unlink()
    witness.check(repository, tmp_path, BOTH if session_time == SECOND else {FIRST: {b""}})


def test_every_flipped_bit_is_noticed_or_harmless(repository: Path, tmp_path: Path) -> None:
    path = metadata_path(repository, SECOND)
    whole = path.read_bytes()
    chance = random.Random(2)
    for number in range(40):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        scratch = tmp_path / str(number)
        scratch.mkdir()
        witness.check_honest(repository, scratch)


def test_a_list_that_unpacks_to_a_gigabyte(repository: Path, tmp_path: Path) -> None:
    """One record without end: nobody keeps it in memory."""
    bomb = gzip.compress(b"File ") + gzip.compress(b"x" * (1 << 24)) * 64
    metadata_path(repository, SECOND).write_bytes(bomb)
    for verb in (["verify", str(repository)], ["restore", str(repository), str(tmp_path / "target")]):
        ran = witness.run_cramped(*verb)
        assert ran.returncode & 0b101, ran
        assert ran.stderr.startswith("histfs: "), ran


@pytest.mark.parametrize("line", [b"\n", b"File a\n", b"  Type reg\n", b"File .\n  Type None\n"])
def test_a_list_of_very_many_times_nothing(repository: Path, tmp_path: Path, line: bytes) -> None:
    metadata_path(repository, SECOND).write_bytes(gzip.compress(line * 30_000))
    assert witness.verified(repository, SECOND).complaints
    assert witness.restored(repository, SECOND, tmp_path).complaints


def test_both_forms_of_one_list(repository: Path, tmp_path: Path) -> None:
    """What a session leaves that dies while it replaces its last list (docs/format.md 5.4)."""
    diff = metadata_path(repository, FIRST)
    whole = diff.with_name(diff.name.replace("diff", "snapshot"))
    whole.write_bytes(gzip.compress(b"".join(repositories.records(repositories.OLD))))
    diff.write_bytes(diff.read_bytes()[:20])
    witness.check(repository, tmp_path, {})


def test_a_list_that_is_not_compressed(repository: Path, tmp_path: Path) -> None:
    path = metadata_path(repository, SECOND)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    witness.check(repository, tmp_path, {})


@pytest.mark.parametrize(
    "name",
    [
        "mirror_metadata.2023-99-99T25:61:61Z.snapshot.gz",
        "mirror_metadata.0000-01-01T00:00:00Z.diff.gz",
        "mirror_metadata.99999-01-01T00:00:00Z.diff.gz",
        "mirror_metadata.2023-11-14T22:13:20.diff.gz",
        "mirror_metadata.2023-11-14T22:13:20Z.data",
        "mirror_metadata.snapshot.gz",
        "current_mirror.data",
        "increments.2023-11-14T22:13:20Z.data",
        "..",
        "\udcff\udcfe",
    ],
)
def test_names_that_are_not_those_of_lists(repository: Path, tmp_path: Path, name: str) -> None:
    if name != "..":
        (repository / DATA / name).write_bytes(GARBAGE)
    witness.check(repository, tmp_path, {})


@pytest.mark.parametrize("rule", [b"[", b"a-", b"z-a", b"\\", b"]", b"^", b"[[:alpha:]", b"(?P<x>", b"a{1000}"])
def test_rules_for_quoting_that_are_none(repository: Path, tmp_path: Path, rule: bytes) -> None:
    (repository / DATA / "chars_to_quote").write_bytes(rule)
    witness.check_honest(repository, tmp_path)


def test_rules_for_quoting_without_end(repository: Path, tmp_path: Path) -> None:
    (repository / DATA / "chars_to_quote").write_bytes(b"A-Z" * 100_000)
    witness.check(repository, tmp_path, BOTH)
