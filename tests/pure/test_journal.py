"""The journal of a first session: what was written is read again, and no bytes whatever are more than an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.format.journal import (
    BEGIN,
    FILES,
    HEADER_BYTES,
    REVOKED,
    Copied,
    format_block,
    format_copied,
    format_revoked,
    parse_block,
    parse_copied,
    parse_revoked,
)
from histfs.store.format.ledger import SEEN_BYTES, Seen

U32, U64, I64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
SEEN = st.builds(Seen, U64, U64, I64, I64, I64, *[U32] * 8)
SHA1 = st.binary(min_size=20, max_size=20).map(lambda digest: digest.hex().encode())
COPIED = st.builds(Copied, st.binary(max_size=300), SHA1, SEEN)


@given(st.lists(COPIED, max_size=5), st.sampled_from([BEGIN, FILES, REVOKED]))
def test_what_was_written_is_read(files: list[Copied], kind: bytes) -> None:
    payload = b"".join(map(format_copied, files))
    data = format_block(kind, payload)
    block = parse_block(data[:HEADER_BYTES])
    assert block is not None
    assert (block.kind, block.size_bytes) == (kind, len(payload))
    assert block.is_of(data[HEADER_BYTES:])
    assert list(parse_copied(payload)) == files


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 4))
def test_what_is_revoked_is_read(paths: list[bytes], missing: int) -> None:
    payload = b"".join(map(format_revoked, paths))
    assert list(parse_revoked(payload)) == paths
    if paths:
        with pytest.raises(FormatError):
            list(parse_revoked(payload[:-missing] if len(paths[-1]) >= missing else payload + b"\0"))


@given(st.binary(max_size=400))
def test_any_bytes_are_files_or_an_error(data: bytes) -> None:
    try:
        files = list(parse_copied(data))
    except FormatError:
        return
    assert b"".join(map(format_copied, files)) == data


@given(st.lists(COPIED, min_size=1, max_size=3), st.data())
def test_a_block_that_is_damaged_is_none(files: list[Copied], data: st.DataObject) -> None:
    block = bytearray(format_block(FILES, b"".join(map(format_copied, files))))
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    header = parse_block(bytes(block[:HEADER_BYTES]))
    assert header is None or not header.is_of(bytes(block[HEADER_BYTES:]))


@pytest.mark.parametrize("cut", [1, SEEN_BYTES, SEEN_BYTES + 23, SEEN_BYTES + 26])
def test_what_is_cut_off_is_an_error(cut: int) -> None:
    whole = format_copied(Copied(b"path", b"ab" * 20, Seen(1, 2, 3, 4, 5, 6, 7, 8, 9)))
    with pytest.raises(FormatError, match="cut off"):
        list(parse_copied(whole[:cut]))


@given(st.binary(max_size=HEADER_BYTES + 4))
def test_any_header_is_one_or_none(data: bytes) -> None:
    block = parse_block(data)
    assert block is None or block.kind in (BEGIN, FILES)
