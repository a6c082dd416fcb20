"""The contents of small files, read before they are asked for: many at once, by threads, while the caller goes on.

A question of speed alone: what is not here, for whatever reason, is opened as any other file, which says what is wrong.
"""

from binascii import unhexlify
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from histfs.errors import HistfsError
from histfs.rsync import Made
from histfs.store.content.small import SmallFile, is_small
from histfs.store.entry import Entry, name_of, parent_of
from histfs.store.repository import Repository

_BATCH_ENTRIES = 500
_BATCH_BYTES = 4 << 20
_BATCHES = 3  # that are read, or wait for the caller
_THREADS = 2


class ReadAhead:
    """Small files of the session at `session_time`."""

    def __init__(self, repository: Repository, session_time: int) -> None:
        self._repository = repository
        self._time = session_time
        self._made: dict[bytes, Made] = {}

    def along(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries, and an error of theirs at its place. What is small among them can be taken."""
        following = iter(entries)
        waiting: deque[tuple[list[Entry], Future[dict[bytes, Made]]]] = deque()
        failure: HistfsError | OSError | None = None
        is_at_end = False
        with ThreadPoolExecutor(_THREADS) as readers:
            while True:
                while not is_at_end and len(waiting) < _BATCHES:
                    batch: list[Entry] = []
                    try:
                        is_at_end = _fill(batch, following)
                    except (HistfsError, OSError) as exc:
                        failure, is_at_end = exc, True
                    waiting.append((batch, readers.submit(self._read, batch)))
                if not waiting:
                    break
                batch, read = waiting.popleft()
                self._made = read.result()
                yield from batch
        if failure is not None:
            raise failure

    def take(self, entry: Entry) -> Made | None:
        """The content of the last entry; None if it is to be opened."""
        return self._made.pop(entry.path, None)

    def _read(self, batch: list[Entry]) -> dict[bytes, Made]:
        by_directory: dict[bytes, list[Entry]] = {}
        for entry in batch:
            if is_small(entry):
                by_directory.setdefault(parent_of(entry.path), []).append(entry)
        made: dict[bytes, Made] = {}
        for directory, entries in by_directory.items():
            files = [
                SmallFile(name_of(entry.path), entry.size_bytes, unhexlify(entry.sha1 or b""), self._time)
                for entry in entries
            ]
            read = self._repository.read_small(directory, files)
            made.update({entry.path: one for entry, one in zip(entries, read, strict=True) if one is not None})
        return made


def _fill(batch: list[Entry], entries: Iterator[Entry]) -> bool:
    """Add the following entries, so many that they are worth reading together; whether there are no more."""
    size_bytes = 0
    for entry in islice(entries, _BATCH_ENTRIES):
        batch.append(entry)
        size_bytes += entry.size_bytes if is_small(entry) else 0
        if size_bytes >= _BATCH_BYTES:
            return False
    return len(batch) < _BATCH_ENTRIES
