"""Where the catalog lies: the repository's own, the cache, nowhere. What is wrong in its place costs time only."""

import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import DamagedError, HistfsError, NotFoundError
from histfs.store.catalog import Catalog, directories, open_catalog, place
from histfs.store.catalog.lists import Lists, ListsChangedError
from histfs.store.remove import remove_sessions
from tests.store.catalogs import assert_same_trees, entries_at, fresh_rows, rows
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build


@pytest.fixture
def own(sessions: Sessions) -> Path:
    """The catalog in a repository of three sessions."""
    build(sessions.source, Dir({"d": Dir({str(n): File(b"x" * n, mtime=n) for n in range(300)}), "a": File(b"a")}))
    sessions.backup()
    for number in range(2):
        (sessions.source / f"d/new{number}").write_bytes(b"new")
        sessions.backup()
    return sessions.data / "histfs/catalog.sqlite"


def check(sessions: Sessions, cache: Path | None) -> None:
    with sessions.open() as repository, open_catalog(repository, cache=cache) as catalog:
        assert_same_trees(catalog, repository)
        assert catalog.is_current(repository.state())
        assert rows(catalog) == fresh_rows(sessions.repository)


def state_of(repository: Path) -> dict[str, tuple[object, ...]]:
    """Everything that reading must leave as it is."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [repository, *repository.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, content
    return found


def test_the_catalog_of_the_repository(sessions: Sessions, own: Path) -> None:
    """It is private, nothing is left beside it, and it has no name that says a time (docs/format.md 8.5)."""
    assert set(os.listdir(own.parent)) == {"catalog.sqlite", "ledger"}
    assert own.stat().st_mode & 0o777 == 0o600
    assert own.parent.stat().st_mode & 0o777 == 0o700


def test_reading_writes_nothing_into_the_repository(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = state_of(sessions.repository)
    check(sessions, cache)
    assert not cache.exists()  # the repository's own was good
    assert state_of(sessions.repository) == before
    shutil.rmtree(own.parent)
    before = state_of(sessions.repository)
    check(sessions, cache)
    check(sessions, cache)
    check(sessions, None)
    assert state_of(sessions.repository) == before


def test_the_cache_is_private_whatever_the_umask(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own.parent)
    before = os.umask(0)
    try:
        check(sessions, tmp_path / "new/cache")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "new", tmp_path / "new/cache")] == [0o700, 0o700]
    (directory,) = (tmp_path / "new/cache").iterdir()
    assert directory.stat().st_mode & 0o077 == 0
    assert sorted(os.listdir(directory)) == ["1.sqlite", "lock"]


def test_without_a_place_for_a_cache(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own.parent)
    (tmp_path / "file").write_bytes(b"")
    check(sessions, tmp_path / "file/cache")


def test_two_that_open_it_at_once(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own.parent)
    failures: list[BaseException] = []

    def open_and_check() -> None:
        try:
            with sessions.open() as repository, open_catalog(repository, cache=tmp_path / "cache") as catalog:
                entries_at(catalog, sessions.now)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=open_and_check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def symlink_to_other(path: Path) -> None:
    other = path.parent.parent / "other"
    shutil.move(path, other)
    path.symlink_to(other)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create trigger t after insert on version begin delete from version; end")
    database.close()


def with_a_log(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("pragma journal_mode = wal")
    database.close()


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version = 99")
    database.close()


def of_another_repository(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update state set newest_list = x'00'")
    database.close()


HARMS = {
    "gone": Path.unlink,
    "empty": in_its_place(Path.touch),
    "text": in_its_place(lambda path: path.write_text("SQLite format 3, or so")),
    "truncated": truncate,
    "symlink": symlink_to_other,
    "directory": in_its_place(Path.mkdir),
    "fifo": in_its_place(os.mkfifo),
    "socket": in_its_place(lambda path: os.mknod(path, 0o140600)),
    "symlinked directory": lambda path: symlink_to_other(path.parent),
    "fifo as directory": lambda path: (shutil.rmtree(path.parent), os.mkfifo(path.parent)),
    "journal": lambda path: path.with_name("catalog.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"),
    "journal that is a fifo": lambda path: os.mkfifo(path.with_name("catalog.sqlite-journal")),
    "log that is a fifo": lambda path: os.mkfifo(path.with_name("catalog.sqlite-wal")),
    "other tables": other_tables,
    "write-ahead log": with_a_log,
    "another version": of_another_version,
    "another repository": of_another_repository,
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_in_its_place_is_not_used_and_replaced(
    sessions: Sessions, own: Path, tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_READER_WAITS_S", 0.1)
    HARMS[harm](own)
    check(sessions, tmp_path / "cache")
    check(sessions, None)
    (sessions.source / "another").write_bytes(b"one")
    sessions.backup()
    check(sessions, tmp_path / "cache")
    if "directory" not in harm or harm == "directory":
        assert own.is_file()
        assert not own.is_symlink()
        with sessions.open() as repository, open_catalog(repository, progress=pytest.fail) as catalog:
            assert rows(catalog) == fresh_rows(sessions.repository)


def read_everything(catalog: Catalog) -> None:
    for time in catalog.sessions:
        for version in entries_at(catalog, time):
            hash(version)
    for tag in range(0, 2**29, 2**24):
        catalog.directory(tag)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_noticed_or_harmless(sessions: Sessions, own: Path, tmp_path: Path, seed: int) -> None:
    """Whatever is wrong, it is an error that says so, and the catalog that is opened next is a good one."""
    chance = random.Random(seed)
    data = bytearray(own.read_bytes())
    for _ in range(chance.choice((1, 30, 1000))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    own.write_bytes(data)
    with sessions.open() as repository:
        try:
            with open_catalog(repository, cache=tmp_path / "cache") as catalog:
                read_everything(catalog)
        except HistfsError:
            if not catalog.is_current(repository.state()):
                with open_catalog(repository, cache=tmp_path / "cache") as again:
                    assert_same_trees(again, repository)
    (sessions.source / "another").write_bytes(b"one")
    sessions.backup()


def test_a_cache_that_is_damaged_is_made_anew(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own.parent)
    cache = tmp_path / "cache"
    check(sessions, cache)
    (path,) = cache.rglob("*.sqlite")
    with sqlite3.connect(path) as database:
        query = "select rootpage from sqlite_master where name in ('version', 'directory')"
        pages = [page for (page,) in database.execute(query)]
    database.close()
    data = bytearray(path.read_bytes())
    for page in pages:
        data[(page - 1) * 4096 : page * 4096] = bytes(4096)
    path.write_bytes(data)
    with sessions.open() as repository, open_catalog(repository, cache=cache) as catalog:
        with pytest.raises(DamagedError, match="catalog cannot be read"):
            read_everything(catalog)
        assert not catalog.is_current(repository.state())
    check(sessions, cache)


def test_a_stale_one_in_the_repository_is_a_start_for_the_cache(
    sessions: Sessions, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = own.read_bytes()
    (sessions.source / "another").write_bytes(b"one")
    sessions.backup()
    own.write_bytes(stale)
    monkeypatch.setattr(place, "_build", lambda *_: pytest.fail("it was made anew"))
    monkeypatch.setattr(place, "_index", lambda *_: pytest.fail("it was made anew"))
    for cache in (tmp_path / "cache", None):
        with sessions.open() as repository, open_catalog(repository, cache=cache) as catalog:
            assert_same_trees(catalog, repository)


def test_readers_go_on_while_a_session_brings_it_up_to_date(sessions: Sessions, own: Path) -> None:
    before = sessions.now
    stop = threading.Event()
    failures: list[BaseException] = []
    with sessions.open() as repository, open_catalog(repository) as catalog:
        expected = entries_at(catalog, before)

        def read() -> None:
            try:
                while not stop.is_set():
                    assert entries_at(catalog, before, is_at_rest=False) == expected
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                (sessions.source / f"d/{number}").write_bytes(b"changed")
                sessions.backup()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert not catalog.is_as_it_was()
        with open_catalog(repository) as again:
            assert again.is_current(repository.state())
            assert_same_trees(again, repository)


def test_readers_never_see_another_session_in_the_place_of_one_that_is_removed(sessions: Sessions, own: Path) -> None:
    """Before they have looked which sessions there are."""
    (sessions.source / "a").write_bytes(b"changed")
    sessions.backup()
    gone = min(sessions.states)
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert catalog.child(directories.ROOT, b"a", gone) is not None
        remove_sessions(sessions.repository, gone + 1)
        assert gone in catalog.sessions
        asked: list[Callable[[], object]] = [
            lambda: catalog.child(directories.ROOT, b"a", gone),
            lambda: catalog.child(directories.ROOT, b"nothing", gone),
            lambda: catalog.children(directories.ROOT, gone),
            lambda: catalog.names(directories.ROOT, gone),
        ]
        for ask in asked:
            with pytest.raises(NotFoundError, match="no such session"):
                ask()
        assert not catalog.is_current(repository.state())


def test_readers_are_told_that_what_they_look_at_went(sessions: Sessions, own: Path) -> None:
    """Its attributes are asked for by a second query, in front of which a removal may come."""
    os.setxattr(sessions.source / "a", "user.only", b"then")
    sessions.backup()
    gone = sessions.now
    os.removexattr(sessions.source / "a", "user.only")
    sessions.backup()
    with sessions.open() as repository, open_catalog(repository) as catalog:
        version = catalog.child(directories.ROOT, b"a", gone)
        assert version is not None
        assert version.extras is not None
        assert catalog.extras(version.extras) == (((b"user.only", b"then"),), ())
        remove_sessions(sessions.repository, gone + 1)
        with pytest.raises(NotFoundError, match="removed"):
            catalog.extras(version.extras)
        with open_catalog(repository) as again, pytest.raises(DamagedError, match="lost"):
            again.extras(version.extras)


def test_what_goes_while_lists_are_read_is_no_damage(
    sessions: Sessions, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.setxattr(sessions.source / "a", "user.only", b"then")
    sessions.backup()
    attributes = next(sessions.data.glob("extended_attributes*.gz"))
    for went in (True, False):
        with sessions.open() as repository:
            lists = Lists(repository, repository.state())
            if went:
                attributes.rename(sessions.data.parent.parent / "aside")
                with pytest.raises(ListsChangedError):
                    list(lists.whole(sessions.now))
                assert caplog.text == ""
                (sessions.data.parent.parent / "aside").rename(attributes)
            else:
                attributes.write_bytes(b"damage")
                list(lists.whole(sessions.now))
                assert "damaged" in caplog.text


def test_trouble_with_it_never_fails_a_session(
    sessions: Sessions, own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(place, "_WRITER_WAITS_S", 0.1)
    (sessions.source / "another").write_bytes(b"one")
    with sqlite3.connect(own) as blocker:
        blocker.execute("begin exclusive")
        sessions.backup()
    blocker.close()
    assert "locked" in caplog.text
    sessions.assert_all_readable()
    sessions.backup()
    check(sessions, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_repository_without_write_permission(sessions: Sessions, own: Path, tmp_path: Path) -> None:
    for path in (own.parent, sessions.data, sessions.repository):
        path.chmod(0o500)
    try:
        check(sessions, tmp_path / "cache")
    finally:
        for path in (sessions.repository, sessions.data, own.parent):
            path.chmod(0o700)
