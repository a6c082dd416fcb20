"""Extent maps: a composed map shows what patching link by link makes, and refuses what patching refuses."""

import contextlib
import gc
import random
import resource
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from histfs import rsync
from tests import maps_reference as reference
from tests.maps_reference import BASIS, HOLE
from tests.rsync_reference import MAGIC, Copy, DeltaError, Literal, encode, parse
from tests.strategies import chunkings

LARGEST = 2**48 - 1


def apply(basis: bytes, delta: bytes, max_size: int | None = 1 << 20) -> bytes:
    return b"".join(rsync.patch(basis, delta, max_size))


def parsed(delta: bytes, source: int = 1, **options) -> tuple[rsync.ExtentMap, bytes]:
    """The map of `delta`, and its literals."""
    parser = rsync.DeltaParser(source, **options)
    spool = parser.feed(delta)
    return parser.finish(), spool


@contextlib.contextmanager
def file_of(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def read_through(extents: rsync.ExtentMap, fd: int, literals: dict[int, bytes], offset: int, size: int) -> bytes:
    """A range of the target, up to its end; the basis is a file, the literals are in memory."""
    members = rsync.Members(0)
    sources = {number: rsync.MapSource(members, memory=data) for number, data in literals.items() if number != BASIS}
    sources[BASIS] = rsync.MapSource(members, fd=fd)
    offset = min(offset, extents.size_bytes)
    buffer = bytearray(min(size, extents.size_bytes - offset))
    rsync.MapReader(extents, sources, members).read(buffer, offset, lambda number: pytest.fail(f"{number} is open"))
    return bytes(buffer)


def outcome(call, *args) -> object:
    """What comes out: the result, or the class of the error."""
    try:
        return call(*args)
    except rsync.RsyncError as error:
        return type(error)


# --- strategies --------------------------------------------------------------------------------------------------

small_literals = st.binary(min_size=1, max_size=12).map(Literal)


def deltas_for(size: int) -> st.SearchStrategy[bytes]:
    """Deltas that fit a basis of `size` bytes: overlapping, backward and repeated copies, literals in a row."""
    commands = small_literals
    if size:
        copies = st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
            lambda pair: Copy(pair[0], min(pair[1], size - pair[0]))
        )
        commands = st.one_of(small_literals, copies)
    return st.builds(encode, st.lists(commands, max_size=8), st.integers(0, 3))


@st.composite
def chains(draw, max_length=4):
    """A basis, and deltas of which each applies to what the one before makes."""
    version = basis = draw(st.binary(max_size=60))
    made = []
    for _ in range(draw(st.integers(1, max_length))):
        made.append(draw(deltas_for(len(version))))
        version = apply(version, made[-1])
        assume(len(version) < 2000)
    return basis, made


@st.composite
def mutated(draw, delta):
    """`delta` with some bytes replaced, removed or put in, or cut off."""
    data = bytearray(delta)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del data[at : at + draw(st.integers(1, 4))]
            case 2:
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case _:
                del data[at:]
    return bytes(data)


# --- chains ------------------------------------------------------------------------------------------------------


@given(chains(), st.data())
def test_a_composed_map_shows_what_patching_makes(chain, data):
    basis, deltas = chain
    version, sources, composed = basis, {BASIS: basis}, None
    for number, delta in enumerate(deltas, 1):
        version = apply(version, delta)
        extents, sources[number] = parsed(delta, number)
        assert list(extents.extents()) == reference.of_delta(delta, number)
        composed = extents if composed is None else extents.compose(composed)
    assert composed.size_bytes == len(version)
    assert reference.read(list(composed.extents()), sources) == version
    offset, size = data.draw(st.integers(0, len(version) + 5)), data.draw(st.integers(0, len(version) + 5))
    pieces = composed.resolve(offset, size)
    assert pieces == list(reference.cut(list(composed.extents()), offset, size))
    assert reference.read(pieces, sources) == version[offset : offset + size]
    with file_of(basis) as fd:
        assert read_through(composed, fd, sources, offset, size) == version[offset : offset + size]


@given(chains())
def test_composing_is_associative_and_equals_the_reference(chain):
    maps = [parsed(delta, number)[0] for number, delta in enumerate(chain[1], 1)]
    left = maps[0]
    expected = list(maps[0].extents())
    for older in maps[1:]:
        left = older.compose(left)
        expected = reference.compose(list(older.extents()), expected)
    right = maps[-1]
    for newer in maps[-2::-1]:
        right = right.compose(newer)
    assert list(left.extents()) == list(right.extents()) == expected
    assert len(left) == len(expected)
    assert left.memory_bytes == 16 * (len(left) + 1)
    ends = [offset + length for source, offset, length in expected if source == BASIS]
    assert left.needs() == ({source for source, _, _ in expected}, max(ends, default=0))


@given(chains(max_length=5))
def test_only_wanted_literals_are_kept_on_the_way_to_the_newest(chain):
    """From the wanted version's delta towards the newest: at most the size of the version is kept in all."""
    basis, deltas = chain
    version = basis
    for delta in deltas:
        version = apply(version, delta)
    spool = b""
    outer: rsync.ExtentMap | None = None
    for delta in reversed(deltas):
        extents, kept = parsed(delta, wanted=outer, spool_offset=len(spool))
        if outer is None:
            assert kept == reference.literals(delta)
        else:
            full = reference.of_delta(delta, 2)
            wanted = reference.wanted(full, list(outer.extents()))
            expected, at, literals = b"", 0, reference.literals(delta)
            for source, offset, length in full:
                if source == 2:
                    expected += bytes(literals[offset + i] for i in range(length) if at + i in wanted)
                at += length
            assert kept == expected
        spool += kept
        outer = extents if outer is None else outer.compose(extents)
    assert HOLE not in {source for source, _, _ in outer.extents()}
    assert reference.read(list(outer.extents()), {BASIS: basis, 1: spool}) == version
    assert len(spool) <= sum(length for source, _, length in outer.extents() if source == 1)


def test_what_nobody_wants_is_a_hole():
    older, _ = parsed(encode([Copy(10, 5), Literal(b"x"), Copy(2, 3), Copy(4, 3)]))
    delta = encode([Literal(b"abcdefgh"), Literal(b"ijklmnop"), Copy(0, 4)])
    newer, kept = parsed(delta, 7, wanted=older, spool_offset=1000)
    assert kept == b"cdefg" + b"klmno"
    literals = [(HOLE, 0, 2), (7, 1000, 5), (HOLE, 0, 3), (7, 1005, 5), (HOLE, 0, 1)]
    assert list(newer.extents()) == [*literals, (BASIS, 0, 4)]
    assert newer.resolve(9, 3) == [(HOLE, 0, 1), (7, 1005, 2)]
    composed = older.compose(newer)
    assert list(composed.extents()) == [(7, 1005, 5), (1, 0, 1), (7, 1000, 3), (7, 1002, 3)]


# --- parsing -----------------------------------------------------------------------------------------------------


def patch_outcome(delta: bytes, basis: bytes) -> object:
    return outcome(apply, basis, delta, None)


def map_outcome(delta: bytes, basis: bytes, chunks: list[bytes] | None = None) -> object:
    def read() -> bytes:
        parser = rsync.DeltaParser(1)
        spool = b"".join(map(parser.feed, [delta] if chunks is None else chunks))
        extents = parser.finish()
        whole_basis, _ = parsed(encode([Copy(0, len(basis))] if basis else []))
        assert list(extents.compose(whole_basis).extents()) == list(extents.extents())
        with file_of(basis) as fd:
            return read_through(extents, fd, {1: spool}, 0, extents.size_bytes)

    return outcome(read)


@given(st.data())
def test_damaged_deltas_are_refused_as_a_patch_job_refuses_them(data):
    basis = data.draw(st.binary(max_size=60))
    delta = data.draw(mutated(data.draw(deltas_for(len(basis)))))
    expected = patch_outcome(delta, basis)
    chunked = data.draw(chunkings(delta))
    if any_copy_leaves(delta, len(basis)):  # a job stops there, a parser goes on, and may find worse
        assert expected is rsync.InputEndedError
        assert isinstance(map_outcome(delta, basis, chunked), type)
    else:
        assert map_outcome(delta, basis) == expected
        assert map_outcome(delta, basis, chunked) == expected


def any_copy_leaves(delta: bytes, size: int) -> bool:
    return any(isinstance(command, Copy) and sum(command) > size for command in until_damage(delta))


def until_damage(delta: bytes) -> Iterator[Copy | Literal]:
    with contextlib.suppress(DeltaError):
        yield from parse(delta)


@given(st.data())
def test_any_bytes_are_refused_as_a_patch_job_refuses_them(data):
    delta = MAGIC + data.draw(
        st.lists(
            st.one_of(
                st.sampled_from([0, 1, 2, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x4F, 0x54, 0x55, 0x80, 0xFF]),
                st.integers(0, 255),
            ),
            max_size=24,
        ).map(bytes)
    )
    expected = patch_outcome(delta, bytes(100))
    if not any_copy_leaves(delta, 100):
        assert map_outcome(delta, bytes(100), data.draw(chunkings(delta))) == expected
    else:
        assert expected is rsync.InputEndedError


ENDED, CORRUPT, MAGICAL = rsync.InputEndedError, rsync.CorruptError, rsync.BadMagicError


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (b"", ENDED),
        (MAGIC[:3], ENDED),
        (MAGIC, ENDED),
        (b"rs\x01\x36\0", MAGICAL),
        (MAGIC + b"\0", b""),
        (MAGIC + b"\0" + MAGIC + b"\x55", b""),
        (MAGIC + b"\x55", CORRUPT),
        (MAGIC + b"\xff", CORRUPT),
        (MAGIC + b"\x41\0", CORRUPT),
        (MAGIC + b"\x44" + bytes(8), CORRUPT),
        (MAGIC + b"\x45\0\0", CORRUPT),
        (MAGIC + b"\x54" + bytes(16), CORRUPT),
        (MAGIC + b"\x44" + b"\x80" + bytes(7), CORRUPT),
        (MAGIC + b"\x51" + b"\x80" + bytes(7) + b"\x01", CORRUPT),
        (MAGIC + b"\x48" + b"\0" + b"\xff" * 8, CORRUPT),
        (MAGIC + b"\x44" + b"\x7f" + b"\xff" * 7 + b"abc", ENDED),
        (MAGIC + b"\x54" + (2**62).to_bytes(8, "big") + (2**62).to_bytes(8, "big") + b"\0", ENDED),
        (MAGIC + b"\x48" + b"\0" + (2**63 - 1).to_bytes(8, "big") + b"\0", ENDED),
        (MAGIC + b"\x54" + (3).to_bytes(8, "big") + (2).to_bytes(8, "big") + b"\0", b"de"),
        (MAGIC + b"\x44" + (3).to_bytes(8, "big") + b"xyz\0trailing", b"xyz"),
        (MAGIC + b"\x02ab\x02cd\x45\x01\x02\0", b"abcdbc"),
    ],
)
def test_edges_of_the_format(delta, expected):
    basis = b"abcdefgh"
    assert patch_outcome(delta, basis) == expected
    assert map_outcome(delta, basis) == expected
    assert map_outcome(delta, basis, [delta[i : i + 1] for i in range(len(delta))]) == expected


def test_an_error_comes_again():
    parser = rsync.DeltaParser(1)
    with pytest.raises(rsync.CorruptError):
        parser.feed(MAGIC + b"\x55")
    with pytest.raises(rsync.CorruptError):
        parser.feed(b"\0")
    with pytest.raises(rsync.CorruptError):
        parser.finish()


def test_a_parser_is_finished_once():
    parser = rsync.DeltaParser(1)
    parser.feed(encode([Literal(b"x")]))
    assert len(parser.finish()) == 1
    for call in (parser.finish, lambda: parser.feed(b"x")):
        with pytest.raises(rsync.ParameterError):
            call()


def test_a_real_delta_of_some_megabytes():
    generator = random.Random(3)
    old = generator.randbytes(3 << 20)
    new = old[:700_000] + generator.randbytes(400_000) + old[600_000:2_000_000] + b"x" + old[100_000:300_000]
    delta = b"".join(rsync.delta(rsync.Signature.of(old), new))
    extents, spool = parsed(delta)
    assert extents.size_bytes == len(new)
    with file_of(old) as fd:
        assert read_through(extents, fd, {1: spool}, 0, len(new)) == new
        for _ in range(200):
            offset, size = generator.randrange(len(new)), generator.randrange(100_000)
            assert read_through(extents, fd, {1: spool}, offset, size) == new[offset : offset + size]


# --- commands ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_commands_without_literals_make_the_same_map(data):
    delta = data.draw(deltas_for(50))
    stripper = rsync.CommandFilter()
    commands = b"".join(map(stripper.feed, data.draw(chunkings(delta + data.draw(st.binary(max_size=3))))))
    stripper.finish()
    extents = rsync.ExtentMap.of_commands(commands, 5)
    full, spool = parsed(delta, 5)
    basis = bytes(range(50))
    assert extents.size_bytes == full.size_bytes
    assert reference.read(list(extents.extents()), {BASIS: basis, 5: delta}) == apply(basis, delta)
    assert [e for e in extents.extents() if e[0] == BASIS] == [e for e in full.extents() if e[0] == BASIS]
    assert len(commands) == len(delta) - len(spool)


@given(st.data())
def test_literals_may_be_skipped(data):
    delta = data.draw(deltas_for(50))
    stripper = rsync.CommandFilter()
    commands, at = b"", 0
    while at < len(delta):
        if stripper.literal_left:
            skipped = data.draw(st.integers(1, stripper.literal_left))
            stripper.skip(skipped)
            at += skipped
        else:
            commands += stripper.feed(delta[at : at + 1])
            at += 1
    stripper.finish()
    whole = rsync.CommandFilter()
    assert commands == whole.feed(delta)
    for size in (-1, 1):
        with pytest.raises(rsync.ParameterError):
            stripper.skip(size)


@given(st.data())
def test_the_filter_and_the_parser_refuse_the_same(data):
    delta = data.draw(mutated(data.draw(deltas_for(50))))

    def filtered() -> int:
        stripper = rsync.CommandFilter()
        commands = stripper.feed(delta)
        stripper.finish()
        return rsync.ExtentMap.of_commands(commands, 1).size_bytes

    assert outcome(filtered) == outcome(lambda: parsed(delta)[0].size_bytes)


@pytest.mark.parametrize("commands", [b"", MAGIC, MAGIC + b"\x05", MAGIC + b"\x45\0", b"x" * 9, MAGIC + b"\x60\0"])
def test_damaged_commands_are_refused(commands):
    with pytest.raises(rsync.RsyncError):
        rsync.ExtentMap.of_commands(commands, 1)


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_bomb_of_extents_is_refused():
    """A thousand extents, then a thousand copies of all of that: a few kilobytes of delta, a million extents."""
    newer, _ = parsed(encode([Copy(i * 2, 1) for i in range(1000)]), 1)
    older, _ = parsed(encode([Copy(0, 1000)] * 1000), 2)
    assert len(older.compose(newer)) == 1_000_000
    with pytest.raises(rsync.TooManyExtentsError):
        older.compose(newer, max_extents=999_999)
    with pytest.raises(rsync.TooManyExtentsError):
        rsync.ExtentMap.of_commands(encode([Copy(i * 2, 1) for i in range(1000)]), 1, max_extents=999)
    with pytest.raises(rsync.TooManyExtentsError):
        parsed(encode([Copy(i * 2, 1) for i in range(1000)]), max_extents=999)
    assert len(parsed(encode([Copy(i * 2, 1) for i in range(1000)]), max_extents=1000)[0]) == 1000


def test_a_chain_of_bombs_ends_at_the_cap():
    """Each delta has the version before ten times over: a hundred bytes for each power of ten."""
    composed, _ = parsed(encode([Copy(1, 1), Copy(0, 1)]))
    for _ in range(4):
        older, _ = parsed(encode([Copy(0, composed.size_bytes)] * 10))
        composed = older.compose(composed, max_extents=100_000)
    assert len(composed) == 10_001  # the end of one copy and the beginning of the next lie side by side
    older, _ = parsed(encode([Copy(0, composed.size_bytes)] * 10))
    with pytest.raises(rsync.TooManyExtentsError):
        older.compose(composed, max_extents=100_000)


def test_sizes_are_capped():
    big = encode([Copy(0, 2**47)])
    assert parsed(big)[0].size_bytes == 2**47
    for commands in ([Copy(0, 2**47)] * 2, [Copy(0, 2**48)], [Copy(2**48 - 1, 1)]):
        with pytest.raises(rsync.RsyncError):
            parsed(encode(commands))
    at_most, _ = parsed(encode([Copy(0, LARGEST)]))
    assert at_most.size_bytes == LARGEST
    assert at_most.resolve(LARGEST - 1, 100) == [(BASIS, LARGEST - 1, 1)]
    with pytest.raises(rsync.CorruptError):
        rsync.ExtentMap.of_commands(MAGIC + b"\x44" + (2**48).to_bytes(8, "big") + b"\0", 1)
    with pytest.raises(rsync.CorruptError):
        parsed(encode([Literal(b"ab")]), spool_offset=LARGEST - 1)


def test_a_literal_behind_the_last_offset_is_not_one_of_another_source():
    most = (2**48 - 1 - 13).to_bytes(8, "big")  # it ends at the last offset, and the next command begins there
    assert rsync.ExtentMap.of_commands(MAGIC + b"\x44" + most + b"\0", 1).size_bytes == 2**48 - 14
    for literal in (b"\x01", b"\x0d", b"\x41\x01"):
        with pytest.raises(rsync.CorruptError):
            rsync.ExtentMap.of_commands(MAGIC + b"\x44" + most + literal + b"\0", 1)


def test_the_end_of_a_source_does_not_continue_in_the_next():
    parser = rsync.DeltaParser(1, spool_offset=LARGEST - 2)
    parser.feed(encode([Literal(b"ab")]))
    older = parser.finish()
    assert list(older.extents()) == [(1, LARGEST - 2, 2)]


@pytest.mark.parametrize("arguments", [{"source": -1}, {"source": HOLE}, {"source": 1, "spool_offset": -1}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(rsync.ParameterError):
        rsync.DeltaParser(**arguments)


def test_ranges_out_of_the_map():
    extents, _ = parsed(encode([Copy(0, 10)]))
    assert extents.resolve(10, 5) == []
    assert extents.resolve(2**70, 2**70) == []
    assert extents.resolve(8, 2**70) == [(BASIS, 8, 2)]
    for call in (lambda: extents.resolve(-1, 1), lambda: extents.resolve(0, -1)):
        with pytest.raises(rsync.ParameterError):
            call()
    empty, _ = parsed(encode([]))
    assert (len(empty), empty.size_bytes, empty.resolve(0, 10), list(empty.extents())) == (0, 0, [], [])
    assert empty
    assert list(empty.compose(extents).extents()) == list(empty.compose(empty).extents()) == []


# --- memory ------------------------------------------------------------------------------------------------------


def test_more_pieces_than_one_call_notes():
    commands = [command for i in range(100) for command in (Literal(b"ab"), Copy(i * 2, 1))]
    extents, _ = parsed(encode(commands))
    assert extents.resolve(0, 300) == list(extents.extents())
    assert len(extents.resolve(0, 300)) == 200


def test_garbage_is_freed():
    """What C allocated goes with the objects: a hundred times 16 MiB would show."""

    def make() -> None:
        older = rsync.ExtentMap.of_commands(encode([Copy(0, 1000)] * 1000), 1)
        newer = rsync.ExtentMap.of_commands(encode([Copy(i * 2, 1) for i in range(1000)]), 2)
        parser = rsync.DeltaParser(1, wanted=older.compose(newer))
        parser.feed(encode([Literal(b"x" * 50_000)])[:100])

    make()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        make()
    gc.collect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
