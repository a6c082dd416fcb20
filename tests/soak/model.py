"""What must be in the repository and its mount, for the soak itself and for the readers beside it.

Readers see it through a directory: an index that is replaced as a whole, and a file for each state, written once.
"""

import os
import pickle
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

from histfs.store.when import snapshot_names
from tests.comparison import Manifest, part
from tests.faults.judge import Expected

_INDEX = "index"
_LISTS = (b"system.posix_acl_access", b"system.posix_acl_default")


class Shown(NamedTuple):
    """A session as readers know it: the numbers of the states that it may have, and whether it may be gone."""

    states: tuple[int, ...]
    may_be_gone: bool


class Index(NamedTuple):
    """`mount`: the number of the mount that is up; None while there may be none. Sessions are those it must show."""

    mount: int | None
    sessions: dict[int, Shown]


def name_of(session_time: int) -> str:
    """The directory of a session in the mount; those of the soak are at whole minutes."""
    return snapshot_names([session_time], UTC)[session_time]


class Model:
    """The sessions that are finished. Whatever changes here is published at once, but for a session that is added."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sessions: dict[int, Expected] = {}
        self._numbers: dict[int, tuple[int, ...]] = {}  # of the states of each session
        self._states = 0
        self._mount: int | None = None
        directory.mkdir()
        self.publish()

    @property
    def history(self) -> dict[int, Expected]:
        return dict(self._sessions)

    @property
    def times(self) -> list[int]:
        return sorted(self._sessions)

    def state(self, session_time: int) -> Manifest:
        """The only state that a session has."""
        (manifest,) = self._sessions[session_time].manifests
        return manifest

    def add(self, session_time: int, manifest: Manifest) -> None:
        """A session has finished. Readers hear of it with the next `publish`, when the mount shows it."""
        self._set(session_time, [manifest])

    def may_go(self, times: Iterable[int]) -> None:
        """These sessions are about to be removed."""
        for session_time in times:
            self._sessions[session_time] = self._sessions[session_time]._replace(may_be_gone=True)
        self.publish()

    def settle(self, times: Iterable[int]) -> None:
        """Of the sessions that may be gone, `times` are there."""
        there = set(times)
        for session_time, expected in self.history.items():
            if expected.may_be_gone and session_time not in there:
                del self._sessions[session_time], self._numbers[session_time]
            else:
                self._sessions[session_time] = expected._replace(may_be_gone=False)
        self.publish()

    def path_may_go(self, removed: bytes) -> None:
        """A path is about to be removed from all sessions. Attributes may go first, of either kind."""
        for session_time in self.times:
            before = self.state(session_time)
            gone = {path for path in before if _is_below(path, removed)}
            plain = [
                _stripped(before, gone, lists, others) for lists, others in ((True, False), (False, True), (True, True))
            ]
            if gone:
                self._set(session_time, [before, *plain, part(before, before.keys() - gone)])
        self.publish()

    def path_is_gone(self) -> None:
        """It is removed everywhere."""
        for session_time, expected in self.history.items():
            if len(expected.manifests) > 1:
                self._set(session_time, [expected.manifests[-1]])
        self.publish()

    def mounted(self, number: int | None) -> None:
        """Another mount is up, or there may be none."""
        self._mount = number
        self.publish()

    def _set(self, session_time: int, manifests: list[Manifest]) -> None:
        numbers = []
        for manifest in manifests:
            self._states += 1
            (self._directory / str(self._states)).write_bytes(pickle.dumps(manifest))
            numbers.append(self._states)
        self._sessions[session_time] = Expected(manifests)
        self._numbers[session_time] = tuple(numbers)

    def publish(self) -> None:
        shown = {at: Shown(self._numbers[at], expected.may_be_gone) for at, expected in self._sessions.items()}
        new = self._directory / "new"
        new.write_bytes(pickle.dumps(Index(self._mount, shown)))
        os.replace(new, self._directory / _INDEX)


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _stripped(manifest: Manifest, paths: set[bytes], lists: bool, others: bool) -> Manifest:
    """A manifest whose `paths` have lost access control lists, other extended attributes, or both."""
    stripped = dict(manifest)
    for path in paths:
        left = [pair for pair in manifest[path].xattrs if not (lists if pair[0] in _LISTS else others)]
        stripped[path] = manifest[path]._replace(xattrs=tuple(left))
    return stripped


class PublishedModel:
    """The model as a reader sees it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._states: dict[int, Manifest] = {}

    def index(self) -> Index:
        index: Index = pickle.loads((self._directory / _INDEX).read_bytes())
        return index

    def states(self, shown: Shown) -> list[Manifest]:
        for number in shown.states:
            if number not in self._states:
                self._states[number] = pickle.loads((self._directory / str(number)).read_bytes())
        return [self._states[number] for number in shown.states]
