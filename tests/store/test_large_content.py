"""Versions of large files: read through composed maps, from increments of every kind, here, there and all at once."""

import gzip
import hashlib
import itertools
import os
import random
import resource
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from histfs import rsync
from histfs.errors import DamagedError, HistfsError, StorageError
from histfs.store import backup as backup_module
from histfs.store.backup import backup
from histfs.store.compression import compress_seekable
from histfs.store.content import Content, chain, open_content, opening, shared, sources
from histfs.store.content.shared import Recent, Sizes
from histfs.store.content.sources import Mapped
from histfs.store.regress import regress
from histfs.store.repository import Repository
from histfs.store.tree import Tree
from tests.store.killing import Killed
from tests.store.places import open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import MTIME, Dir, File, build

CHANCE = random.Random(11)
BASE = CHANCE.randbytes(420_000) + b"".join(b"line %d\n" % number for number in range(40_000))
LINKS = 3
TIMES = [FIRST + number * DAY for number in range(LINKS + 1)]


def next_version(version: bytes) -> bytes:
    """Parts replaced, inserted, removed and moved: a delta of more than 256 KiB."""
    new = bytearray(version)
    for _ in range(60):
        at = CHANCE.randrange(len(new) - 9000)
        new[at : at + 7000] = CHANCE.randbytes(7000) if CHANCE.random() < 0.5 else b"%d again " % at * 700
    cut = CHANCE.randrange(len(new) // 2)
    return bytes(new[cut : cut + 50_000] + new[:cut] + new[cut + 60_000 :])


VERSIONS = [BASE]
for _ in range(LINKS):
    VERSIONS.append(next_version(VERSIONS[-1]))


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a megabyte is large, and nothing is too small to be read in place."""
    monkeypatch.setattr(opening, "CHECKED_AT_ONCE", 100)
    monkeypatch.setattr(chain, "_WORTH_A_LOOK", 0)
    monkeypatch.setattr(chain, "_WORTH_SKIPPING", 0)


def write(path: Path, content: bytes, number: int) -> None:
    path.write_bytes(content)
    os.utime(path, (MTIME + number, MTIME + number))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    """A file in four versions, and one that was removed."""
    sessions = Sessions(tmp_path_factory.mktemp("original"))
    build(sessions.source, Dir({"f": File(VERSIONS[0]), "gone": File(VERSIONS[0])}))
    sessions.backup()
    for number, version in enumerate(VERSIONS[1:], 1):
        write(sessions.source / "f", version, number)
        if number == 1:
            write(sessions.source / "gone", version, number)
        if number == 2:
            (sessions.source / "gone").unlink()
        sessions.backup()
    return sessions


@pytest.fixture
def images(original: Sessions, scratch: Path) -> Sessions:
    copy = Sessions(scratch)
    shutil.copytree(original.source, copy.source)
    shutil.copytree(original.repository, copy.repository)
    copy.states, copy.now = dict(original.states), original.now
    return copy


def increment(sessions: Sessions, number: int, base: str = "f") -> Path:
    (path,) = (sessions.data / "increments").glob(f"{base}.{stamp(TIMES[number])}.*")
    return path


def become(path: Path, kind: str) -> Path:
    """Rewrite a seekable increment as "plain", or as "gzip" of other programs."""
    raw = gzip.decompress(path.read_bytes())
    status = path.stat()
    if kind == "plain":
        path.unlink()
        path = path.with_suffix("")
        path.write_bytes(raw)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(raw, 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def opened(sessions: Sessions, repository: Repository, number: int, path: bytes = b"f") -> Content:
    node = sessions.node(path, TIMES[number])
    return repository.snapshot(TIMES[number]).open(node.entry, node.sha1)


def check_parts(content: Content, expected: bytes, count: int = 60) -> None:
    chance = random.Random(1)
    assert content.size_bytes == len(expected)
    for _ in range(count):
        offset, size = chance.randrange(len(expected)), chance.choice((1, 100, 4096, 131_072))
        assert content.pread(size, offset) == expected[offset : offset + size]
        assert content.pread_nowait(size, offset) in (expected[offset : offset + size], None)
    assert content.pread(10, len(expected) - 3) == expected[-3:]
    assert b"".join(content.blocks()) == expected


def mapped(content: Content) -> Mapped:
    version = content._version.source
    assert isinstance(version, Mapped)
    return version


# --- every kind of link ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", list(itertools.product(["seekable", "plain", "gzip"], repeat=LINKS)), ids="-".join)
def test_links_of_all_kinds(images: Sessions, kinds: tuple[str, ...]) -> None:
    for number, kind in enumerate(kinds):
        become(increment(images, number), kind)
    with images.open() as repository:
        for number, version in enumerate(VERSIONS):
            with opened(images, repository, number) as content:
                check_parts(content, version)


@pytest.mark.parametrize("kind", ["seekable", "plain", "gzip"])
def test_a_snapshot_of_every_kind(images: Sessions, kind: str) -> None:
    """It is the version itself, or what a difference applies to."""
    become(increment(images, 1, "gone"), kind)
    with images.open() as repository:
        for number in (0, 1):
            with opened(images, repository, number, b"gone") as content:
                check_parts(content, VERSIONS[number])


def test_a_snapshot_that_is_gzip_itself_and_named_so(images: Sessions) -> None:
    data = gzip.compress(b"")
    increment(images, 1, "gone").write_bytes(gzip.compress(data))
    entry = images.entry(b"gone", TIMES[1])._replace(size_bytes=len(data))
    digest = hashlib.sha1(data).hexdigest().encode()
    with images.open() as repository, repository.snapshot(TIMES[1]).open(entry, digest) as content:
        assert content.pread(1000, 0) == data


def test_what_can_be_read_in_place_is_not_copied(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    become(increment(images, 1), "plain")
    with images.open() as repository, opened(images, repository, 0) as content:
        kinds = [increment.memory_bytes > 0 for increment in mapped(content)._increments.values()]
        assert set(kinds) == {True, False}  # with an index, and plain
        check_parts(content, VERSIONS[0])


def test_what_was_inflated_is_kept_in_a_file_that_nobody_else_has(images: Sessions) -> None:
    for number in range(LINKS):
        become(increment(images, number), "gzip")
    before = open_descriptors()
    with images.open() as repository, opened(images, repository, 0) as content:
        spooled = mapped(content)._own[sources.SPOOL]
        assert isinstance(spooled, sources.File)
        place = os.readlink(f"/proc/self/fd/{spooled.fd}")
        assert place.startswith(tempfile.gettempdir())
        assert place.endswith(" (deleted)")
        assert 300_000 < os.fstat(spooled.fd).st_size <= len(VERSIONS[0])
    assert open_descriptors() == before


def test_without_room_for_temporary_files(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "free_for_temporary_files", lambda: 0)
    assert images.content(b"f", TIMES[0]) == VERSIONS[0]
    become(increment(images, 1), "gzip")
    with pytest.raises(StorageError, match="not enough room") as caught:
        images.content(b"f", TIMES[0])
    assert caught.value.path == b"f"


def test_too_many_extents_are_patched_link_by_link(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "MAX_EXTENTS", 40)
    become(increment(images, 1), "gzip")
    with images.open() as repository:
        for number, version in enumerate(VERSIONS):
            with opened(images, repository, number) as content:
                check_parts(content, version)
        for number in (0, 1):
            with opened(images, repository, number, b"gone") as content:
                check_parts(content, VERSIONS[number])


def test_a_chain_has_the_mtime_of_its_last_link(images: Sessions) -> None:
    with images.open() as repository:
        for number in range(LINKS + 1):
            with opened(images, repository, number) as content:
                assert content.mtime_ns == (MTIME + number) * 10**9


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_with_next_to_nothing_kept_the_bytes_are_the_same(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_OPEN_FILES", 1)
    with Repository.open(images.repository, Sizes(members=1, versions=1, maps=1)) as repository:
        for number, version in enumerate(VERSIONS):
            with opened(images, repository, number) as content:
                check_parts(content, version, 10)


def test_a_second_look_needs_no_disk(images: Sessions) -> None:
    with images.open() as repository, opened(images, repository, 0) as content:
        source = content._version.source
        in_increments = [piece for piece in source.extents.extents() if piece[0] != rsync.BASIS]
        assert in_increments
        offset, known = 0, set[int]()
        for kind, _, length in source.extents.extents():
            if kind != rsync.BASIS:
                assert kind in known or content.pread_nowait(length, offset) is None
                assert content.pread(length, offset) == VERSIONS[0][offset : offset + length]
                assert content.pread_nowait(length, offset) == VERSIONS[0][offset : offset + length]
                known.add(kind)
            offset += length


def test_a_version_that_is_opened_again_needs_no_increment(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(LINKS):
        become(increment(images, number), "gzip")
    with images.open() as repository:
        opened(images, repository, 0).close()
        monkeypatch.setattr(chain, "read_decompressed", None)
        with opened(images, repository, 0) as content:
            check_parts(content, VERSIONS[0])


def test_a_small_version_that_is_opened_again_needs_no_disk(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    write(images.source / "small", b"old", 1)
    images.backup()
    write(images.source / "small", b"new", 2)
    images.backup()
    node = images.node(b"small", TIMES[-1] + DAY)
    with images.open() as repository:
        snapshot = repository.snapshot(TIMES[-1] + DAY)
        for _ in range(2):
            with snapshot.open(node.entry, node.sha1) as content:
                assert content.pread_nowait(10, 0) == b"old"
            monkeypatch.setattr(Tree, "open_file", None)


def test_recent_drops_what_was_not_used() -> None:
    dropped: list[str] = []
    recent: Recent[int, str] = Recent(10, dropped.append)
    recent.put(1, "a", 4)
    recent.put(2, "b", 4)
    assert recent.get(1) == "a"
    recent.put(3, "c", 4)
    assert (recent.get(2), dropped) == (None, ["b"])
    recent.put(1, "A", 1)
    assert (recent.get(1), dropped) == ("A", ["b", "a"])
    recent.put(4, "huge", 11)
    assert dropped[2:] == ["c", "A", "huge"]
    recent.put(5, "e", 10)
    recent.clear()
    assert dropped[5:] == ["e"]


# --- listings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The directories that were listed."""
    listed: list[bytes] = []
    real = Tree.names_of_files
    monkeypatch.setattr(Tree, "names_of_files", lambda tree, path: (listed.append(path), real(tree, path))[1])
    return listed


def test_a_listing_is_read_again_when_its_directory_changed(images: Sessions, looks: list[bytes]) -> None:
    directory = images.data / "increments"
    with images.open() as repository:
        os.utime(directory, (1, 1))
        for _ in range(3):
            opened(images, repository, 0).close()
        assert len(looks) == 1
        path = increment(images, 0)
        path.rename(path.with_name("away"))
        entry = images.entry(b"f", TIMES[0])
        assert len(repository.shared.listings.find(entry)) == LINKS - 1
        path.with_name("away").rename(path)
        assert len(repository.shared.listings.find(entry)) == LINKS


def test_a_listing_of_a_directory_that_has_just_changed_is_not_kept(images: Sessions, looks: list[bytes]) -> None:
    os.utime(images.data / "increments")
    with images.open() as repository:
        for _ in range(3):
            repository.shared.listings.find(images.entry(b"f", TIMES[0]))
    assert len(looks) == 3


def test_listings_of_quoted_names(images: Sessions) -> None:
    with images.open() as repository:
        (images.data / "chars_to_quote").write_bytes(b"A-Z;:")
    for path in (images.data / "increments").iterdir():
        name = "".join(f";{ord(char):03d}" if char in ":TZ" else char for char in path.name)
        path.rename(path.with_name(name))
    with images.open() as repository:
        found = repository.shared.listings.find(images.entry(b"f"))
        assert [one.time for one in found] == TIMES[:-1]
        assert all(os.path.exists(images.repository / os.fsdecode(one.path)) for one in found)


# --- while it is open -----------------------------------------------------------------------------------------------


def test_a_session_comes_and_goes(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is open is readable while a session replaces the mirror, dies, and is undone."""
    write(images.source / "f", next_version(VERSIONS[-1]), 9)
    with images.open() as repository, opened(images, repository, 0) as content:
        with monkeypatch.context() as patch:

            def die(*_: object) -> None:
                raise Killed

            patch.setattr(backup_module._Session, "_commit", die)
            with pytest.raises(Killed):
                backup(images.source, images.repository, now=images.now + DAY, report=images.reported.append)
        check_parts(content, VERSIONS[0])
        with opened(images, repository, 0) as second, opened(images, repository, LINKS) as newest:
            check_parts(second, VERSIONS[0])
            regress(images.repository, report=images.reported.append)
            repository.shared.files.close_idle()
            repository.shared.members.clear()
            check_parts(second, VERSIONS[0])
            check_parts(newest, VERSIONS[LINKS])
            check_parts(content, VERSIONS[0])
        images.backup()
        check_parts(content, VERSIONS[0])
    assert images.reported == []


def test_an_increment_is_replaced_by_its_equal(images: Sessions) -> None:
    """Somebody copies the repository over itself; or an index is no longer where it was."""
    with images.open() as repository, opened(images, repository, 0) as content:
        for number in range(LINKS):
            path = increment(images, number)
            status = path.stat()
            path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        repository.shared.files.close_idle()
        check_parts(content, VERSIONS[0])


def test_an_increment_is_removed(images: Sessions) -> None:
    before = open_descriptors()
    with images.open() as repository, opened(images, repository, 0) as content:
        os.unlink(increment(images, 1))
        repository.shared.files.close_idle()
        with pytest.raises(DamagedError) as caught:
            list(content.blocks())
        assert os.fsencode(caught.value.path) == b"f"
        assert caught.value.advice
    assert open_descriptors() == before


def test_threads_read_one_version(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_OPEN_FILES", 1)
    wrong: list[object] = []

    def read(content: Content, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(150):
                offset, size = chance.randrange(len(VERSIONS[0])), chance.randrange(20_000)
                if content.pread(size, offset) != VERSIONS[0][offset : offset + size]:
                    wrong.append(offset)
        except HistfsError as exc:
            wrong.append(exc)

    sizes = Sizes(members=300_000)
    with Repository.open(images.repository, sizes) as repository, opened(images, repository, 0) as content:
        threads = [threading.Thread(target=read, args=[content, seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# --- long chains ----------------------------------------------------------------------------------------------------


def test_what_is_held_open_leaves_room_for_others(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that C reads by itself keep their files open; beyond a share of what may be open they do not."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    with images.open() as repository:
        with opened(images, repository, 0) as content:
            assert content.hold() == content.hold() is not None
            repository.shared.files.close_idle()
            assert len(open_descriptors()) >= len(before) + LINKS
            check_parts(content, VERSIONS[0])
        repository.shared.files.close_idle()
        monkeypatch.setattr(shared, "_SHARE_RESERVED", limit // LINKS)
        with opened(images, repository, 0) as content:
            assert content.hold() is not None
            with opened(images, repository, 1) as second, opened(images, repository, LINKS) as newest:
                assert second.hold() is None
                assert second.pread(10, 0) == VERSIONS[1][:10]
                assert newest.hold() is not None
        with opened(images, repository, 1) as second:
            assert second.hold() is not None
    assert open_descriptors() == before


def test_a_long_chain_needs_few_descriptors(images: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred links, each with literals of its own, every other one to be read in place."""
    monkeypatch.setattr(shared, "_OPEN_FILES", 4)
    directory = images.data / "increments"
    for path in directory.glob("f.*"):
        path.unlink()
    version = VERSIONS[-1][:300_000]
    (images.repository / "f").write_bytes(version)
    for number in range(200):
        older = bytearray(version)
        at = CHANCE.randrange(299_000)
        older[at : at + 900] = CHANCE.randbytes(900)
        delta = b"".join(rsync.delta(rsync.Signature.of(version), bytes(older)))
        version = bytes(older)
        # what follows the end of a delta is ignored, and makes it large enough for an index
        data = (
            gzip.compress(delta) if number % 2 else b"".join(compress_seekable([delta + bytes(270_000)], commands=True))
        )
        (directory / f"f.{stamp(TIMES[-2] - number * DAY)}.diff.gz").write_bytes(data)
    entry = images.entry(b"f")._replace(size_bytes=len(version))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with images.open() as repository:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, limits[1]))
        try:
            digest = hashlib.sha1(version).hexdigest().encode()
            with open_content(repository, entry, digest, TIMES[-2] - 199 * DAY) as content:
                check_parts(content, version)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["seekable", "gzip"])
@pytest.mark.parametrize("path", [b"f", b"gone"])
def test_a_damaged_byte_is_never_a_wrong_byte(images: Sessions, kind: str, path: bytes) -> None:
    """Wherever it is: in a member, in the index, in a header. What is compressed has sums."""
    chance = random.Random(3)
    damaged_path = become(increment(images, 1, os.fsdecode(path)), kind)
    data = damaged_path.read_bytes()
    failed = 0
    for place in [*range(0, len(data), len(data) // 25), *range(len(data) - 800, len(data), 40)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        damaged_path.write_bytes(damaged)
        failed += check_right_or_refused(images, path)
    assert failed > 10


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.7, 0.95, -800, -100, -1])
@pytest.mark.parametrize("kind", ["seekable", "gzip", "plain"])
def test_an_increment_is_cut(images: Sessions, kind: str, keep: float) -> None:
    path = become(increment(images, 1), kind)
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep if keep >= 0 else size + keep)
    assert check_right_or_refused(images, b"f")


def check_right_or_refused(images: Sessions, path: bytes) -> bool:
    """Reads the oldest version in parts, with caches that know nothing; whether an error came."""
    expected = VERSIONS[0]
    with images.open() as repository:
        try:
            with opened(images, repository, 0, path) as content:
                for offset in range(0, len(expected), 65_536):
                    assert content.pread(65_536, offset) == expected[offset : offset + 65_536]
        except DamagedError as exc:
            return os.fsencode(exc.path or "") == path
    return False


def test_a_damaged_byte_that_has_no_sum_is_noticed_by_who_reads_all(images: Sessions) -> None:
    path = become(increment(images, 0), "plain")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="SHA1"):
        images.content(b"f", TIMES[0])


def test_the_mirror_is_cut(images: Sessions) -> None:
    with images.open() as repository:
        with opened(images, repository, 0) as content:
            os.truncate(images.repository / "f", 1000)
            with pytest.raises(DamagedError, match="shorter"):
                list(content.blocks())
        with pytest.raises(DamagedError, match="are for a file of more"):
            opened(images, repository, 0)


def test_an_index_of_another_delta(images: Sessions) -> None:
    other = b"".join(compress_seekable([b"rs\x026\x45\x00\x01\x00" + bytes(300_000)], commands=True))
    increment(images, 1).write_bytes(other)
    assert check_right_or_refused(images, b"f")
