"""Copying many files by threads: the same as one by one, and no copy of what is not what it was."""

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import EXIT_FILE_WARNING, SourceError, StorageError
from histfs.store import copying, growing
from histfs.store.cloned import Clone
from histfs.store.copying import Copies
from histfs.store.entry import Kind
from histfs.store.files import Attributes, Block, WritableTree
from histfs.store.source import Found, Source
from tests.store.cloning import imitated_clone
from tests.store.places import is_root, open_descriptors
from tests.store.sessions import Sessions
from tests.trees import Dir, File, Symlink, build

SIZES = [0, 1, 55, 56, 63, 64, 65, 119, 120, 4096, 2**18 - 1, 2**18, 2**18 + 1, 2**19 + 77, 10**6]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tmp_path


def copy_all(top: Path) -> dict[bytes, bytes | None]:
    """All regular files of `source` to `mirror`, both without directories; their digests."""
    with (
        Source.open(top / "source") as source,
        WritableTree.open(top / "mirror") as tree,
        Copies(source, tree) as copies,
    ):
        found = [item for item in source.walk(lambda *_: False) if isinstance(item, Found)]
        files = [item for item in found if item.entry.kind is Kind.REGULAR]
        wanted = {item.path: Attributes(item.entry.mode, item.entry.uid, item.entry.gid, 0) for item in files}
        begun = {item.path: copies.add(item, item.path, wanted[item.path]) for item in files}
        copies.wait()
        return {path: copy.sha1() for path, copy in begun.items()}


def test_contents_modes_and_times(top: Path) -> None:
    random_ = random.Random(5)
    contents = {f"f{size}": random_.randbytes(size) for size in SIZES}
    files = {name: File(data, mode=0o600 + len(data) % 0o200) for name, data in contents.items()}
    build(top / "source", Dir(files))
    os.utime(top / "source/f1", ns=(-1_500_000_001, -1_500_000_001))
    before = open_descriptors()
    digests = copy_all(top)
    assert open_descriptors() == before
    assert digests == {os.fsencode(name): hashlib.sha1(data).hexdigest().encode() for name, data in contents.items()}
    for name, data in contents.items():
        assert (top / "mirror" / name).read_bytes() == data
        ours, theirs = (top / "mirror" / name).stat(), (top / "source" / name).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)


def test_holes_stay_holes(top: Path) -> None:
    build(top / "source", Dir())
    with (top / "source/a").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"x")
    (digest,) = copy_all(top).values()
    data = bytes(1 << 20) + b"x" + bytes((2 << 20) - 1)
    assert (top / "mirror/a").read_bytes() == data
    assert digest == hashlib.sha1(data).hexdigest().encode()
    assert (top / "mirror/a").stat().st_blocks * 512 <= 512 * 1024


def _gone(path: Path) -> None:
    path.unlink()


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _other_time(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def _other_file(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.with_name("other"))
    path.write_bytes(data)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


HAPPENINGS = [_gone, _longer, _other_time, _other_file, _fifo, _link, _directory]


@pytest.mark.parametrize("happens", HAPPENINGS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_another_file_now_is_not_in_the_session(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Path], None], is_first: bool
) -> None:
    build(sessions.source, Dir({"b": File(b"b"), "z": File(b"z")}))
    if not is_first:
        sessions.backup()
    (sessions.source / "m").write_bytes(b"new")
    real = Copies.start

    def start(copies: Copies) -> None:
        if any(copy.found.path == b"m" for copy in copies._batch.files):
            happens(sessions.source / "m")
        real(copies)

    with monkeypatch.context() as patch:
        patch.setattr(Copies, "start", start)
        outcome = sessions.backup(may_report=True)
    assert (outcome.source_errors, outcome.source_warnings) == (0, 1)
    assert [(error.path, error.exit_code) for error in sessions.reported] == [(b"m", EXIT_FILE_WARNING)]
    assert {b"b", b"z"} == set(sessions.manifest(sessions.now)) - {b""}
    assert not os.path.lexists(sessions.repository / "m")
    sessions.states.popitem()
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_readable(sessions.now)


def test_many_files_in_their_order(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than wait at once, in more directories than one batch may have, of all kinds."""
    monkeypatch.setattr("histfs.store.ordered._MOST_WAITING", 20)
    monkeypatch.setattr(copying, "_BATCH_FILES", 7)
    monkeypatch.setattr(copying, "_BATCH_DIRECTORIES", 3)
    tree = {f"d{n}": Dir({f"f{m}": File(b"%d %d" % (n, m)) for m in range(n)} | {"l": Symlink("x")}) for n in range(30)}
    build(sessions.source, Dir(tree))
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    for n in range(0, 30, 7):
        for m in range(50):
            (sessions.source / f"d{n}/new{m}").write_bytes(b"new %d" % m)
    before = open_descriptors()
    sessions.backup()
    assert open_descriptors() == before
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_owners(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a", mode=0o4755, owner=(1234, 5678))}))
    sessions.backup()
    status = (sessions.repository / "a").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 5678, 0o4755)


def test_what_a_directory_hands_down_is_taken_away(sessions: Sessions) -> None:
    """A default list of the mirror's directory, which its source does not have any more, say."""
    build(sessions.source, Dir({"d": Dir({"a": File(b"a")})}))
    sessions.backup()
    command = ["setfacl", "-d", "-m", "u:nobody:rwx", sessions.repository / "d"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no access control lists here")
    (sessions.source / "d/b").write_bytes(b"b")
    sessions.backup()
    assert os.listxattr(sessions.repository / "d/b") == []


# --- large files ----------------------------------------------------------------------------------------------------

IMAGE = bytes(1 << 20) + random.Random(1).randbytes(2 << 20) + bytes(300_000)


@pytest.fixture(params=[False, True], ids=["copied", "cloned"])
def image(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A file that counts as large, in a source of which there was a session; where files share blocks or do not."""
    monkeypatch.setattr(copying, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(copying, "is_scattered", lambda _fd: False)
    monkeypatch.setattr(copying, "try_clone", imitated_clone if request.param else lambda _source_fd, _fd: False)
    build(sessions.source, Dir({"a": File(b"a"), "image": File(IMAGE)}))
    sessions.backup()
    return sessions.source / "image"


def _rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        for offset in (5000, 1_500_000, 2_999_000):
            file.seek(offset)
            file.write(b"changed")


def _shifted(path: Path) -> None:
    path.write_bytes(IMAGE[:5000] + random.Random(2).randbytes(100_000) + IMAGE[5000:])


def _shortened(path: Path) -> None:
    path.write_bytes(IMAGE[: 2 << 20])


@pytest.mark.parametrize("change", [_rewritten, _shifted, _shortened])
def test_a_large_file_is_compared_while_it_is_copied(
    sessions: Sessions, image: Path, change: Callable[[Path], None]
) -> None:
    change(image)
    sessions.backup()
    assert sessions.increments() == {"image.T1.diff.gz"}
    increment = next((sessions.data / "increments").glob("image*"))
    assert increment.stat().st_size < (1_200_000 if change is _shortened else 200_000)
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
    assert (sessions.repository / "image").stat().st_blocks * 512 < 3 << 20


def test_a_large_file_with_another_time_alone_needs_no_increment(sessions: Sessions, image: Path) -> None:
    inode = (sessions.repository / "image").stat().st_ino
    os.utime(image, (5, 5))
    outcome = sessions.backup()
    assert (outcome.statistics.changed_files, outcome.statistics.increment_files) == (1, 0)
    assert sessions.increments() == set()
    assert (sessions.repository / "image").stat().st_ino == inode
    sessions.assert_all_readable()


@pytest.mark.parametrize("at", [0, 1 << 20, 3 << 20])
def test_a_large_file_that_changes_meanwhile_stays_as_it_was(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    _rewritten(image)

    def changing(real: Callable[..., Iterator[Block]]) -> Callable[..., Iterator[Block]]:
        def read(*arguments: object) -> Iterator[Block]:
            size = 0
            for block in real(*arguments):
                size += len(block)
                if size > at:
                    os.utime(image, ns=(size, size))
                yield block

        return read

    with monkeypatch.context() as patch:
        patch.setattr(growing, "CHUNK_BYTES", 1 << 20)
        patch.setattr(Source, "read", changing(Source.read))
        patch.setattr(Source, "read_into", changing(Source.read_into))
        outcome = sessions.backup(may_report=True)
    assert (outcome.source_errors, outcome.source_warnings) == (0, 1)
    assert sessions.increments() == set()
    assert sorted(os.listdir(sessions.repository)) == ["a", "image", "rdiff-backup-data"]
    assert sessions.content(b"image", sessions.now) == IMAGE
    sessions.states.popitem()
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)


def test_who_is_interrupted_does_not_wait_for_a_large_file(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = 3 * copying.MAX_BYTES
    build(top / "source", Dir({"large": File(random.Random(3).randbytes(size_bytes))}))
    written: list[int] = []
    real = growing.Growing.wrote

    def slowly(content: growing.Growing, end: int) -> None:
        written.append(end)
        time.sleep(0.05)
        real(content, end)

    monkeypatch.setattr(growing.Growing, "wrote", slowly)
    before = open_descriptors()

    def copy() -> None:
        with (
            Source.open(top / "source") as source,
            WritableTree.open(top / "mirror") as tree,
            Copies(source, tree) as copies,
        ):
            (large,) = (item for item in source.walk(lambda *_: False) if item.path)
            assert isinstance(large, Found)
            copies.begin(large, b"large", Attributes(0o600, os.geteuid(), os.getegid(), 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy()
    assert open_descriptors() == before
    assert max(written, default=0) < size_bytes // 2


def test_a_large_file_that_has_changed_before_it_is_compared_stays_as_it_was(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is given up before anybody has opened it."""
    _rewritten(image)
    begin, open_file = Copies.begin, Source.open_file

    def open_changed(source: Source, found: Found) -> int:
        with image.open("ab") as file:
            file.write(b"more")
        return open_file(source, found)

    def begin_and_wait(copies: Copies, *arguments: Any) -> copying.LargeCopy:
        copy = begin(copies, *arguments)
        with pytest.raises(SourceError):
            copy.result()
        return copy

    with monkeypatch.context() as patch:
        patch.setattr(Source, "open_file", open_changed)
        patch.setattr(Copies, "begin", begin_and_wait)
        outcome = sessions.backup(may_report=True)
    assert (outcome.source_errors, outcome.source_warnings) == (0, 1)
    assert sessions.increments() == set()
    assert sorted(os.listdir(sessions.repository)) == ["a", "image", "rdiff-backup-data"]
    assert sessions.content(b"image", sessions.now) == IMAGE


@pytest.mark.parametrize("waits", [True, False])
def test_the_disk_begins_while_a_large_file_is_copied(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    begun: list[tuple[int, int]] = []

    class Libc:
        def sync_file_range(self, fd: int, start: Any, size: Any, flags: int) -> int:
            there = Path(f"/proc/self/fd/{fd}").read_bytes()
            assert there[start.value : start.value + size.value] == changed[start.value : start.value + size.value]
            begun.append((start.value, start.value + size.value))
            return -1  # what goes wrong here the barrier tells

    _rewritten(image)
    changed = image.read_bytes()
    monkeypatch.setattr(copying, "try_direct", lambda _fd: False)
    monkeypatch.setattr(copying, "_WRITE_BACK_BYTES", 500_000)
    monkeypatch.setattr(copying, "_libc", Libc())
    sessions.backup(fsync=waits)
    assert [start for start, _ in begun] == [0, *(end for _, end in begun[:-1])] if waits else begun == []
    assert len(begun) == (6 if waits else 0)
    sessions.assert_all_readable()


def test_a_disk_that_is_full_when_a_large_file_is_copied(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rewritten(image)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(copying, "write_blocks", full)
        patch.setattr(copying, "write_direct", full)
        patch.setattr(Clone, "write", full)
        with pytest.raises(StorageError, match="No space"):
            sessions.backup()
    sessions.assert_all_readable()
    assert sessions.backup().regressed
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
