"""How far a check of a repository has come: kept in the user's cache, as who only reads writes nothing to a repository.

It is lost without harm: the check begins anew then. What cannot be read, or is not of this format, is nothing.
"""

import base64
import contextlib
import json
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from histfs.store.catalog.place import cache_directory, identity_of
from histfs.store.files import WritableTree
from histfs.store.repository import Repository
from histfs.store.tree import Tree

_FORMAT = 2
_NEW = b"new"
_MOST_BYTES = 256 << 20


class Finding(NamedTuple):
    """A version that cannot be read: of which path, in which sessions (newest first), why, and which ones can be.

    `is_damage`: nobody can read it; else this user may not.
    """

    path: bytes
    sessions: tuple[int, ...]
    problem: str
    readable: tuple[int, ...]
    is_damage: bool = True


class Counts(NamedTuple):
    """Versions of regular files: all that were looked at, their bytes, and those of which no digest was recorded."""

    versions: int = 0
    size_bytes: int = 0
    without_digest: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(self, other, strict=True)))


class Position(NamedTuple):
    """What was looked at: of the sessions up to `newest` those before the part that begins with the session `part`, and
    of that all paths up to `path` (None: none yet).
    """

    newest: int
    part: int
    path: bytes | None
    counts: Counts = Counts()
    findings: tuple[Finding, ...] = ()


class KeptProgress:
    """The place of one check, of what is at and below `path` in a repository; made when there is something to keep.

    `cache`: the directory for what is kept of repositories; None, or one that cannot be used: nothing is kept.
    """

    def __init__(self, repository: Repository, path: bytes, cache: Path | None) -> None:
        self._directory = None if cache is None else cache / identity_of(repository)
        self._name = b"verify-" + blake2b(path, digest_size=10).hexdigest().encode()

    def read(self) -> Position | None:
        if self._directory is None:
            return None
        try:
            with Tree.open(self._directory) as place:
                return _parse(place.read_small_file(self._name, limit=_MOST_BYTES))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, position: Position) -> None:
        """What goes wrong costs the next check time, and no more."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError), cache_directory(self._directory) as place:
            new = self._name + b"." + _NEW
            place.unlink(new, missing_ok=True)
            place.write_file(new, [_format(position)])
            place.rename(new, self._name)

    def forget(self) -> None:
        if self._directory is not None:
            with contextlib.suppress(OSError), WritableTree.open(self._directory) as place:
                place.unlink(self._name, missing_ok=True)


def _format(position: Position) -> bytes:
    findings = [
        [_text(finding.path), finding.sessions, finding.problem, finding.readable, finding.is_damage]
        for finding in position.findings
    ]
    path = None if position.path is None else _text(position.path)
    return json.dumps([_FORMAT, position.newest, position.part, path, position.counts, findings]).encode()


def _parse(data: bytes) -> Position:
    """Raises ValueError, TypeError."""
    format_, newest, part, path, counts, findings = json.loads(data)
    if format_ != _FORMAT:
        raise ValueError("another format")
    return Position(
        int(newest),
        int(part),
        None if path is None else _bytes(path),
        Counts(*map(int, counts)),
        tuple(
            Finding(_bytes(where), tuple(map(int, sessions)), str(problem), tuple(map(int, readable)), bool(is_damage))
            for where, sessions, problem, readable, is_damage in findings
        ),
    )


def _text(path: bytes) -> str:
    return base64.b64encode(path).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
