"""The operation `verify`: read every file of a snapshot, and compare it with what was recorded."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError
from histfs.store.content.opening import ADVICE, OTHERS_MAY_BE_INTACT
from histfs.store.entry import Entry, Kind, LinkDigests, is_below
from histfs.store.repository import Repository
from histfs.store.snapshot import Snapshot


class VerifyOutcome(NamedTuple):
    """Counts of regular files: all, those that are not as recorded, and those of which no digest was recorded."""

    files: int
    mismatched: int
    without_digest: int


class _Recorded(NamedTuple):
    """An entry with the digest of its content, also where the first of several links alone records it."""

    entry: Entry
    sha1: bytes | None


def verify(
    repository: Repository, path: bytes, session_time: int, *, report: Callable[[HistfsError], None]
) -> VerifyOutcome:
    """Verify what was at and below `path` at the session of `session_time`.

    Each damaged file or record is told to `report`, and the next one is looked at. Raises NotFoundError if `path`
    was not there, DamagedError if the list of files itself cannot be read.
    """
    verification = _Verification(report)
    snapshot = repository.snapshot(session_time)
    for recorded in verification.recorded(snapshot, path):
        verification.check(snapshot, recorded)
    if not verification.is_there:
        raise NotFoundError("was not there at this time", path=path, at=session_time)
    return verification.outcome()


class _Verification:
    def __init__(self, report: Callable[[HistfsError], None]) -> None:
        self._report = report
        self._files = 0
        self._mismatched = 0
        self._without_digest = 0
        self.is_there = False

    def outcome(self) -> VerifyOutcome:
        return VerifyOutcome(self._files, self._mismatched, self._without_digest)

    def damaged(self, error: HistfsError) -> None:
        self._mismatched += 1
        self._report(error)

    def recorded(self, snapshot: Snapshot, path: bytes) -> Iterator[_Recorded]:
        """The regular files at and below `path`."""
        digests = LinkDigests()
        for entry in snapshot.entries(on_damage=self.damaged):
            digests.remember(entry)
            if not is_below(entry.path, path):
                continue
            self.is_there = True
            if entry.kind is Kind.REGULAR:
                yield _Recorded(entry, digests.of(entry))

    def check(self, snapshot: Snapshot, recorded: _Recorded) -> None:
        self._files += 1
        if recorded.sha1 is None:
            self._without_digest += 1
        try:
            with snapshot.open(recorded.entry, recorded.sha1) as content:
                for _ in snapshot.repository.told(content.blocks()):
                    pass
        except (DamagedError, StorageError) as error:
            error.path, error.at = recorded.entry.path, snapshot.time
            if error.advice == ADVICE:  # to do what is done here
                error.advice = OTHERS_MAY_BE_INTACT
            self.damaged(error)
