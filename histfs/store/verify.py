"""The operation `verify`: read every file of a snapshot and compare it with what was recorded."""

from collections.abc import Callable
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError
from histfs.store.entry import Kind, LinkDigests, is_below
from histfs.store.repository import Repository


class VerifyOutcome(NamedTuple):
    """Counts of regular files: all, those that are not as recorded, and those of which no digest was recorded."""

    files: int
    mismatched: int
    without_digest: int


def verify(
    repository: Repository, path: bytes, session_time: int, *, report: Callable[[HistfsError], None]
) -> VerifyOutcome:
    """Verify what was at and below `path` at the session of `session_time`.

    Each damaged file or record is told to `report`, and the next one is looked at. Raises NotFoundError if `path`
    was not there, DamagedError if the list of files itself cannot be read.
    """
    snapshot = repository.snapshot(session_time)
    digests = LinkDigests()
    files = mismatched = without_digest = 0
    is_there = False

    def damaged(error: DamagedError) -> None:
        nonlocal mismatched
        mismatched += 1
        report(error)

    for entry in snapshot.entries(on_damage=damaged):
        digests.remember(entry)
        if not is_below(entry.path, path):
            continue
        is_there = True
        if entry.kind is not Kind.REGULAR:
            continue
        files += 1
        sha1 = digests.of(entry)
        if sha1 is None:
            without_digest += 1
        try:
            with snapshot.open(entry, sha1) as content:
                for _ in content.blocks():
                    pass
        except (DamagedError, StorageError) as error:
            error.path, error.at = entry.path, session_time
            mismatched += 1
            report(error)
    if not is_there:
        raise NotFoundError("was not there at this time", path=path, at=session_time)
    return VerifyOutcome(files, mismatched, without_digest)
