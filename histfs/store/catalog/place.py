"""Where the catalog is, and who writes it.

- In the repository, in a directory of its own that nobody else touches (docs/format.md 8.5). Only a session of histfs,
  which holds the lock, writes there, after it has finished. Readers open it read-only.
- In the reader's cache, if the repository has none that is up to date. It is brought up to date there, under a lock, in
  WAL mode, so that other mounts go on reading. A new one is made aside, under a new name.
- In an unlinked temporary file, if there is no place for a cache.

A database of the repository is as untrusted as everything in it: its directory is entered by descriptor, it must be a
regular file, with exactly the tables it should have, and nothing beside it that SQLite would read by itself.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from histfs.errors import DamagedError, HistfsError, StorageError
from histfs.store.catalog.indexing import Indexer, OutdatedError, Progress
from histfs.store.catalog.lists import Came, Lists, ListsChangedError
from histfs.store.catalog.reading import Catalog
from histfs.store.catalog.schema import DATABASE_ERRORS, ROOT, Identity, is_busy, is_catalog, read_known
from histfs.store.entry import join
from histfs.store.files import WritableTree
from histfs.store.layout import DATA, OWN
from histfs.store.repository import Repository
from histfs.store.tree import NotRegularError, Tree

log = logging.getLogger(__name__)

NAME = b"catalog.sqlite"
_NEW = b"new.sqlite"
_LOCK = b"lock"
_JOURNAL = b"-journal"
_BESIDE = (_JOURNAL, b"-wal", b"-shm")

_ATTEMPTS = 5
_READER_CACHE_KIB = 8 * 1024
_WRITER_CACHE_KIB = 16 * 1024
_READER_WAITS_S = 5.0
_WRITER_WAITS_S = 3.0
_LOCK_WAITS_S = 60.0
_LOOKS_EVERY_S = 0.02
_SYNCHRONOUS = "full"
_GENERATION = re.compile(rb"([0-9]{1,15})\.sqlite")
_SETTINGS = f"""
pragma trusted_schema = off;
pragma cell_size_check = on;
pragma mmap_size = 0;
pragma cache_size = -{_READER_CACHE_KIB};
"""


def open_catalog(
    repository: Repository, *, cache: Path | None = None, progress: Callable[[int], None] = lambda _records: None
) -> Catalog:
    """The catalog of `repository`, up to date. Nothing is written into the repository.

    `cache`: the directory for catalogs of repositories that have none of their own, made if it is missing; None: it is
    made in a temporary file. `progress` is told the number of records read so far, if many have to be.
    Raises StorageError, DamagedError.
    """
    try:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(ListsChangedError):
                return _open_once(repository, cache, progress)
        return _open_once(repository, cache, progress)
    except DATABASE_ERRORS as exc:
        raise StorageError(f"no catalog can be made ({exc})", path=repository.path) from exc


def _open_once(repository: Repository, cache: Path | None, progress: Progress) -> Catalog:
    lists = Lists(repository, repository.state())
    identity = lists.identity()
    with ExitStack() as stack:
        own = _open_own(repository)
        if own is not None:
            stack.callback(own.close)
            if _is_of(own, identity):
                stack.pop_all()
                return Catalog(own, repository, repository.distrust_catalog)
        if cache is not None:
            try:
                return _open_cached(repository, lists, cache, own, progress)
            except (OSError, sqlite3.OperationalError) as exc:
                log.warning("no catalog can be kept in %s: %s", cache, exc)
        return _open_temporary(repository, lists, own, progress)


def _is_of(database: sqlite3.Connection, identity: Identity) -> bool:
    try:
        return read_known(database).identity == identity
    except DATABASE_ERRORS:
        return False


# In the repository


def _open_own(repository: Repository) -> sqlite3.Connection | None:
    """The catalog in the repository to be read; None if there is none that can be used."""
    if not repository.trusts_catalog:
        return None
    try:
        place = Tree(repository.tree.open_directory(OWN))
    except OSError:
        return None
    with place:
        try:
            _wait_for_writer(place)
            return _connect(place, NAME, "ro")
        except (OSError, OutdatedError, *DATABASE_ERRORS) as exc:
            log.debug("the catalog in the repository is not used: %s", exc)
            return None


def open_current(repository: Repository) -> Catalog | None:
    """The catalog in the repository, if there is one that is up to date. Raises StorageError, DamagedError."""
    identity = Lists(repository, repository.state()).identity()
    own = _open_own(repository)
    if own is None:
        return None
    with ExitStack() as stack:
        stack.callback(own.close)
        if not _is_of(own, identity):
            return None
        catalog = Catalog(own, repository, repository.distrust_catalog)
        stack.pop_all()
        return catalog


def open_recorded(repository: Repository, session_time: int) -> Catalog | None:
    """The catalog in the repository as it is, whatever has become of the lists: what it says of its newest session.

    None unless it is intact, and has all of the session of `session_time` as its newest.
    """
    own = _open_own(repository)
    if own is None:
        return None
    with ExitStack() as stack:
        stack.callback(own.close)
        with contextlib.suppress(*DATABASE_ERRORS, HistfsError):
            known = read_known(own)
            if known.sessions[-1:] != (session_time,) or session_time in known.problems:
                return None
            if any(row != ("ok",) for row in own.execute("pragma integrity_check")):
                return None
            catalog = Catalog(own, repository, repository.distrust_catalog)
            stack.pop_all()
            return catalog
    return None


def _wait_for_writer(place: Tree) -> None:
    """Wait until nothing lies beside the database. Raises FileExistsError if it stays there."""
    until = time.monotonic() + _READER_WAITS_S
    while beside := [name for name in place.names(b"") if name.startswith(NAME) and name != NAME]:
        if time.monotonic() > until:
            raise FileExistsError(errno.EEXIST, "was left behind by a writer", beside[0])
        time.sleep(_LOOKS_EVERY_S)


def update_catalog(tree: WritableTree, repository: Repository, *, make: bool = True, came: Came | None = None) -> None:
    """Bring the catalog in the repository up to date, whose lock is held. What goes wrong is logged, not raised.

    `make`: make it anew where that is not possible. A catalog that is out of date does no harm. `came`: what the
    session says that has just finished.
    """
    try:
        _update(tree, repository, make, came)
    except (HistfsError, OSError, *DATABASE_ERRORS) as exc:
        log.warning("the catalog in the repository is not up to date, which costs readers time: %s", exc)


def catalog_problem(repository: Repository) -> str:
    """What is wrong with the catalog in the repository; an empty text if nothing, or if there is none.

    All of it is compared with one that is made anew, as SQLite does not see that a value is another one. One that is
    out of date is not wrong: other programs write lists and no catalog.
    """
    try:
        place = Tree(repository.tree.open_directory(OWN))
    except OSError:
        return ""
    with place:
        if not place.exists(NAME):
            return ""
        try:
            _wait_for_writer(place)
            with closing(_connect(place, NAME, "ro")) as own, closing(_temporary()) as made:
                lists = Lists(repository, repository.state())
                if any(row != ("ok",) for row in own.execute("pragma integrity_check")):
                    return "is damaged"
                if not _is_of(own, lists.identity()):
                    return ""
                _index(made, lists, lambda _records: None)
                return "" if _rows(own) == _rows(made) else "does not say what the lists say"
        except (OSError, OutdatedError, *DATABASE_ERRORS) as exc:
            return f"cannot be used ({exc})"


def _rows(database: sqlite3.Connection) -> int:
    """A sum of all that a catalog says, in any order. Numbers of directories are its own: paths are in their place."""
    total = 0

    def add(*row: object) -> None:
        nonlocal total
        total = total + int.from_bytes(blake2b(repr(row).encode(), digest_size=16).digest(), "big") & (1 << 128) - 1

    paths: dict[int, bytes | None] = {0: None, ROOT: b""}
    for number, parent, name, tag in database.execute("select id, parent, name, tag from directory order by id"):
        if number != ROOT:
            paths[number] = join(paths.get(parent) or b"", name)
        add("directory", paths[number], tag)
    for row in database.execute("select * from version"):
        add("version", paths.get(row[0]), *row[1:5], paths.get(row[5]), *row[6:])
    for table in ("extras", "session", "state"):
        for row in database.execute(f"select * from {table}"):
            add(table, *row)
    return total


def discard_catalog(tree: WritableTree) -> None:
    """Remove the catalog in the repository, whose lock is held."""
    for name in (NAME, *(NAME + end for end in _BESIDE)):
        tree.remove_tree(join(OWN, name))


def _update(tree: WritableTree, repository: Repository, make: bool, came: Came | None) -> None:
    if not make and not tree.exists(join(OWN, NAME)):
        return
    tree.make_directories(OWN)
    with WritableTree(tree.open_directory(OWN)) as place:
        lists = Lists(repository, repository.state(), came)
        for end in _BESIDE:  # of these SQLite leaves only a journal behind, to be rolled back
            if place.exists(NAME + end) and not (end == _JOURNAL and stat.S_ISREG(place.stat(NAME + end).st_mode)):
                place.remove_tree(NAME + end)
        if (place.exists(NAME) and _was_caught_up(place, NAME, lists, "delete")) or not make:
            return
        _build(place, lists, lambda _records: None)
        # The old one first: its journal must never be found beside the new one.
        place.remove_tree(NAME)
        place.remove_tree(NAME + _JOURNAL)
        place.rename(_NEW, NAME)
        place.sync_directory(b"")


def _was_caught_up(
    place: WritableTree, name: bytes, lists: Lists, journal_mode: str, progress: Progress = lambda _: None
) -> bool:
    """Whether the database could be brought up to date; False if it has to be made anew."""
    try:
        with closing(_connect(place, name, "rw")) as database:
            database.execute(f"pragma journal_mode = {journal_mode}")
            if not _is_of(database, lists.identity()):
                Indexer(database, lists, progress).catch_up()
            return True
    except (OutdatedError, DamagedError, OSError, *DATABASE_ERRORS) as exc:
        if is_busy(exc):
            raise
        log.debug("the catalog is made anew: %s", exc)
        return False


def _build(place: WritableTree, lists: Lists, progress: Progress) -> None:
    """A new catalog under the name _NEW, durable."""
    place.remove_tree(_NEW)
    os.close(place.create_file(_NEW))  # with our mode, in nobody's place
    try:
        database = sqlite3.connect(_url(place, _NEW, "rw"), uri=True, isolation_level=None)
        with closing(database):
            _index(database, lists, progress)
    except BaseException:
        place.remove_tree(_NEW)
        raise


def _index(database: sqlite3.Connection, lists: Lists, progress: Progress) -> None:
    # There is nothing to roll back to. What `synchronous` adds is one fsync at the end of each transaction.
    database.executescript(
        f"pragma journal_mode = off; pragma synchronous = {_SYNCHRONOUS}; pragma locking_mode = exclusive;"
        f"pragma cache_size = -{_WRITER_CACHE_KIB}; pragma temp.cache_size = -{_READER_CACHE_KIB};"
    )
    Indexer(database, lists, progress).build()


# In the cache


def _open_cached(
    repository: Repository, lists: Lists, cache: Path, own: sqlite3.Connection | None, progress: Progress
) -> Catalog:
    with cache_directory(cache / identity_of(repository)) as place, _locked(place):
        name = _newest_generation(place)
        if name is None and own is not None:
            name = _copied(place, own)
        if name is None or not _was_caught_up(place, name, lists, "wal", progress):
            _build(place, lists, progress)
            name = _put_in_place(place)
        database = _connect(place, name, "rw")
        database.execute("pragma journal_mode = wal")
        database.execute("pragma query_only = on")
        path = cache / identity_of(repository) / os.fsdecode(name)
        return Catalog(database, repository, lambda: path.unlink(missing_ok=True))


def identity_of(repository: Repository) -> str:
    """A name for the repository: where it is, and which directory that is there."""
    root = repository.tree.root_fd
    path = os.readlink(f"/proc/self/fd/{root}")
    text = b"%b %d" % (os.fsencode(path), repository.tree.stat(DATA).st_ino)
    return blake2b(text, digest_size=10).hexdigest()


def cache_directory(path: Path) -> WritableTree:
    for above in reversed((path, *path.parents)):
        if not above.is_dir():
            WritableTree.create(above).close()
    return WritableTree.open(path)


@contextmanager
def _locked(place: WritableTree) -> Iterator[None]:
    """One at a time brings it up to date. Raises BlockingIOError if another one takes too long."""
    fd = place.open_lock_file(_LOCK)
    until = time.monotonic() + _LOCK_WAITS_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
            time.sleep(_LOOKS_EVERY_S)
        yield
    finally:
        os.close(fd)


def _generations(place: Tree) -> list[int]:
    found = (_GENERATION.fullmatch(name) for name in place.names(b""))
    return sorted(int(match[1]) for match in found if match)


def _newest_generation(place: Tree) -> bytes | None:
    generations = _generations(place)
    return b"%d.sqlite" % generations[-1] if generations else None


def _put_in_place(place: WritableTree) -> bytes:
    """Give the new database a name that none had before: what lies beside an old one never meets it."""
    old = _generations(place)
    name = b"%d.sqlite" % (old[-1] + 1 if old else 1)
    place.rename(_NEW, name)
    for generation in old:
        for end in (b"", *_BESIDE):
            place.unlink(b"%d.sqlite%b" % (generation, end), missing_ok=True)
    return name


def _copied(place: WritableTree, own: sqlite3.Connection) -> bytes | None:
    """A copy of the catalog in the repository: it is out of date, but perhaps not by much."""
    place.remove_tree(_NEW)
    os.close(place.create_file(_NEW))
    try:
        with closing(sqlite3.connect(_url(place, _NEW, "rw"), uri=True)) as copy:
            own.backup(copy)
    except DATABASE_ERRORS:
        return None
    return _put_in_place(place)


# In no place


def _open_temporary(
    repository: Repository, lists: Lists, own: sqlite3.Connection | None, progress: Progress
) -> Catalog:
    database = _temporary()
    try:
        if own is None or not _was_copied(database, own, lists, progress):
            database.close()
            database = _temporary()
            _index(database, lists, progress)
    except BaseException:
        database.close()
        raise
    return Catalog(database, repository, lambda: None)


def _temporary() -> sqlite3.Connection:
    return sqlite3.connect("", isolation_level=None, check_same_thread=False)


def _was_copied(database: sqlite3.Connection, own: sqlite3.Connection, lists: Lists, progress: Progress) -> bool:
    try:
        own.backup(database)
        Indexer(database, lists, progress).catch_up()
    except (OutdatedError, DamagedError, *DATABASE_ERRORS):
        return False
    return True


# Databases


def _connect(place: Tree, name: bytes, mode: str) -> sqlite3.Connection:
    """Open a database that must be a catalog. Raises OutdatedError, sqlite3.DatabaseError, OSError.

    It is not opened by us to look at it: whoever closes a file gives up the locks that SQLite has on it elsewhere in
    the process.
    """
    if not stat.S_ISREG(place.stat(name).st_mode):
        raise NotRegularError(errno.EINVAL, "is not a regular file", name)
    waits_s = _READER_WAITS_S if mode == "ro" else _WRITER_WAITS_S
    database = sqlite3.connect(
        _url(place, name, mode), uri=True, isolation_level=None, check_same_thread=False, timeout=waits_s
    )
    try:
        database.executescript(_SETTINGS)
        database.execute(f"pragma synchronous = {_SYNCHRONOUS}")
        if mode == "ro":
            database.execute("pragma query_only = on")
        if not is_catalog(database):
            raise OutdatedError("is no catalog of this version")
    except BaseException:
        database.close()
        raise
    return database


def _url(place: Tree, name: bytes, mode: str) -> str:
    """`place` need not stay open: SQLite turns this into the whole path."""
    return f"file:/proc/self/fd/{place.root_fd}/{os.fsdecode(name)}?mode={mode}"
