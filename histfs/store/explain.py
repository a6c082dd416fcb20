"""The operation `explain`: which rule of a selection decides about paths of a source, as `backup` would find it now.

And `explain_changes`: what has changed of them since the last session.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from histfs.errors import EXIT_FILE_WARNING, NotFoundError, printable, storage_errors
from histfs.store import plan
from histfs.store.entry import ALL_EXTRAS, Entry, Kind, sort_key
from histfs.store.format.ledger import VALID, Seen
from histfs.store.ledger import Ledger, lists_of
from histfs.store.moved import Places, may_have_moved
from histfs.store.repository import Repository
from histfs.store.selection import Outcome, Selection, Verdict
from histfs.store.source import Found, Source
from histfs.store.unreadable import Unreadable


class Explanation(NamedTuple):
    """What becomes of `path`: the verdict about it, or about the excluded directory `decided` that it lies in."""

    path: bytes
    verdict: Verdict
    decided: bytes


def explain(source: Path, selection: Selection, paths: Iterable[bytes]) -> Iterator[Explanation | NotFoundError]:
    """An explanation for each of `paths`, which count from the directory `source` on; or that there is no such file.

    Raises UsageError, StorageError.
    """
    with Source.open(source, selection) as opened:
        for path in paths:
            yield _explain(opened, selection, path)


def _explain(source: Source, selection: Selection, path: bytes) -> Explanation | NotFoundError:
    place = selection.root
    verdict = Verdict(Outcome.INCLUDED, None)
    for name in path.split(b"/") if path else ():
        place = selection.enter(place, name)
        found = source.look(place.path)
        if isinstance(found, Unreadable):
            return _not_seen(found, path)
        verdict = selection.verdict(place, source.subject(found))
        if verdict.outcome is Outcome.EXCLUDED:
            break
    return Explanation(path, verdict, place.path)


def _is_missing(found: Unreadable) -> bool:
    return found.error.exit_code == EXIT_FILE_WARNING  # it vanished


def _not_seen(found: Unreadable, path: bytes) -> NotFoundError:
    return NotFoundError("is not there" if _is_missing(found) else found.error.problem, path=path)


class Reasons(NamedTuple):
    """What is different at `path`; nothing: a session would take it for what it was."""

    path: bytes
    why: tuple[str, ...]


def explain_changes(source: Path, repository: Path, paths: Iterable[bytes]) -> Iterator[Reasons | NotFoundError]:
    """For each of `paths` in the directory `source`, why a session would look at it again after the newest one.

    Raises UsageError, NotARepositoryError, StorageError, DamagedError.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(Source.open(source, extras=ALL_EXTRAS))
        there = stack.enter_context(Repository.open(repository))
        wanted = set(paths)
        recorded, places = _recorded(there, wanted, stack)
        for path in sorted(wanted, key=sort_key):
            old, seen = recorded.get(path, (None, None))
            yield _reasons(opened, path, old, seen, places)


def _recorded(
    repository: Repository, wanted: set[bytes], stack: ExitStack
) -> tuple[dict[bytes, tuple[Entry, Seen | None]], Places | None]:
    """What the newest session recorded, and what it saw and where, as far as that is known."""
    newest = repository.sessions()[-1]
    snapshot = repository.snapshot(newest)
    files = repository.state().metadata.get(newest)
    ledger = None
    with storage_errors():
        extras = stack.enter_context(snapshot.extras(ALL_EXTRAS, lambda _error: None))
        if files is not None and files.snapshot is not None:
            ledger = Ledger.open(repository.tree, newest, lists_of(repository.state(), newest))
    places = None
    if ledger is not None and files is not None and files.snapshot is not None:
        stack.callback(ledger.close)
        places = Places(repository.tree, ledger, files.snapshot)
        stack.callback(places.close)
    recorded = {
        entry.path: (extras.added_to(entry), None if ledger is None else ledger.record(number))
        for number, entry in enumerate(snapshot.entries())
        if entry.path in wanted
    }
    return recorded, places


def _reasons(
    source: Source, path: bytes, old: Entry | None, seen: Seen | None, places: Places | None
) -> Reasons | NotFoundError:
    found = source.look(path)
    if isinstance(found, Unreadable):
        if not _is_missing(found):
            return _not_seen(found, path)
        if old is None:
            return NotFoundError("is not there, and was not in the last session", path=path)
        return Reasons(path, ("it is not there any more",))
    new = found.entry
    if old is None:
        return Reasons(path, (_what_is_new(source, found, places),))
    if plan.change(old, new) is not plan.Change.NONE:
        differ = (old.xattrs, old.acl) != (new.xattrs, new.acl)
        words = plan.what_changed(old.record, new.record._replace(sha1=old.sha1), extras_differ=differ)
        return Reasons(path, tuple(f"its {word} is another" for word in words))
    if new.kind is not Kind.REGULAR or seen is None:
        return Reasons(path, ())
    return Reasons(path, tuple(_suspicions(seen, found)))


def _what_is_new(source: Source, found: Found, places: Places | None) -> str:
    """Also where it was before, as far as a session would look for it there."""
    if places is None or not may_have_moved(found):
        return "it is new"
    with storage_errors():
        for before in places.of(found.status):
            if source.has_lost(before.entry.path):
                what = "" if before.is_sure else ", if it has the same content"
                return f"it is new, and was {printable(before.entry.path)} before{what}"
    return "it is new"


def _suspicions(seen: Seen, found: Found) -> Iterator[str]:
    """What is different of a file that has recorded size and time; its content is compared then."""
    status = found.status
    if seen.flags & VALID and seen.mtime_ns != status.st_mtime_ns:
        yield "its time differs by a fraction of a second"
    if not seen.may_have_changed(status.st_ino, status.st_dev, status.st_ctime_ns):
        return
    if not seen.flags & VALID:
        yield "the last session could not look at it"
    elif seen.inode != status.st_ino:
        yield "it is another file of the same size and time (its inode number is another)"
    elif seen.ctime_ns != status.st_ctime_ns:
        yield "something of it was changed since (the change time of its inode)"
    else:
        yield "it had changed so shortly before that it may have changed again unseen"
