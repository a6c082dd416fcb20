"""What a file system cannot hold is found out when a repository is begun, leaves no trace, and does not change later.

The file systems are imitated: a tree that folds case and refuses names, as VFAT and NTFS do.
"""

import errno
import os
from pathlib import Path

import pytest

from histfs.errors import StorageError, UsageError
from histfs.store import backup as backup_module
from histfs.store.files import WritableTree
from histfs.store.format.quoting import Quoting
from histfs.store.layout import DATA, read_layout
from histfs.store.naming import DEFAULT_NAMING, Naming, settle_layout
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build


class FoldingTree(WritableTree):
    """All names in lower case. What is quoted is the same in any case."""

    folds = True
    refused = b""

    def _at(self, path):
        name = path.rpartition(b"/")[2]
        if set(name) & set(self.refused):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        # The data directory's own names are given by the format.
        return super()._at(path.lower() if self.folds else path)


class DosTree(FoldingTree):
    """As VFAT on Linux, with names in UTF-8; blanks and dots at the end of a name go."""

    refused = bytes(range(1, 32)) + b'"*:<>?\\|\x7f'

    def _at(self, path):
        try:
            path.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path) from None
        if path.rpartition(b"/")[2].partition(b".")[0] in (b"con", b"aux"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return super()._at(path.rstrip(b" .") if not path.endswith(b"/..") else path)


class PlainUnicodeTree(FoldingTree):
    """Keeps case, and one way of writing a letter."""

    folds = False

    def _at(self, path):
        return super()._at(path.replace(b"e\xcc\x81", b"\xc3\xa9"))


RESERVED = rb'\x00-\x1f"*/:<>?\\|\x7f'


def entered(kind: type[WritableTree], path: Path) -> WritableTree:
    path.mkdir(exist_ok=True)
    (path / os.fsdecode(DATA)).mkdir(exist_ok=True)
    return kind.open(path)


@pytest.mark.parametrize(
    ("kind", "chars", "words"),
    [
        (WritableTree, b"", b""),
        (FoldingTree, b"A-Z;", b""),
        (PlainUnicodeTree, rb"\x80-\xff;", b""),
        (DosTree, rb"A-Z\x80-\xff" + RESERVED + b";", b"escape_trailing_spaces\nescape_dos_devices"),
    ],
)
def test_what_is_needed_is_found_out_without_a_trace(tmp_path, kind, chars, words):
    with entered(kind, tmp_path / "repository") as tree:
        layout = settle_layout(tree, DEFAULT_NAMING)
        assert sorted(tree.names(DATA)) == [b"chars_to_quote", b"special_escapes"]
        assert tree.read_small_file(DATA + b"/chars_to_quote") == chars
        assert tree.read_small_file(DATA + b"/special_escapes") == words
        assert layout == read_layout(tree)
        assert layout.quoting == Quoting.parse(chars, words)
        assert layout.times_without_colons == (kind is DosTree)


def test_a_full_disk_is_not_taken_for_a_file_system_without_names(tmp_path):
    class FullTree(WritableTree):
        def create_file(self, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with entered(FullTree, tmp_path / "repository") as tree:
        with pytest.raises(StorageError, match="No space left"):
            settle_layout(tree, DEFAULT_NAMING)
        assert tree.names(DATA) == []


def test_names_that_differ_in_case_only_are_kept_apart(tmp_path, monkeypatch):
    sessions = Sessions(tmp_path)
    build(
        sessions.source,
        Dir({"Readme": File(b"1"), "README": File(b"22"), "D": Dir({"x": File(b"3")}), "d": File(b"4")}),
    )
    monkeypatch.setattr(backup_module, "WritableTree", FoldingTree)
    sessions.backup()
    assert sorted(os.listdir(sessions.repository)) == [
        ";068",
        ";082;069;065;068;077;069",
        ";082eadme",
        "d",
        "rdiff-backup-data",
    ]
    (sessions.source / "README").write_bytes(b"333")
    (sessions.source / "D/x").unlink()
    sessions.backup()
    sessions.assert_all_readable()


def test_a_repository_whose_file_system_lost_the_case_is_refused(tmp_path, monkeypatch):
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"a": File(b"1")}))
    sessions.backup()
    monkeypatch.setattr(backup_module, "WritableTree", FoldingTree)
    monkeypatch.setattr(FoldingTree, "_at", _folding_the_data_directory)
    with pytest.raises(UsageError, match="upper and lower case for the same"):
        sessions.backup()
    sessions.assert_all_readable()


def _folding_the_data_directory(tree, path):
    return WritableTree._at(tree, DATA if path == DATA.upper() else path)


@pytest.mark.parametrize("chars", [b"A-Z", b"A-Z;", b"B-ZA"])
def test_the_same_set_may_be_asked_for_again(tmp_path, chars):
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"UPPER": File(b"1")}))
    sessions.backup(naming=Naming(b"A-Z"))
    (sessions.source / "UPPER").write_bytes(b"22")
    sessions.backup(naming=Naming(chars))
    sessions.backup()
    assert (sessions.data / "chars_to_quote").read_bytes() == b"A-Z"
    sessions.assert_all_readable()


@pytest.mark.parametrize(("first", "later"), [(b"A-Z", b"a"), (b"A-Z", b""), (None, b"A-Z"), (b"", b":")])
def test_another_set_is_refused(tmp_path, first, later):
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"UPPER": File(b"1")}))
    sessions.backup(naming=Naming(first))
    with pytest.raises(UsageError, match="cannot change"):
        sessions.backup(naming=Naming(later))
    sessions.assert_all_readable()


@pytest.mark.parametrize("chars", [b"Z-A", b"\\", b"a]", b"\\q", b"x" * 1001, b"a-z", b"_", b"^a"])
def test_what_is_no_set_is_refused_before_anything_is_written(tmp_path, chars):
    with entered(WritableTree, tmp_path / "repository") as tree:
        with pytest.raises(UsageError, match="quote"):
            settle_layout(tree, Naming(chars))
        assert tree.names(DATA) == []


def test_both_spellings_of_times_in_one_repository(tmp_path):
    sessions = Sessions(tmp_path)
    sessions.source.mkdir()
    for number, naming in enumerate([DEFAULT_NAMING, Naming(None, True), Naming(None, True), DEFAULT_NAMING]):
        build(sessions.source / str(number), Dir({"a": File(b"x" * number)}))
        sessions.backup(naming=naming)
    names = os.listdir(sessions.data)
    assert sum(name.startswith("session_statistics") and ":" not in name for name in names) == 2
    assert sum(name.startswith("increments.") and ":" not in name for name in names) == 2
    sessions.assert_all_readable()
