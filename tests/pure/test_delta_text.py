"""Commands of deltas: what librsync makes of them."""

from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs.store.format.delta import DELTA_END, DELTA_MAGIC, format_copy, format_literal

BASIS = bytes(range(256)) * 300
SIZES = st.one_of(st.sampled_from([0, 1, 63, 64, 65, 255, 256, 65535, 65536]), st.integers(0, len(BASIS)))


@given(st.lists(st.one_of(st.tuples(SIZES, SIZES), SIZES.map(lambda size: BASIS[:size])), max_size=6))
def test_commands_mean_what_they_say(pieces: list[tuple[int, int] | bytes]) -> None:
    commands, expected = [DELTA_MAGIC], []
    for piece in pieces:
        if isinstance(piece, bytes):
            commands.append(format_literal(piece))
            expected.append(piece)
        else:
            start, size = piece[0], min(piece[1], len(BASIS) - piece[0])
            commands.append(format_copy(start, size))
            expected.append(BASIS[start : start + size])
    delta = b"".join([*commands, DELTA_END])
    assert b"".join(rsync.patch(BASIS, delta)) == b"".join(expected)


def test_numbers_take_the_fewest_bytes() -> None:
    assert [len(format_copy(0, size)) for size in (0, 1, 255, 256, 65535, 65536, 1 << 32)] == [0, 3, 3, 4, 4, 6, 10]
    assert [len(format_literal(bytes(size))) - size for size in (0, 1, 255, 256, 65536)] == [0, 2, 2, 3, 5]
