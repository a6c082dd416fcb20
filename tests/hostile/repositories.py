"""A small healthy repository, written byte by byte without histfs, and tools to spoil it.

Two sessions, FIRST and SECOND; OLD and NEW are what they recorded. Every way in which a content can be kept occurs:
the mirror, a delta against the mirror, a whole old version of a changed file, one of a deleted file, a link group.
"""

import gzip
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.trees import MTIME, Dir, File, Link, Node, Symlink, build, walk

FIRST, SECOND = 1_700_000_000, 1_700_086_400
_NAMES = {FIRST: "2023-11-14T22:13:20Z", SECOND: "2023-11-15T22:13:20Z"}
DATA = "rdiff-backup-data"
INCREMENTS = f"{DATA}/increments"

_SAME: dict[str | bytes, Node] = {
    "keep": File(b"kept as it is\n"),
    "d": Dir({"inner": File(b"inside\n"), "deeper": Dir({"x": File(b"x" * 5_000)})}),
    "link": Symlink("keep"),
    "one": File(b"linked\n"),
    "two": Link("one"),
}
NEW = Dir(
    {**_SAME, "changed": File(b"the new text\n" * 300, mtime=MTIME + 5), "replaced": File(b"new", mtime=MTIME + 5)}
)
OLD = Dir(
    {
        **_SAME,
        "changed": File(b"the old text\n" + b"the new text\n" * 299),
        "replaced": File(b"old"),
        "deleted": File(b"once there was a file\n"),
    }
)
STATES = {FIRST: OLD, SECOND: NEW}


def make(path: Path) -> None:
    """Write the repository to `path`, which must not exist."""
    build(path, NEW)
    increments = path / INCREMENTS
    increments.mkdir(parents=True)
    data = path / DATA
    text = _content(OLD, b"changed")
    new = _content(NEW, b"changed")
    assert text == new.replace(b"new", b"old", 1)
    write_delta(path, b"changed", literal(text[:13]) + copy(13, len(new) - 13) + END)
    write_snapshot(path, b"replaced", _content(OLD, b"replaced"))
    write_snapshot(path, b"deleted", _content(OLD, b"deleted"))
    (data / f"increments.{_NAMES[FIRST]}.dir").touch()
    (data / f"current_mirror.{_NAMES[SECOND]}.data").write_bytes(b"PID 999999\n")
    for name in ("chars_to_quote", "special_escapes"):
        (data / name).touch()
    for session_time in STATES:
        (data / f"error_log.{_NAMES[session_time]}.data").touch()
    write_records(path, SECOND, b"".join(records(NEW)))
    write_records(path, FIRST, b"".join(_reverse_diff()))
    os.utime(path, (MTIME, MTIME))


def _content(tree: Dir, path: bytes) -> bytes:
    node = dict(walk(tree))[path]
    assert isinstance(node, File)
    return node.content


# Metadata


def records(tree: Dir) -> list[bytes]:
    """The metadata records of a literal tree, in their order."""
    nodes = sorted(walk(tree), key=lambda item: item[0].replace(b"/", b"\0"))
    first = {node.path: True for _, node in nodes if isinstance(node, Link)}
    assert first.keys() <= {"one"}
    return [_record(path, node) for path, node in nodes]


def _record(path: bytes, node: Node) -> bytes:
    if isinstance(node, Dir):
        return record(path, Type="dir", ModTime=node.mtime, Permissions=node.mode)
    if isinstance(node, Symlink):
        return record(path, Type="sym", SymData=node.target, Permissions=0o777)
    if isinstance(node, Link):
        return record(path, Type="reg", Size=7, **_GROUP, ModTime=MTIME, Permissions=0o644)
    assert isinstance(node, File)
    group = _GROUP if path == b"one" else {}
    digest = hashlib.sha1(node.content).hexdigest()
    return record(
        path, Type="reg", Size=len(node.content), **group, SHA1Digest=digest, ModTime=node.mtime, Permissions=node.mode
    )


_GROUP = {"NumHardLinks": 2, "Inode": 4711, "DeviceLoc": 99}


def record(path: bytes, **fields: object) -> bytes:
    """A record of our own user; fields in the order in which they are given, `Permissions` last."""
    permissions = fields.pop("Permissions", None)
    fields = fields | {"Uid": os.geteuid(), "Uname": ":", "Gid": os.getegid(), "Gname": ":"} | fields
    if permissions is not None:
        fields["Permissions"] = permissions
    lines = [b"File " + (path or b".")]
    for name, value in fields.items():
        lines.append(b"  %s %s" % (name.encode(), value if isinstance(value, bytes) else str(value).encode()))
    return b"\n".join(lines) + b"\n"


def _reverse_diff() -> list[bytes]:
    new = set(records(NEW))
    return [text for text in records(OLD) if text not in new]


def metadata_path(path: Path, session_time: int) -> Path:
    kind = "snapshot" if session_time == SECOND else "diff"
    return path / DATA / f"mirror_metadata.{_NAMES[session_time]}.{kind}.gz"


def write_records(path: Path, session_time: int, text: bytes) -> None:
    metadata_path(path, session_time).write_bytes(gzip.compress(text))


def edit_records(path: Path, edit: Callable[[bytes], bytes], session_time: int = SECOND) -> None:
    """Replace the metadata of a session by what `edit` makes of it."""
    old = gzip.decompress(metadata_path(path, session_time).read_bytes())
    new = edit(old)
    assert new != old
    write_records(path, session_time, new)


def insert_record(path: Path, text: bytes, *, before: bytes = b"") -> None:
    """Put a record into the newest list: at its end, or before the one of the path `before`."""

    def inserted(old: bytes) -> bytes:
        place = old.index(b"File %s\n" % before) if before else len(old)
        return old[:place] + text + old[place:]

    edit_records(path, inserted)


def add_record(path: Path, name: bytes, **fields: object) -> None:
    """Put a record into the newest list where it belongs. `name` is neither a newline's nor a backslash's."""
    key = name.replace(b"/", b"\0")

    def added(old: bytes) -> bytes:
        texts = [b"File " + text for text in old.removeprefix(b"File ").removesuffix(b"\n").split(b"\nFile ")]
        names = [text.split(b"\n")[0].removeprefix(b"File ") for text in texts]
        place = sum(name == b"." or name.replace(b"/", b"\0") < key for name in names)
        texts.insert(place, record(name, **fields).removesuffix(b"\n"))
        return b"\n".join(texts) + b"\n"

    edit_records(path, added)


# Increments


def increment_path(path: Path, name: bytes, suffix: str) -> Path:
    """Where the increment of the first session for the file `name` lies."""
    return path / INCREMENTS / f"{os.fsdecode(name)}.{_NAMES[FIRST]}.{suffix}"


def write_delta(path: Path, name: bytes, commands: bytes) -> None:
    increment_path(path, name, "diff.gz").write_bytes(gzip.compress(DELTA_MAGIC + commands))


def write_snapshot(path: Path, name: bytes, content: bytes) -> None:
    increment_path(path, name, "snapshot.gz").write_bytes(gzip.compress(content))


# A delta (docs/format.md 6.6)

DELTA_MAGIC = b"rs\x026"
END = b"\0"


def literal(content: bytes) -> bytes:
    return b"\x44" + len(content).to_bytes(8, "big") + content


def copy(offset: int, length: int) -> bytes:
    return b"\x54" + offset.to_bytes(8, "big") + length.to_bytes(8, "big")


def put(path: Path, make_node: Callable[[Path], object]) -> None:
    """Replace what is at `path` by what `make_node` makes there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
    make_node(path)
