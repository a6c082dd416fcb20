"""Records that no honest writer wrote: hostile paths, impossible values, wrong order. The others stay usable."""

import os
from pathlib import Path

import pytest

from histfs.store.catalog import open_catalog
from histfs.store.repository import Repository
from tests.hostile import repositories, witness
from tests.hostile.repositories import FIRST, SECOND, edit_records, insert_record, record
from tests.store.catalogs import assert_same_trees

EVIL = b"evil content"


def evil(path: bytes, **fields: object) -> bytes:
    fields = {"Type": "reg", "Size": 0, "ModTime": 0, "Permissions": 0o644} | fields
    if fields["Type"] == "dir":
        del fields["Size"]
    return record(path, **fields)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    repositories.make(path)
    return path


@pytest.mark.parametrize(
    "path",
    [
        b"../canary",
        b"..",
        b"d/../../canary",
        b"d/..",
        b"/etc/passwd",
        b"/",
        b"//",
        b"keep/",
        b"d//inner2",
        b"./keep2",
        b"d/./inner2",
        b"",
        b" ",
        b"d/\0x",
        b"\0",
        b"rdiff-backup-data/chars_to_quote",
    ],
)
def test_a_path_that_leads_out_or_to_nowhere_is_left_out(repository: Path, tmp_path: Path, path: bytes) -> None:
    text = evil(path).replace(b"File .\n", b"File \n") if path == b"" else evil(path)
    insert_record(repository, text)
    for session_time in (FIRST, SECOND):
        for reader, account in witness.accounts(repository, session_time, tmp_path):
            assert account.complaints, reader
            if account.found is not None:
                tree = repositories.STATES[session_time]
                assert witness.difference_from(tree, account.found) == [], reader


@pytest.mark.parametrize("parent", [b"link", b"keep", b"nothing", b"link/keep", b"zzz"])
def test_what_does_not_lie_in_a_directory_is_left_out(repository: Path, tmp_path: Path, parent: bytes) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    edit_records(repository, lambda text: text.replace(b"SymData keep", b"SymData " + os.fsencode(victim)))
    before = {b"keep": b"link", b"link": b"one", b"nothing": b"one", b"link/keep": b"one", b"zzz": b""}[parent]
    insert_record(repository, evil(parent + b"/evil"), before=before)
    witness.check(repository, tmp_path, {time: {parent + b"/evil", b"link"} for time in (FIRST, SECOND)}, silent=True)
    assert os.listdir(victim) == []


def test_a_directory_that_becomes_a_link_takes_its_entries_along(repository: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    link = record(b"d", Type="sym", SymData=os.fsencode(victim), Permissions=0o777)
    directory = next(text for text in repositories.records(repositories.NEW) if text.startswith(b"File d\n"))
    edit_records(repository, lambda text: text.replace(directory, link))
    witness.check(repository, tmp_path, {time: {b"d"} for time in (FIRST, SECOND)})
    assert os.listdir(victim) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"Size": 10**17},
        {"Size": 2**63},
        {"Size": 2**70},
        {"Size": -1},
        {"Size": "abc"},
        {"Size": "1e3"},
        {"Permissions": "abc"},
        {"Permissions": -1},
        {"Permissions": 2**40},
        {"ModTime": "never"},
        {"ModTime": 10**30},
        {"Uid": "root"},
        {"Type": "other"},
        {"Type": b"\xff"},
        {"SHA1Digest": "xyz"},
        {"SHA1Digest": "0" * 40},
        {"NumHardLinks": "many", "Inode": 1, "DeviceLoc": 1},
        {"NumHardLinks": 2, "Inode": 4711, "DeviceLoc": 99},
        {"AlternateMirrorName": "../../canary"},
        {"AlternateMirrorName": -1},
        {"AlternateMirrorName": 10**30},
        {"AlternateIncrementName": "../increments/deleted"},
    ],
    ids=str,
)
def test_impossible_values_cost_one_file(repository: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    # There is no such file in the mirror, so that nothing can be right about it but its attributes.
    insert_record(repository, evil(b"evil", **fields), before=b"keep")
    witness.check(repository, tmp_path, {time: {b"evil"} for time in (FIRST, SECOND)})


@pytest.mark.parametrize(
    "fields",
    [
        {"ModTime": 10**14},
        {"ModTime": -(10**14)},
        {"ModTime": 2**62},
        {"Uid": 2**32},
        {"Uid": -7},
        {"Gid": 2**64},
        {"Inode": 2**80, "DeviceLoc": 2**80, "NumHardLinks": 2**80},
        {"Permissions": 0o7777},
        {"Surprise": "unknown field"},
    ],
    ids=str,
)
def test_strange_values_are_fitted_or_complained_about(
    repository: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    (repository / "evil").touch()
    text = evil(b"evil", **fields)
    insert_record(repository, text, before=b"keep")
    witness.check(repository, tmp_path, {time: {b"evil"} for time in (FIRST, SECOND)}, silent=True)


@pytest.mark.parametrize(
    "text",
    [
        record(b"evil", Type="sym", Permissions=0o777),
        record(b"evil", Type="sym", SymData=b"a\0b", Permissions=0o777),
        record(b"evil", Type="sym", SymData=b"x" * 5_000, Permissions=0o777),
        record(b"evil", Type="dev", DeviceNum="c 1", Permissions=0o600),
        record(b"evil", Type="dev", DeviceNum="x 1 2", Permissions=0o600),
        record(b"evil", Type="dev", Permissions=0o600),
        record(b"evil", Type="fifo", Permissions="?"),
        record(b"evil"),
        b"File evil\n",
        b"File evil\nnot a field\n",
        b"garbage between the records\n",
    ],
    ids=lambda text: repr(text[:60]),
)
def test_incomplete_records_cost_one_file(repository: Path, tmp_path: Path, text: bytes) -> None:
    insert_record(repository, text, before=b"keep")
    lost = {b"evil", b"deleted"}  # garbage is taken for a part of the record before it
    found = [account.found for _, account in witness.accounts(repository, SECOND, tmp_path)]
    for manifest in found:
        if manifest is not None:
            lines = witness.difference_from(repositories.NEW, manifest, ignoring=lost | {b"d/inner"})
            assert lines == []


def test_a_device_number_that_cannot_be(repository: Path, tmp_path: Path) -> None:
    text = record(b"evil", Type="dev", DeviceNum="c 99999999999 99999999999", Permissions=0o600)
    insert_record(repository, text, before=b"keep")
    witness.check(repository, tmp_path, {time: {b"evil"} for time in (FIRST, SECOND)}, silent=True)


def test_names_that_no_file_system_takes(repository: Path, tmp_path: Path) -> None:
    insert_record(repository, evil(b"e" * 256) + evil(b"e" * 60_000), before=b"keep")
    lost = {b"e" * 256, b"e" * 60_000}
    witness.check(repository, tmp_path, dict.fromkeys((FIRST, SECOND), lost))


def test_paths_longer_than_a_system_call_takes(repository: Path, tmp_path: Path) -> None:
    paths = [b"/".join([b"e" * 8] * depth) for depth in range(1, 600)]
    insert_record(repository, b"".join(evil(path, Type="dir", Permissions=0o755) for path in paths), before=b"keep")
    for session_time in (FIRST, SECOND):
        assert witness.verified(repository, session_time).complaints == []
        assert witness.restored(repository, session_time, tmp_path, read=False).complaints == []


def test_a_path_twice_is_there_once(repository: Path, tmp_path: Path) -> None:
    again = record(b"keep", Type="sym", SymData=b"/etc/passwd", Permissions=0o777)
    insert_record(repository, again, before=b"link")
    for session_time in (FIRST, SECOND):
        for reader, account in witness.accounts(repository, session_time, tmp_path):
            assert account.complaints, reader
            if account.found is not None:
                tree = repositories.STATES[session_time]
                assert witness.difference_from(tree, account.found, ignoring={b"keep"}) == [], reader


def test_records_in_no_order(repository: Path, tmp_path: Path) -> None:
    """Sorted again or complained about, but never a mixture that looks whole."""
    shuffled = b"".join([*repositories.records(repositories.NEW)[:1], *repositories.records(repositories.NEW)[:0:-1]])
    repositories.write_records(repository, SECOND, shuffled)
    witness.check_honest(repository, tmp_path)


@pytest.mark.parametrize("root", [b"", record(b"", Type="sym", SymData=b"/etc", Permissions=0o777)])
def test_a_tree_without_a_root_directory(repository: Path, tmp_path: Path, root: bytes) -> None:
    repositories.write_records(repository, SECOND, root + b"".join(repositories.records(repositories.NEW)[1:]))
    witness.check(repository, tmp_path, {time: {b""} for time in (FIRST, SECOND)})


@pytest.mark.parametrize("content", [b"six", b"linked!"])
def test_link_groups_that_disagree(repository: Path, tmp_path: Path, content: bytes) -> None:
    """A file that claims to be a link of another one, and is not: it may be lost, the others may not."""
    group = {"NumHardLinks": 2, "Inode": 4711, "DeviceLoc": 99}
    (repository / "six").write_bytes(content)
    insert_record(repository, evil(b"six", Size=len(content), **group), before=b"two")
    witness.check(repository, tmp_path, {time: {b"six"} for time in (FIRST, SECOND)}, silent=True)


def test_names_for_a_terminal(repository: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a file, its name moves no cursor (`accounts` looks at every sentence)."""
    name = b"\x1b[2J\r\x07\xc2\x9b\xe2\x80\xae\xff"
    insert_record(repository, evil(name, Size=5), before=b"changed")
    witness.check(repository, tmp_path, {time: {name} for time in (FIRST, SECOND)})


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        (b"File changed\n  Type reg\n", b"File changed\n  Type what\n", {b"changed"}),
        (b"File changed\n  Type reg\n", b"File \n  Type reg\n", {b""}),
        (b"File changed\n", b"File ../changed\n", {b""}),
        (b"File deleted\n", b"File a\n", {b""}),  # out of order
    ],
)
def test_a_damaged_record_of_a_difference(
    repository: Path, scratch: Path, old: bytes, new: bytes, lost: set[bytes]
) -> None:
    """The file must not be what it was at the next session; and where nobody knows whose it is, all are lost."""
    edit_records(repository, lambda text: text.replace(old, new, 1), FIRST)
    witness.check(repository, scratch, {FIRST: lost})
    with Repository.open(repository) as opened, open_catalog(opened) as catalog:
        assert_same_trees(catalog, opened)
