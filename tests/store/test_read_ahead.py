"""Contents that are read ahead of who restores them: the right ones, at the right entry, or none."""

import hashlib
import itertools
from collections.abc import Iterator

import pytest

from histfs.errors import DamagedError
from histfs.store import read_ahead
from histfs.store.entry import Entry, Kind
from histfs.store.read_ahead import ReadAhead
from tests.store import rich
from tests.store.sessions import FIRST, Sessions
from tests.trees import MTIME, Dir, File, build


@pytest.mark.parametrize("batch_entries", [1, 2, 7, 500])
def test_every_small_file_of_every_session(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, batch_entries: int
) -> None:
    monkeypatch.setattr(read_ahead, "_BATCH_ENTRIES", batch_entries)
    rich.back_up(sessions)
    taken = 0
    with sessions.open() as repository:
        for session_time in repository.sessions():
            snapshot = repository.snapshot(session_time)
            entries = list(snapshot.entries())
            ahead = ReadAhead(repository, session_time)
            for entry, expected in zip(ahead.along(iter(entries)), entries, strict=True):
                assert entry == expected
                made = ahead.take(entry)
                if made is not None:
                    taken += 1
                    assert entry.kind is Kind.REGULAR
                    assert hashlib.sha1(made.data).hexdigest().encode() == entry.sha1
                    assert len(made.data) == entry.size_bytes
                    with snapshot.open(entry, entry.sha1) as content:
                        assert content.mtime_ns in (made.mtime_ns, None)
            snapshot.close()
    assert taken > 60


@pytest.mark.parametrize("good", [0, 1, 2, 3, 5])
def test_an_error_has_its_place(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """What comes before it is handed out, though the list was read further."""
    monkeypatch.setattr(read_ahead, "_BATCH_ENTRIES", 2)
    build(sessions.source, Dir({f"f{number}": File(b"%d" % number, mtime=MTIME) for number in range(5)}))
    sessions.backup()

    def broken(entries: list[Entry]) -> Iterator[Entry]:
        yield from itertools.islice(entries, good)
        raise DamagedError("cannot be read")

    with sessions.open() as repository:
        snapshot = repository.snapshot(FIRST)
        entries = list(snapshot.entries())[1:]
        snapshot.close()
        ahead = ReadAhead(repository, FIRST)
        taken = ((entry, ahead.take(entry) is not None) for entry in ahead.along(broken(entries)))
        seen = list(itertools.islice(taken, good))
        with pytest.raises(DamagedError):
            next(taken)
    assert seen == [(entry, True) for entry in entries[:good]]


def test_only_so_much_is_read_ahead(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the list holds: three batches, each of which ends with the file that fills it."""
    monkeypatch.setattr(read_ahead, "_BATCH_BYTES", 1000)
    build(sessions.source, Dir({f"f{number:03}": File(bytes(500), mtime=MTIME) for number in range(100)}))
    sessions.backup()
    pulled = 0

    def counted(entries: list[Entry]) -> Iterator[Entry]:
        nonlocal pulled
        for entry in entries:
            pulled += 1
            yield entry

    with sessions.open() as repository:
        snapshot = repository.snapshot(FIRST)
        entries = list(snapshot.entries())
        snapshot.close()
        ahead = ReadAhead(repository, FIRST)
        for number, _ in enumerate(ahead.along(counted(entries)), 1):
            assert pulled <= number + 9
    assert pulled == len(entries)


def test_what_is_damaged_is_left(sessions: Sessions) -> None:
    build(sessions.source, Dir({"good": File(b"good", mtime=MTIME), "bad": File(b"bad", mtime=MTIME)}))
    sessions.backup()
    (sessions.repository / "bad").write_bytes(b"dab")
    with sessions.open() as repository:
        snapshot = repository.snapshot(FIRST)
        ahead = ReadAhead(repository, FIRST)
        made = {entry.path: ahead.take(entry) for entry in ahead.along(snapshot.entries())}
        snapshot.close()
    assert made[b"bad"] is None
    assert made[b"good"] is not None
