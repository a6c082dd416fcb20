"""The kinds of rules: what each says of one path.

A stage is one rule, or a run of rules that are looked at together. Those that go by name alone need nothing from the
disk; others ask for the type, the size or the device, or through `Surroundings` what else is there.
"""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from histfs.errors import printable
from histfs.store.entry import Kind, parent_of
from histfs.store.selection.globs import SLASH, Automaton, Pattern, State
from histfs.store.selection.patterns import joined

CACHE_TAG = b"CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # what it begins with: https://bford.info/cachedir


class Outcome(Enum):
    INCLUDED = "included"
    EXCLUDED = "excluded"
    SCANNED = "scanned"  # a directory that stays only if something in it is included


class Rule(NamedTuple):
    """One rule as it was given."""

    option: str  # with its dashes
    argument: bytes
    line: int = 0  # of the list that the argument names; 0 for an option itself
    text: bytes = b""  # this line

    def __str__(self) -> str:
        given = f"{self.option} {printable(self.argument)}" if self.argument else self.option
        return f"line {self.line} of {given}: {printable(self.text)}" if self.line else given


class Answer(NamedTuple):
    """What a stage says: which rule includes or excludes the path, and which rule before it wants it scanned."""

    outcome: Outcome | None = None
    rule: Rule | None = None
    scanning: Rule | None = None


NOTHING = Answer()


class Surroundings(Protocol):
    """What rules ask about a tree, beside the attributes of a path. Whatever cannot be known is not there."""

    @property
    def device(self) -> int | None:
        """The number of the file system that the root is on; None if the tree is not on a disk."""

    def holds(self, directory: bytes, name: bytes) -> bool:
        """Whether something of this name is in the directory; the name may be a path."""

    def is_cache(self, directory: bytes) -> bool:
        """Whether the directory has a CACHE_TAG that begins with the CACHE_SIGNATURE."""


class Subject(NamedTuple):
    """What is known about the path in question."""

    is_directory: bool
    kind: Kind | None = None  # None: it was not looked at yet, and only rules that go by name can be asked
    size_bytes: int = 0
    device: int | None = None
    surroundings: Surroundings | None = None


class Place:
    """A path on the way from the root, and where the automata of a selection are there."""

    __slots__ = ("_held", "_inside", "parent", "path", "states")

    def __init__(self, path: bytes, parent: "Place | None", states: tuple[State, ...]) -> None:
        self.path = path
        self.parent = parent
        self.states = states  # of the path itself; for the root, which no rule is asked about, of what is in it
        self._inside = None if parent else states
        self._held: dict[bytes, bool] = {}

    @property
    def inside(self) -> tuple[State, ...]:
        """Where the names in this directory begin."""
        if self._inside is None:
            self._inside = tuple(state[SLASH] for state in self.states)
        return self._inside

    def holds(self, name: bytes, surroundings: Surroundings) -> bool:
        """Whether `name` is in this directory; asked only once."""
        if name not in self._held:
            self._held[name] = surroundings.holds(self.path, name)
        return self._held[name]


class Stage(Protocol):
    @property
    def by_name(self) -> bool:
        """Whether the name alone decides, and whether it is a directory."""

    @property
    def includes(self) -> bool:
        """Whether it may include something."""

    @property
    def lasts(self) -> bool:
        """Whether its answer stays the same as long as what lstat(2) says of the path does, and who asks is the same.

        The names in a directory change its times. `Surroundings` have to tell what may change without that.
        """

    def answer(self, place: Place, subject: Subject) -> Answer: ...


class Globs:
    """A run of glob patterns."""

    by_name = True
    includes = True
    lasts = True

    def __init__(self, rules: Sequence[tuple[Rule, bool, Pattern]], base: bytes, slot: int) -> None:
        self._rules = [rule for rule, _, _ in rules]
        self._outcomes = [Outcome.INCLUDED if is_include else Outcome.EXCLUDED for _, is_include, _ in rules]
        self.automaton = Automaton([pattern for _, _, pattern in rules], [include for _, include, _ in rules], base)
        self._slot = slot  # in the states of a place

    def answer(self, place: Place, subject: Subject) -> Answer:
        first, scanning = self.automaton.answer(place.states[self._slot], is_directory=subject.is_directory)
        scanner = None if scanning is None or (first is not None and first < scanning) else self._rules[scanning]
        if first is None:
            return NOTHING if scanner is None else Answer(scanning=scanner)
        return Answer(self._outcomes[first], self._rules[first], scanner)


class Paths:
    """A run of plain paths: each means itself and all below it; those that include also what leads to them."""

    by_name = True
    includes = True
    lasts = True

    def __init__(self, rules: Sequence[tuple[Rule, bool, bytes]]) -> None:
        self._rules = [rule for rule, _, _ in rules]
        self._outcomes = [Outcome.INCLUDED if is_include else Outcome.EXCLUDED for _, is_include, _ in rules]
        self._at: dict[bytes, int] = {}
        self._leading: dict[bytes, int] = {}
        for number, (_, is_include, path) in enumerate(rules):
            self._at.setdefault(path, number)
            if is_include:
                for above in _from_root(path):
                    self._leading.setdefault(above, number)

    def answer(self, place: Place, subject: Subject) -> Answer:
        found = [self._at[path] for path in _from_root(place.path) if path in self._at]
        if place.path in self._leading:
            found.append(self._leading[place.path])
        if not found:
            return NOTHING
        first = min(found)
        return Answer(self._outcomes[first], self._rules[first])


class FileList:
    """A list of paths, whose order does not matter: what excludes means all below it too; what includes, what leads
    to it, but nothing below it; and of two lines of one path, that which excludes counts.
    """

    by_name = True
    lasts = True

    def __init__(self, lines: Sequence[tuple[Rule, bool, bytes]]) -> None:
        self._excluded: dict[bytes, Rule] = {}
        self._included: dict[bytes, Rule] = {}
        for rule, is_include, path in lines:
            if is_include:
                self._included[path] = rule
            else:
                self._excluded.setdefault(path, rule)
        for path, rule in list(self._included.items()):
            for above in _from_root(parent_of(path)):
                self._included.setdefault(above, rule)

    @property
    def includes(self) -> bool:
        return bool(self._included)

    def answer(self, place: Place, subject: Subject) -> Answer:
        for path in _from_root(place.path):
            if path in self._excluded:
                return Answer(Outcome.EXCLUDED, self._excluded[path])
        if place.path in self._included:
            return Answer(Outcome.INCLUDED, self._included[place.path])
        return NOTHING


class Regexp:
    """A regular expression that is searched in the whole path, and means this path alone."""

    by_name = True

    def __init__(self, rule: Rule, is_include: bool, expression: re.Pattern[bytes], base: bytes) -> None:
        self.includes = is_include
        self.lasts = not expression.flags & re.LOCALE
        self._search = expression.search
        self._base = base
        self._answer = _answer(rule, is_include)

    def answer(self, place: Place, subject: Subject) -> Answer:
        return self._answer if self._search(joined(self._base, place.path)) else NOTHING


class Kinds:
    """Files of some types."""

    by_name = False
    lasts = True

    def __init__(self, rule: Rule, is_include: bool, kinds: frozenset[Kind]) -> None:
        self.includes = is_include
        self._kinds = kinds
        self._answer = _answer(rule, is_include)

    def answer(self, place: Place, subject: Subject) -> Answer:
        return self._answer if subject.kind in self._kinds else NOTHING


class Sizes:
    """Excludes regular files that are too small or too large."""

    by_name = False
    includes = False
    lasts = True

    def __init__(self, rule: Rule, *, least_bytes: int = 0, most_bytes: int | None = None) -> None:
        self._least_bytes = least_bytes
        self._most_bytes = most_bytes
        self._answer = _answer(rule, False)

    def answer(self, place: Place, subject: Subject) -> Answer:
        if subject.kind is not Kind.REGULAR:
            return NOTHING
        too_large = self._most_bytes is not None and subject.size_bytes > self._most_bytes
        return self._answer if too_large or subject.size_bytes < self._least_bytes else NOTHING


class OtherFilesystems:
    """What is on another file system than the root."""

    by_name = False
    lasts = True

    def __init__(self, rule: Rule, is_include: bool) -> None:
        self.includes = is_include
        self._answer = _answer(rule, is_include)

    def answer(self, place: Place, subject: Subject) -> Answer:
        if subject.device is None or subject.surroundings is None:
            return NOTHING
        return self._answer if subject.device != subject.surroundings.device else NOTHING


class IfPresent:
    """A directory with a certain name in it: excluded with all of it, or included with the files directly in it."""

    by_name = False

    def __init__(self, rule: Rule, is_include: bool, name: bytes) -> None:
        self.includes = is_include
        # To include is about what lies in the directory as well, and of a path only its first name is in it.
        self.lasts = not is_include and b"/" not in name
        self._name = name
        self._answer = _answer(rule, is_include)

    def answer(self, place: Place, subject: Subject) -> Answer:
        directory = place if subject.is_directory else place.parent if self.includes else None
        if directory is None or subject.surroundings is None:
            return NOTHING
        return self._answer if directory.holds(self._name, subject.surroundings) else NOTHING


class Caches:
    """Excludes directories that programs have marked as caches."""

    by_name = False
    includes = False
    lasts = True

    def __init__(self, rule: Rule) -> None:
        self._answer = _answer(rule, False)

    def answer(self, place: Place, subject: Subject) -> Answer:
        if not subject.is_directory or subject.surroundings is None:
            return NOTHING
        return self._answer if subject.surroundings.is_cache(place.path) else NOTHING


def _answer(rule: Rule, is_include: bool) -> Answer:
    return Answer(Outcome.INCLUDED if is_include else Outcome.EXCLUDED, rule)


def _from_root(path: bytes) -> Iterator[bytes]:
    """The root, the directories on the way to `path`, and `path` itself."""
    yield b""
    at = path.find(b"/")
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)
    if path:
        yield path
