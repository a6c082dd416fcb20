"""Glob patterns: how they are written, and how many of them are matched at once.

All patterns of a group become one automaton, whose states are bits of one number: a bit for each token of a pattern. It
is made deterministic while it is used, a state and a byte at a time. So a name costs one look-up a byte, however many
patterns there are and however they are written: nothing is ever tried a second time. The state in which a directory
was left is where every name in it begins. And a state tells more than whether a pattern has matched: an include pattern
that still may match something in a directory is the reason to look into it.

A pattern that matches a directory matches all that is in it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple

from histfs.errors import UsageError, printable

SLASH = 0x2F
SPECIAL = b"*?[\\"
_MAX_STATE_BYTES = 16 << 20  # what the states that are kept may take
_FEWEST_STATES = 64

Bytes = frozenset[int]  # a byte of the path, one of these


class Star(Enum):
    """What stands for any number of bytes."""

    NAME = auto()  # *: none is a slash
    PATH = auto()  # **: any
    LEVELS = auto()  # **/ where it may also be nothing: whole directories


class _End(Enum):
    ITSELF = auto()  # the pattern has matched the path to here
    BELOW = auto()  # or a directory above it


Token = Bytes | Star

_ALL = frozenset(range(256))
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_NO_SLASH = _ALL - {SLASH}


class Pattern(NamedTuple):
    """A glob as it is matched."""

    tokens: tuple[Token, ...]
    is_whole: bool  # compared with the whole path, that of the root and a slash before it; else from the root on
    only_directories: bool = False


def parse_glob(text: bytes, *, ignore_case: bool) -> tuple[Token, ...]:
    """The tokens of a glob; UsageError if it makes no sense."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        token, at = _parse_token(text, at, ignore_case)
        if token is Star.NAME and tokens and isinstance(tokens[-1], Star):
            tokens[-1] = Star.PATH
        else:
            tokens.append(token)
    if (_literal(SLASH), _literal(SLASH)) in pairwise(tokens):
        raise UsageError(f"the pattern {printable(text)} has two slashes side by side, which no path has")
    return tuple(tokens)


def _parse_token(text: bytes, at: int, ignore_case: bool) -> tuple[Token, int]:
    """The token at this position, and where the next one begins."""
    char = text[at : at + 1]
    if char == b"*":
        return Star.NAME, at + 1  # a second one makes it Star.PATH
    if char == b"?":
        return _NO_SLASH, at + 1
    if char == b"\\" and at + 1 < len(text):
        return _literal(text[at + 1], ignore_case), at + 2
    if char == b"[":
        inner = at + 2 if text[at + 1 : at + 2] in (b"!", b"^") else at + 1
        end = text.find(b"]", inner + 1)  # one that comes first is meant literally
        if end >= 0:
            chosen = _parse_class(text[inner:end], text)
            if ignore_case:
                chosen = _in_any_case(chosen)
            return chosen if inner == at + 1 else _ALL - chosen, end + 1
    return _literal(text[at], ignore_case), at + 1


def _parse_class(inner: bytes, text: bytes) -> Bytes:
    chosen: set[int] = set()
    at = 0
    while at < len(inner):
        if inner[at + 1 : at + 2] == b"-" and at + 2 < len(inner):
            low, high = inner[at], inner[at + 2]
            if low > high:
                raise UsageError(f"the pattern {printable(text)} has a range that ends before it begins")
            chosen.update(range(low, high + 1))
            at += 3
        else:
            chosen.add(inner[at])
            at += 1
    return frozenset(chosen)


def _literal(byte: int, ignore_case: bool = False) -> Bytes:
    chosen = frozenset((byte,))
    return _in_any_case(chosen) if ignore_case else chosen


def _in_any_case(chosen: Bytes) -> Bytes:
    return chosen | {byte ^ 0x20 for byte in chosen & _LETTERS}


def with_levels(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """`tokens` where "**" between two slashes, or before the first one, may be no directory at all."""
    slash = _literal(SLASH)
    result: list[Token] = []
    at = 0
    while at < len(tokens):
        begins_name = not at or tokens[at - 1] == slash
        if begins_name and tokens[at : at + 2] == (Star.PATH, slash):
            if not result or result[-1] is not Star.LEVELS:
                result.append(Star.LEVELS)
            at += 2
        else:
            result.append(tokens[at])
            at += 1
    return tuple(result)


class Answer(NamedTuple):
    """What an automaton says of a path: the numbers of two patterns."""

    first: int | None  # the first one that matches it, or a directory above it
    scanning: int | None  # the first include pattern that may match something below it, if it is a directory


class State(dict[int, "State"]):
    """Where an automaton is: the state that follows, by byte, as far as it is known."""

    __slots__ = ("_automaton", "of_directory", "of_other", "positions")

    def __init__(self, automaton: "Automaton", positions: int) -> None:
        super().__init__()
        self._automaton = automaton
        self.positions = positions
        self.of_directory: Answer | None = None
        self.of_other: Answer | None = None

    def __missing__(self, byte: int) -> "State":
        state = self._automaton.state(self._automaton.step(self.positions, byte))
        self[byte] = state
        return state

    def after(self, name: bytes) -> "State":
        state = self
        for byte in name:
            state = state[byte]
        return state


class Automaton:
    """Matches the `patterns`, in their order, against paths below the root, whose own path is `base`.

    `includes` says which of the patterns include.
    """

    def __init__(self, patterns: Sequence[Pattern], includes: Sequence[bool], base: bytes) -> None:
        self._tokens: list[Token | _End] = []
        self._begins: list[int] = []  # the position of each pattern's first token
        whole = from_root = self._itself = self._below = self._alive = 0
        for pattern, is_include in zip(patterns, includes, strict=True):
            begin = len(self._tokens)
            self._begins.append(begin)
            self._add_tokens(pattern)
            end = len(self._tokens)
            self._below |= 1 << end - 1
            self._itself |= (0 if pattern.only_directories else 1 << end - 2) | 1 << end - 1
            if is_include:
                self._alive |= (1 << end - 2) - (1 << begin)
            if pattern.is_whole:
                whole |= 1 << begin
            else:
                from_root |= 1 << begin
        self._stars = self._bits(Star.NAME) | self._bits(Star.PATH)
        self._levels = self._bits(Star.LEVELS)
        self._moves: dict[int, tuple[int, int]] = {}
        self._states: dict[int, State] = {}
        self._max_states = max(_FEWEST_STATES, _MAX_STATE_BYTES // (1000 + len(self._tokens) // 8))
        positions = self._closed(whole)
        for byte in base.rstrip(b"/"):
            positions = self.step(positions, byte)
        self.at_root = positions
        self.in_root = self.state(self.step(positions, SLASH) | self._closed(from_root))

    def _add_tokens(self, pattern: Pattern) -> None:
        for token in pattern.tokens:
            self._tokens.append(token)
            if token is Star.LEVELS:
                self._tokens += [Star.PATH, _literal(SLASH)]
        self._tokens += [_End.ITSELF, _End.BELOW]

    def _bits(self, wanted: Star) -> int:
        return sum(1 << position for position, token in enumerate(self._tokens) if token is wanted)

    def can_match(self) -> bool:
        """Whether one of the patterns matches the root, or may match something in it."""
        not_ended = ~sum(1 << at for at, token in enumerate(self._tokens) if token is _End.ITSELF)
        return bool(self.in_root.positions & not_ended)

    def state(self, positions: int) -> State:
        state = self._states.get(positions)
        if state is None:
            if len(self._states) >= self._max_states:
                for known in self._states.values():
                    known.clear()
                self._states.clear()
            state = self._states[positions] = State(self, positions)
        return state

    def step(self, positions: int, byte: int) -> int:
        """The positions after one more byte."""
        if byte not in self._moves:
            self._moves[byte] = self._moves_at(byte)
        moving, staying = self._moves[byte]
        return self._closed((positions & moving) << 1 | positions & staying)

    def _moves_at(self, byte: int) -> tuple[int, int]:
        """The positions that go on to the next one with this byte, and those that stay."""
        moving, staying = bytearray(len(self._tokens) // 8 + 1), bytearray(len(self._tokens) // 8 + 1)
        for position, token in enumerate(self._tokens):
            if token is _End.BELOW or token is Star.PATH or (token is Star.NAME and byte != SLASH):
                staying[position // 8] |= 1 << position % 8
            elif (token is _End.ITSELF and byte == SLASH) or (isinstance(token, frozenset) and byte in token):
                moving[position // 8] |= 1 << position % 8
        return int.from_bytes(moving, "little"), int.from_bytes(staying, "little")

    def _closed(self, positions: int) -> int:
        """With those that are reached without a byte: behind a star, and for levels behind their slash as well."""
        levels = positions & self._levels
        positions |= levels << 1 | levels << 3
        return positions | (positions & self._stars) << 1

    def answer(self, state: State, *, is_directory: bool) -> Answer:
        """What the patterns say of the path that led to `state`."""
        if is_directory:
            if state.of_directory is None:
                inside = state[SLASH].positions
                state.of_directory = Answer(self._first(inside & self._below), self._first(inside & self._alive))
            return state.of_directory
        if state.of_other is None:
            state.of_other = Answer(self._first(state.positions & self._itself), None)
        return state.of_other

    def _first(self, positions: int) -> int | None:
        """The pattern that the first position belongs to."""
        if not positions:
            return None
        return bisect_right(self._begins, (positions & -positions).bit_length() - 1) - 1
