"""Lists of entries: merging, differences, the chain rule (docs/format.md 5)."""

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import DamagedError
from histfs.store.entry import Entry, Kind, sort_key
from histfs.store.format.listing import difference, lists_needed, merge, previous_stays_snapshot
from tests.strategies import listings

# Few paths and kinds, so that lists meet.
few = listings(st.sampled_from([b"a", b"a/b", b"a/b/c", b"a.txt", b"a ", b"b", b"\xff"]), (Kind.DIRECTORY, Kind.SOCKET))


def entry(path, uid=0, kind=Kind.SOCKET):
    return Entry(path, kind, uid=uid)


def absent(path):
    return Entry(path, Kind.ABSENT)


@given(few, few)
def test_a_difference_leads_back(older, newer):
    assert list(merge([difference(older, newer), newer])) == older


@given(few)
def test_the_difference_of_equals_is_empty(listing):
    assert list(difference(listing, listing)) == []


@given(few, few)
def test_a_difference_is_in_order_and_says_nothing_twice(older, newer):
    found = list(difference(older, newer))
    keys = [sort_key(each.path) for each in found]
    assert keys == sorted(set(keys))
    assert not set(found) & set(newer)


@given(st.lists(few, min_size=1, max_size=6))
def test_a_chain_of_differences_gives_every_list(states):
    diffs = [list(difference(older, newer)) for older, newer in pairwise(states)]
    for number, state in enumerate(states):
        assert list(merge([*diffs[number:], states[-1]])) == state


@given(st.lists(few, min_size=1, max_size=5))
def test_merging_is_what_a_dictionary_does(lists):
    merged = {}
    for listing in reversed(lists):
        merged |= {each.path: each for each in listing}
    assert list(merge(lists)) == [merged[path] for path in sorted(merged, key=sort_key)]


def test_a_difference_by_example():
    older = [entry(b""), entry(b"a"), entry(b"a/x"), entry(b"a.txt", 1), entry(b"c")]
    newer = [entry(b""), entry(b"a"), entry(b"a/y"), entry(b"a.txt", 2), entry(b"b")]
    assert list(difference(older, newer)) == [
        entry(b"a/x"),
        absent(b"a/y"),
        entry(b"a.txt", 1),
        absent(b"b"),
        entry(b"c"),
    ]


def test_the_list_closest_to_the_wanted_time_wins():
    lists = [[absent(b"a"), entry(b"b", 1)], [entry(b"a", 2), absent(b"b"), entry(b"c", 2)], [entry(b"c", 3)]]
    assert list(merge(lists)) == [entry(b"b", 1), entry(b"c", 2)]


def test_streams_are_read_one_ahead():
    taken = deque()

    def stream(name, paths):
        for path in paths:
            taken.append((name, path))
            yield entry(path)

    merged = merge([stream("diff", [b"c", b"d"]), stream("snapshot", [b"a", b"b", b"c", b"d"])])
    assert next(merged) == entry(b"a")
    assert len(taken) <= 3
    found = difference(stream("old", [b"a", b"b", b"c"]), stream("new", [b"x", b"y", b"z"]))
    taken.clear()
    assert next(found) == entry(b"a")
    assert len(taken) == 2


SNAPSHOT, DIFF = b"snapshot", b"diff"


@pytest.mark.parametrize(
    ("wanted", "types", "needed"),
    [
        (3, {1: DIFF, 2: DIFF, 3: SNAPSHOT}, [3]),
        (2, {1: DIFF, 2: DIFF, 3: SNAPSHOT}, [2, 3]),
        (1, {3: SNAPSHOT, 2: DIFF, 1: DIFF}, [1, 2, 3]),
        (1, {1: DIFF, 2: SNAPSHOT, 3: DIFF, 4: SNAPSHOT}, [1, 2]),
        (1, {1: SNAPSHOT, 2: DIFF}, [1]),
    ],
)
def test_lists_needed(wanted, types, needed):
    assert lists_needed(wanted, types) == needed
    assert lists_needed(wanted, types, sessions=[*types, 99]) == needed


@pytest.mark.parametrize(
    ("wanted", "types", "sessions", "complaint"),
    [
        (2, {1: DIFF, 3: SNAPSHOT}, [], "of this session is missing"),
        (1, {1: DIFF, 2: DIFF}, [], "differences only"),
        (1, {}, [], "of this session is missing"),
        (1, {1: DIFF, 3: SNAPSHOT}, [1, 2, 3], "of a later session is missing"),
    ],
)
def test_lists_that_cannot_be_put_together(wanted, types, sessions, complaint):
    with pytest.raises(DamagedError, match=complaint):
        lists_needed(wanted, types, sessions)


def test_the_chain_rule_leaves_every_ninth_list():
    types = []  # oldest first
    for _session in range(21):
        if types and not previous_stays_snapshot(reversed(types[:-1])):
            types[-1] = DIFF
        types.append(SNAPSHOT)
    letters = "".join(each.decode()[0] for each in types)
    assert letters == "dddddddds" + "dddddddds" + "dds"


@pytest.mark.parametrize(
    ("older_types", "stays"),
    [([], False), ([DIFF] * 7, False), ([DIFF] * 8, True), ([DIFF] * 9, True), ([SNAPSHOT] + [DIFF] * 9, False)],
)
def test_the_chain_rule(older_types, stays):
    assert previous_stays_snapshot(older_types) is stays
