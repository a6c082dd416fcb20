"""A process that reads the mount all the time, and compares what it gets with the published model.

`python -m tests.soak.reader MOUNTPOINT MODEL SEED` ends by itself when something is wrong, with code 1 and what that
was on standard output; told by SIGTERM it ends with code 0 and its counts there. What is legal: a session or path
that is being removed is not there any more (ENOENT, ESTALE), and what was opened in a mount that has ended ends, too.
"""

import errno
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import comparison
from tests.comparison import Manifest, difference
from tests.soak.model import Index, PublishedModel, name_of

_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_MISSING = _GONE | {errno.EIO}  # of a path that goes a mount may still have the name (docs/manual.md)
_ENDED = _GONE | {errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF, errno.ENODEV}
_HELD_S = 2.0


@dataclass
class Counts:
    looks: int = 0
    files: int = 0
    bytes: int = 0
    snapshots: int = 0  # read as a whole
    gone: int = 0  # looks that met with a removal
    ended: int = 0  # looks that met with the end of a mount


class Look:
    """One thing to look at: `path` of the session at `time`; None: all of it."""

    def __init__(self, top: bytes, path: bytes | None, chance: random.Random) -> None:
        self._top = top
        self.path = path
        self._chance = chance
        self.bytes = 0
        self.files = 0

    def find(self) -> Manifest:
        """What is there. OSError as it comes."""
        if self.path is None:
            found = comparison.read(self._top)
            self.files = sum(attributes.type == "file" for attributes in found.values())
            self.bytes = sum(attributes.size or 0 for attributes in found.values())
            return found
        full = os.path.join(self._top, self.path) if self.path else self._top
        found = comparison.look_at(full)
        if found.type == "file" and found.size:
            self.files, self.bytes = 1, 2 * found.size
            wrong, sha1 = self._read_in_pieces(full, found.size)
            if wrong or sha1 != found.sha1:
                found = found._replace(sha1=f"{found.sha1} in order, and {sha1} in pieces: {wrong}")
        return {self.path: found}

    def _read_in_pieces(self, full: bytes, size: int) -> tuple[list[str], str]:
        """Read through one descriptor, in any order; perhaps it is held for a while in the middle.

        Pieces that were too short, and the SHA1.
        """
        cuts = sorted({0, size, *(self._chance.randrange(size) for _ in range(self._chance.randrange(6)))})
        pieces = list(itertools.pairwise(cuts))
        self._chance.shuffle(pieces)
        held_after = self._chance.randrange(len(pieces)) if self._chance.random() < 0.1 else -1
        content = bytearray(size)
        short: list[str] = []
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for number, (start, end) in enumerate(pieces):
                at = start
                while at < end and (
                    got := os.pread(fd, end - at, at)
                ):  # less comes before an error, as of a mount that ends
                    content[at : at + len(got)] = got
                    at += len(got)
                if at < end:
                    short.append(f"{at - start} bytes of {start} to {end} of {size}")
                if number == held_after:
                    time.sleep(self._chance.random() * _HELD_S)
        finally:
            os.close(fd)
        return short, hashlib.sha1(content).hexdigest()


def _calls(exc: OSError) -> str:
    return " > ".join(frame.name for frame in traceback.extract_tb(exc.__traceback__))


class Reader:
    """Looks at random things, and counts."""

    def __init__(self, mountpoint: Path, model: PublishedModel, seed: str) -> None:
        self._mountpoint = mountpoint
        self._model = model
        self._chance = random.Random(f"reader {seed}")
        self.counts = Counts()

    def look(self) -> list[str]:
        """What is wrong with something; it is empty for all that is right, or legal."""
        before = self._model.index()
        if before.mount is None or not before.sessions:
            time.sleep(0.02)
            return []
        try:
            if self._chance.random() < 0.05:
                return self._look_at_names(before)
            times = sorted(before.sessions)
            session_time = self._chance.choice(times[-4:] if self._chance.random() < 0.5 else times)
            return self._look_at(session_time, before)
        except FileNotFoundError as exc:  # of the model, never of the mount
            return [f"the model: {exc}"]

    def _look_at_names(self, before: Index) -> list[str]:
        try:
            names = set(os.listdir(self._mountpoint))
        except OSError as exc:
            return [] if self._has_ended(before, exc) else [f"the mount cannot be listed: {exc!r}"]
        after = self._model.index()
        if after.mount != before.mount:
            return []
        sure = {at for at, shown in after.sessions.items() if at in before.sessions and not shown.may_be_gone}
        return [f"the mount does not show {at}" for at in sorted(sure) if name_of(at) not in names]

    def _look_at(self, session_time: int, before: Index) -> list[str]:
        states = self._model.states(before.sessions[session_time])
        path = None if self._chance.random() < 0.02 else self._chance.choice(sorted(states[0]))
        look = Look(os.fsencode(self._mountpoint / name_of(session_time)), path, self._chance)
        where = f"session {session_time}, {'all of it' if path is None else repr(path)}"
        try:
            found = look.find()
        except OSError as exc:
            if self._has_ended(before, exc) or self._was_removed(session_time, path, before, exc):
                return []
            return [f"{where}: {exc!r} of {exc.filename!r} in {_calls(exc)}"]
        self.counts.looks += 1
        self.counts.files += look.files
        self.counts.bytes += look.bytes
        self.counts.snapshots += path is None
        lines = self._difference(states, path, found)
        if not lines:
            return []
        after = self._model.index().sessions.get(session_time)
        if after is None or (path is None and after != before.sessions[session_time]):
            self.counts.gone += 1  # nobody knows any more what it was to be
            return []
        lines = self._difference(self._model.states(after), path, found)
        if lines and path is None and (after.may_be_gone or len(after.states) > 1):
            self.counts.gone += 1  # it was read while it went
            return []
        return [f"{where}: {line}" for line in lines]

    @staticmethod
    def _difference(states: Sequence[Manifest], path: bytes | None, found: Manifest) -> list[str]:
        """How `found` differs from each state that there may be; that of the state it differs least from."""
        differences = []
        for state in states:
            expected = state if path is None else {path: state[path]} if path in state else {}
            links = path is None
            differences.append(difference(expected, found, root_mtime=False, nlink=False, links=links))
        return min(differences, key=len)

    def _has_ended(self, before: Index, exc: OSError) -> bool:
        """Whether an error is that of a mount which has ended, or is about to."""
        ended = exc.errno in _ENDED and self._model.index().mount != before.mount
        self.counts.ended += ended
        return ended

    def _was_removed(self, session_time: int, path: bytes | None, before: Index, exc: OSError) -> bool:
        """Whether something is missing that may be."""
        if exc.errno not in _MISSING:
            return False
        after = self._model.index().sessions.get(session_time)
        known = [before.sessions[session_time], *([after] if after else [])]
        states = [state for shown in known for state in self._model.states(shown)]
        session_may_be_gone = after is None or any(shown.may_be_gone for shown in known)
        if path is None:
            path_may_be_gone = after is not None and (
                after != before.sessions[session_time] or len(states) > len(known)
            )
        else:
            # A mount knows a file by the first of its names, and loses sight of the others with it for a while.
            links = {link for state in states if path in state for link in state[path].links or ()}
            path_may_be_gone = any(not links | {path} <= state.keys() for state in states)
        removed = path_may_be_gone or (session_may_be_gone and exc.errno in _GONE)
        self.counts.gone += removed
        return removed


def main() -> int:
    mountpoint, model, seed = sys.argv[1:]
    told = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the soak itself tells
    reader = Reader(Path(mountpoint), PublishedModel(Path(model)), seed)
    wrong: list[str] = []
    while not told and not wrong:
        wrong = reader.look()
    sys.stdout.write("\n".join(wrong) if wrong else json.dumps(asdict(reader.counts)))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
