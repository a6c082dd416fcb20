"""Damaged contents: mirror files and increments. Only the file that needs them is lost."""

import gzip
import hashlib
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.hostile import repositories, witness
from tests.hostile.repositories import (
    DATA,
    DELTA_MAGIC,
    END,
    FIRST,
    INCREMENTS,
    SECOND,
    copy,
    edit_records,
    increment_path,
    literal,
    put,
    write_delta,
    write_snapshot,
)
from tests.hostile.test_lists import NOT_FILES

SECRET = b"nobody may see this"
NEW_SIZE = 13 * 300


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    repositories.make(path)
    return path


def both(*paths: bytes) -> dict[int, set[bytes]]:
    return {FIRST: set(paths), SECOND: set(paths)}


# Something else where a file is expected: it is never opened, let alone followed


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_in_the_mirror(repository: Path, tmp_path: Path, make_node: Callable[[Path], object]) -> None:
    put(repository / "keep", make_node)
    put(repository / "d/deeper/x", make_node)
    put(repository / "one", make_node)
    # The links of a file are one inode in the mount, and lost together there.
    witness.check(repository, tmp_path, both(b"keep", b"d/deeper/x", b"one", b"two"))


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_in_the_mirror_below_an_increment(
    repository: Path, tmp_path: Path, make_node: Callable[[Path], object]
) -> None:
    put(repository / "changed", make_node)
    put(repository / "replaced", make_node)  # its old version is complete in the increment
    witness.check(repository, tmp_path, {FIRST: {b"changed"}, SECOND: {b"changed", b"replaced"}})


@pytest.mark.parametrize("make_node", [make for make in NOT_FILES if make is not Path.mkdir])
@pytest.mark.parametrize(("name", "suffix"), [(b"changed", "diff.gz"), (b"deleted", "snapshot.gz")])
def test_in_the_increments(
    repository: Path, tmp_path: Path, name: bytes, suffix: str, make_node: Callable[[Path], object]
) -> None:
    put(increment_path(repository, name, suffix), make_node)
    witness.check(repository, tmp_path, {FIRST: {name}})


def test_a_link_to_a_file_with_the_right_content(repository: Path, tmp_path: Path) -> None:
    """Even if nobody could tell by the bytes: what lies outside is not read."""
    for path, content in ((repository / "keep", b"kept as it is\n"), (repository / "d/inner", b"inside\n")):
        outside = tmp_path / path.name
        outside.write_bytes(content)
        put(path, partial(Path.symlink_to, target=outside))
    witness.check(repository, tmp_path, both(b"keep", b"d/inner"))


def test_links_to_directories(repository: Path, tmp_path: Path) -> None:
    (repository / "d").rename(tmp_path / "elsewhere")
    (repository / "d").symlink_to(tmp_path / "elsewhere")
    witness.check(repository, tmp_path, both(b"d/inner", b"d/deeper/x"))


def test_a_missing_increment(repository: Path, tmp_path: Path) -> None:
    """The mirror's file has the size of the version, but it is another one."""
    increment_path(repository, b"changed", "diff.gz").unlink()
    witness.check(repository, tmp_path, {FIRST: {b"changed"}})


def test_a_link_in_the_place_of_the_increments(repository: Path, tmp_path: Path) -> None:
    (repository / INCREMENTS).rename(tmp_path / "elsewhere")
    (repository / INCREMENTS).symlink_to(tmp_path / "elsewhere")
    witness.check(repository, tmp_path, {FIRST: {b"changed", b"replaced", b"deleted"}})


def test_a_long_name_that_leads_elsewhere(repository: Path, tmp_path: Path) -> None:
    """`long_filename_data` is a link, and the file that a record names there has its right content."""
    digest = hashlib.sha1(SECRET).hexdigest()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "7").write_bytes(SECRET)
    (repository / DATA / "long_filename_data").symlink_to(tmp_path / "elsewhere")
    fields: dict[str, object] = {"Type": "reg", "Size": len(SECRET), "SHA1Digest": digest, "ModTime": 0}
    fields |= {"AlternateMirrorName": 7, "Permissions": 0o644}
    repositories.insert_record(repository, repositories.record(b"evil", **fields), before=b"keep")
    witness.check(repository, tmp_path, both(b"evil"))


# Wrong bytes


@pytest.mark.parametrize("content", [b"", b"KEPT as it is\n", b"kept as it is", b"kept as it is\n\n", bytes(14)])
def test_a_mirror_file_that_was_changed(repository: Path, tmp_path: Path, content: bytes) -> None:
    """The mount gives out a mirror file without reading all of it first: it sees the size, `verify` sees the rest."""
    status = os.stat(repository / "keep")
    (repository / "keep").write_bytes(content)
    os.utime(repository / "keep", ns=(status.st_atime_ns, status.st_mtime_ns))
    for session_time in (FIRST, SECOND):
        assert witness.verified(repository, session_time).complaints
        account = witness.restored(repository, session_time, tmp_path)
        assert account.complaints
        assert account.found is not None
        assert b"keep" not in account.found
        if len(content) != len(b"kept as it is\n"):
            assert witness.shown(repository, session_time).complaints


@pytest.mark.parametrize("name", ["keep", "changed", "replaced", "d"])
def test_a_mirror_file_that_is_gone(repository: Path, tmp_path: Path, name: str) -> None:
    put(repository / name, lambda _: None)
    path = os.fsencode(name)
    lost = both(b"d/inner", b"d/deeper/x") if name == "d" else both(path)
    if name == "replaced":
        lost = {SECOND: {path}}
    witness.check(repository, tmp_path, lost)


GARBAGE = random.Random(1).randbytes(300)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: GARBAGE,
        lambda _: gzip.compress(GARBAGE),
        lambda whole: whole[:-8],
        lambda whole: whole[:20],
        lambda whole: whole[:-8] + b"1234" + whole[-4:],
        lambda whole: whole + b"garbage",
        lambda whole: bytes(len(whole)),
    ],
)
@pytest.mark.parametrize(
    ("name", "suffix"), [(b"changed", "diff.gz"), (b"deleted", "snapshot.gz"), (b"replaced", "snapshot.gz")]
)
def test_a_damaged_increment(
    repository: Path, tmp_path: Path, name: bytes, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    path = increment_path(repository, name, suffix)
    path.write_bytes(damage(path.read_bytes()))
    witness.check(repository, tmp_path, {FIRST: {name}})


def test_every_flipped_bit_is_noticed_or_harmless(repository: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    for number in range(40):
        name, suffix = chance.choice([(b"changed", "diff.gz"), (b"deleted", "snapshot.gz")])
        path = increment_path(repository, name, suffix)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        scratch = tmp_path / str(number)
        scratch.mkdir()
        witness.check_honest(repository, scratch)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "commands",
    [
        b"",
        END,
        literal(b"too short") + END,
        copy(0, NEW_SIZE),
        copy(0, NEW_SIZE) + END + END,
        copy(0, NEW_SIZE) + END,  # right in size, wrong in bytes
        copy(1, NEW_SIZE) + END,
        copy(NEW_SIZE, 1) + END,
        copy(2**63 - 1, 1) + END,
        copy(2**64 - 1, 2**64 - 1) + END,
        copy(0, 2**62) + END,
        copy(0, 0) + END,
        literal(b"the old text\n" + b"the new text\n" * 299) + b"\x55" + END,
        b"\xff" * 50,
        b"\x44" + b"\xff" * 8,
        b"\x44" + (2**62).to_bytes(8, "big") + b"x" * 100,
        b"\x40" + b"x" * 10,
        b"\x45\x00",
    ],
    ids=lambda commands: commands[:24].hex() or "nothing",
)
def test_a_delta_that_leads_to_something_else(repository: Path, tmp_path: Path, commands: bytes) -> None:
    write_delta(repository, b"changed", commands)
    witness.check(repository, tmp_path, {FIRST: {b"changed"}})


@pytest.mark.parametrize("magic", [b"rs\x027", b"rs\x016", b"", b"\x72"])
def test_what_is_no_delta(repository: Path, tmp_path: Path, magic: bytes) -> None:
    path = increment_path(repository, b"changed", "diff.gz")
    commands = gzip.decompress(path.read_bytes()).removeprefix(DELTA_MAGIC)
    path.write_bytes(gzip.compress(magic + commands))
    witness.check(repository, tmp_path, {FIRST: {b"changed"}})


def test_increments_that_contradict_the_list(repository: Path, tmp_path: Path) -> None:
    increment_path(repository, b"deleted", "snapshot.gz").unlink()
    increment_path(repository, b"deleted", "missing").touch()
    increment_path(repository, b"replaced", "snapshot.gz").unlink()
    increment_path(repository, b"replaced", "dir").touch()
    witness.check(repository, tmp_path, {FIRST: {b"deleted", b"replaced"}})


def test_two_increments_of_one_time(repository: Path, tmp_path: Path) -> None:
    """One of them leads to the right digest (docs/format.md trap 19), or there is a complaint."""
    plain = increment_path(repository, b"changed", "diff")
    plain.write_bytes(DELTA_MAGIC + copy(0, 5) + END)
    witness.check(repository, tmp_path, {FIRST: {b"changed"}}, silent=True)


def test_an_increment_of_a_time_that_no_session_had(repository: Path, tmp_path: Path) -> None:
    stray = increment_path(repository, b"changed", "diff.gz")
    stray.with_name(stray.name.replace("11-14T22:13:20", "11-14T23:00:00")).write_bytes(stray.read_bytes())
    witness.check(repository, tmp_path, {FIRST: {b"changed"}}, silent=True)


# Much out of little


def huge_sizes(text: bytes) -> bytes:
    return text.replace(b"Size 3900\n", b"Size 1099511627776\n").replace(b"Size 22\n", b"Size 1099511627776\n")


@pytest.mark.parametrize("is_believed", [False, True], ids=["honest size", "claimed size"])
def test_bombs(repository: Path, tmp_path: Path, is_believed: bool) -> None:
    """Increments that unpack to very much: cut off at the recorded size, or at what there is room for."""
    write_delta(repository, b"changed", copy(0, NEW_SIZE) * 500_000 + END)
    increment_path(repository, b"deleted", "snapshot.gz").write_bytes(gzip.compress(bytes(1 << 24)) * 64)
    if is_believed:
        edit_records(repository, huge_sizes, FIRST)
    for verb in (["verify", "--at=1B", str(repository)], ["restore", "--at=1B", str(repository), str(tmp_path / "t")]):
        ran = witness.run_cramped(*verb)
        assert ran.returncode & (6 if is_believed else 4), ran
        assert len(ran.stderr.splitlines()) == 2, ran
        assert is_believed or ("changed" in ran.stderr and "deleted" in ran.stderr)
    found = {path.name for path in (tmp_path / "t").iterdir()}
    assert found == {"keep", "d", "link", "one", "two", "replaced"}


def test_a_chain_that_grows_with_every_link(repository: Path, tmp_path: Path) -> None:
    """Each delta makes its basis a hundred times larger, and the last one small again."""
    names = [f"2023-11-14T22:{minute:02}:20Z" for minute in range(14, 22)]
    for name in names:
        path = increment_path(repository, b"changed", "diff.gz")
        delta = gzip.compress(DELTA_MAGIC + copy(0, NEW_SIZE) * 100 + END)
        path.with_name(f"changed.{name}.diff.gz").write_bytes(delta)
    write_delta(repository, b"changed", copy(0, 1) + END)
    ran = witness.run_cramped("verify", "--at=1B", str(repository))
    assert ran.returncode == 4, ran
    witness.check(repository, tmp_path, {FIRST: {b"changed"}})


def test_a_chain_that_is_very_long(repository: Path, tmp_path: Path) -> None:
    """Two thousand increments that change nothing lead to what was there: no recursion, no heap of descriptors."""
    for number in range(2_000):
        hour, minute = divmod(number, 60)
        name = f"changed.2023-11-{15 + hour // 24:02}T{hour % 24:02}:{minute:02}:00Z.diff.gz"
        delta = gzip.compress(DELTA_MAGIC + copy(0, NEW_SIZE) + END)
        (repository / INCREMENTS / name).write_bytes(delta)
    witness.check(repository, tmp_path, {FIRST: {b"changed"}, SECOND: {b"changed"}}, silent=True)


def test_a_snapshot_that_is_larger_than_recorded(repository: Path, tmp_path: Path) -> None:
    write_snapshot(repository, b"deleted", b"once there was a file\nand more")
    witness.check(repository, tmp_path, {FIRST: {b"deleted"}})
