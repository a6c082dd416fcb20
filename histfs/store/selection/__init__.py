"""Which files of a tree are meant: rules in order, the first one that includes or excludes a path decides.

    selection = Selection.parse([Option("exclude", b"*.tmp")], base=b"/home/anna")
    place = selection.enter(selection.root, b"letters")
    selection.verdict(place, subject)      # Verdict(Outcome.INCLUDED, None)

What no rule decides is included; the root always is. What is in an excluded directory is excluded, and nobody asks. An
include pattern wants those directories scanned that may hold something for it: no later rule excludes them, but they
stay only if something in them is included. `selected` does all this for a sorted stream of entries.

Nothing here knows a disk: what rules ask beside the name comes in as a `Subject`, with `Surroundings`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Self, TypeVar

from histfs.store.entry import Entry, Kind, is_below, join, name_of
from histfs.store.selection.parsing import Option, parse_options, split_lines
from histfs.store.selection.patterns import normalized, path_in
from histfs.store.selection.stages import (
    CACHE_SIGNATURE,
    CACHE_TAG,
    Globs,
    Outcome,
    Place,
    Rule,
    Stage,
    Subject,
    Surroundings,
)

__all__ = [
    "CACHE_SIGNATURE",
    "CACHE_TAG",
    "Option",
    "Outcome",
    "Place",
    "Places",
    "Rule",
    "Scanned",
    "Selection",
    "Subject",
    "Surroundings",
    "Verdict",
]
__all__ += ["path_in", "selected", "split_lines"]


class Verdict(NamedTuple):
    """What becomes of a path, and the rule that decided; None: no rule did."""

    outcome: Outcome
    rule: Rule | None


_BY_DEFAULT = Verdict(Outcome.INCLUDED, None)


class Selection:
    """Rules for a tree. Make one with `parse`. Not for several threads at once: it learns while it is used."""

    def __init__(self, stages: Sequence[Stage], ignored: Sequence[Rule], meaning: bytes) -> None:
        self._stages = tuple(stages)
        self._meaning = meaning
        self.ignored = tuple(ignored)  # lines of lists that name nothing in the tree
        self.root = Place(b"", None, tuple(stage.automaton.in_root for stage in stages if isinstance(stage, Globs)))

    @classmethod
    def parse(cls, options: Sequence[Option], base: bytes) -> Self:
        """The selection for the tree whose root was typed as `base`. Raises UsageError."""
        meaning = hashlib.sha1(repr(normalized(base)).encode(), usedforsecurity=False)
        for option in options:
            meaning.update(repr(option.meaning).encode())
        return cls(*parse_options(options, normalized(base)), meaning.digest())

    @property
    def meaning(self) -> bytes | None:
        """A digest: of equal ones the rules decide alike where lstat(2) says the same; None: they ask for more."""
        return self._meaning if all(stage.lasts for stage in self._stages) else None

    def enter(self, directory: Place, name: bytes) -> Place:
        """The place of `name` in `directory`."""
        states = tuple([state.after(name) for state in directory.inside])
        return Place(join(directory.path, name), directory, states)

    def excludes_by_name(self, place: Place, *, is_directory: bool) -> bool:
        """Whether it is excluded for sure, before anything is looked at."""
        subject = Subject(is_directory)
        for stage in self._stages:
            if not stage.by_name:
                if stage.includes:
                    return False
                continue
            answer = stage.answer(place, subject)
            if answer.scanning is not None or answer.outcome is Outcome.INCLUDED:
                return False
            if answer.outcome is Outcome.EXCLUDED:
                return True
        return False

    def verdict(self, place: Place, subject: Subject) -> Verdict:
        """What becomes of `place`, whose directory is not excluded."""
        if place.parent is None:
            return _BY_DEFAULT
        scanning: Rule | None = None
        for stage in self._stages:
            answer = stage.answer(place, subject)
            scanning = scanning or answer.scanning
            if answer.outcome is Outcome.INCLUDED:
                return Verdict(Outcome.INCLUDED, answer.rule)
            if answer.outcome is Outcome.EXCLUDED:
                return (
                    Verdict(Outcome.EXCLUDED, answer.rule) if scanning is None else Verdict(Outcome.SCANNED, scanning)
                )
        return _BY_DEFAULT


Item = TypeVar("Item")


class Scanned(Generic[Item]):
    """Scanned directories on the way to where we are, which wait until something in them is included."""

    def __init__(self) -> None:
        self._waiting: list[tuple[bytes, Item]] = []

    def hold(self, path: bytes, item: Item) -> None:
        self._leave(path)
        self._waiting.append((path, item))

    def release(self, path: bytes) -> list[Item]:
        """Those that what is included at `path` lies in, in their order."""
        self._leave(path)
        released = [item for _, item in self._waiting]
        self._waiting.clear()
        return released

    def _leave(self, path: bytes) -> None:
        while self._waiting and not is_below(path, self._waiting[-1][0]):
            self._waiting.pop()


class Places:
    """Where a walk is, for the rules of a selection: the places of the directories on the way."""

    def __init__(self, selection: Selection | None) -> None:
        self._selection = selection
        self._places: list[Place] = [] if selection is None else [selection.root]

    def enter(self, path: bytes, name: bytes) -> Place:
        """The place of `name`, whose path this is."""
        assert self._selection is not None
        above = path[: -len(name)].rstrip(b"/")
        while not is_below(above, self._places[-1].path):
            self._places.pop()
        while self._places[-1].path != above:  # what was passed over
            last = self._places[-1]
            rest = above[len(last.path) :].lstrip(b"/")
            self._places.append(self._selection.enter(last, rest.partition(b"/")[0]))
        return self._selection.enter(self._places[-1], name)

    def keep(self, place: Place | None) -> None:
        """What comes next lies in this directory."""
        if place is not None:
            self._places.append(place)


def selected(
    entries: Iterable[Entry], selection: Selection, surroundings: Surroundings | None = None, *, root: bytes = b""
) -> Iterator[Entry]:
    """Those of `entries` that are selected; they are in metadata order, from the path `root` on, which is the root.

    Without `surroundings` nothing holds anything: for lists that cannot be asked.
    """
    places = [selection.root]
    scanned: Scanned[Entry] = Scanned()
    excluded: bytes | None = None
    for entry in entries:
        if entry.path == root:
            yield entry
            continue
        if excluded is not None and is_below(entry.path, excluded):
            continue
        path = entry.path[len(root) :].lstrip(b"/")
        while not is_below(path, places[-1].path):
            places.pop()
        is_directory = entry.kind is Kind.DIRECTORY
        place = selection.enter(places[-1], name_of(path))
        subject = Subject(is_directory, entry.kind, entry.size_bytes, surroundings=surroundings)
        outcome = selection.verdict(place, subject).outcome
        if outcome is Outcome.EXCLUDED:
            excluded = entry.path
            continue
        if is_directory:
            places.append(place)
        if outcome is Outcome.SCANNED:
            scanned.hold(entry.path, entry)
            continue
        yield from scanned.release(entry.path)
        yield entry
