"""A small source in which a few sessions meet most of what can happen to a path."""

import os
import shutil
import struct
from pathlib import Path

from tests.histories import has_xattrs
from tests.store.sessions import Sessions
from tests.trees import MTIME, Device, Dir, Fifo, File, Link, Socket, Symlink, build

_TEXT = b"".join(b"line %d\n" % number for number in range(400))
_LARGE = b"".join(b"%x" % (number**7) for number in range(3000))  # enough to be looked for where it has been moved
LONG = "L" * 206  # too long for an increment (docs/format.md 3.4)
LONGEST = "M" * 255


def first(source: Path) -> None:
    entries = {
        "changed": File(_TEXT, mtime=MTIME + 1),
        "touched": File(b"touched"),
        "private": File(b"private", mode=0o644),
        "deleted": File(b"deleted"),
        "empty": File(),
        "file-to-directory": File(b"was a file"),
        "file-to-link": File(b"was a file, too"),
        "directory-to-file": Dir({"inner": File(b"inner"), "below": Dir({"deep": File(b"deep")})}),
        "directory-to-fifo": Dir({"inner": Fifo()}),
        "directory-to-hardlink": Dir({"inner": Symlink("x")}),
        "gone": Dir({"a": File(b"a"), "b": Dir({"c": Symlink("nowhere"), "d": File(b"d")})}),
        "kept": Dir({"same": File(b"same")}, mode=0o700),
        "fifo": Fifo(),
        "socket": Socket(),
        "symlink": Symlink("old"),
        "symlink-to-file": Symlink("old"),
        "odd\nname\\": File(b"odd"),
        b"\xff\xfe": File(b"bytes"),
        LONG: File(_TEXT[:500]),
        LONGEST: Dir({"in": File(b"in a long one")}),
        "g1-a": File(b"group one"),  # a member goes
        "g1-b": Link("g1-a"),
        "g1-c": Link("g1-a"),
        "g2-a": File(b"group two"),  # all members change
        "g2-b": Link("g2-a"),
        "g3-a": File(b"group three"),  # is split
        "g3-b": Link("g3-a"),
        "g3-c": Link("g3-a"),
        "g3-d": Link("g3-a"),
        "g4": File(b"group four"),  # gets a link
        "m-photos": Dir({"1.jpg": File(_LARGE[:17000]), "below": Dir({"2": File(_LARGE[:18000])})}),  # all are moved
        "m-texts": Dir({"3.jpg": File(_LARGE[:19000]), "4": File(_LARGE[:20000])}),
        "m-one": File(_LARGE[:21000]),
    }
    if os.geteuid() == 0:
        entries |= {"device": Device("c", 1, 3), "owned": File(b"owned", owner=(1234, 4321), mode=0o4755)}
    build(source, Dir(entries))
    _tag(source, b"first", "touched", "private", "kept", "kept/same", "deleted", "g2-a")


def second(source: Path) -> None:
    _write(source, "changed", _TEXT[:1000] + b"inserted" + _TEXT[1000:], 1)
    _write(source, "empty", b"no more", 1)
    _write(source, LONG, b"long", 1)
    _write(source, "new", b"new", 1)
    (source / "deleted").unlink()


def third(source: Path) -> None:
    _write(source, "deleted", b"is back", 2)
    _write(source, "new", b"newer", 2)
    _write(source, "changed", _TEXT[500:], 2)
    (source / "private").chmod(0o600)


def fourth(source: Path) -> None:
    """Everything at once: the session that is killed."""
    _tag(source, b"fourth", "kept", "kept/same", "changed", "private")
    _write(source, "changed", _TEXT[300:2000] + b"end", 3)
    os.utime(source / "touched", (MTIME + 3, MTIME + 3))
    (source / "private").chmod(0o640)
    (source / "deleted").unlink()
    _write(source, "empty", b"", 3)
    _retype(source / "file-to-directory", Dir({"inner": File(b"inside"), "below": Dir({"deep": Symlink("..")})}))
    _retype(source / "file-to-link", Symlink("target"))
    _retype(source / "directory-to-file", File(b"is a file", mtime=MTIME + 3))
    _retype(source / "directory-to-fifo", Fifo())
    shutil.rmtree(source / "directory-to-hardlink")
    os.link(source / "g4", source / "directory-to-hardlink")
    shutil.rmtree(source / "gone")
    (source / "fifo").unlink()
    _retype(source / "symlink", Symlink("new"))
    _retype(source / "symlink-to-file", File(b"file now", mtime=MTIME + 3))
    _retype(source / "socket", Fifo(mtime=MTIME + 3))
    _write(source, "odd\nname\\", b"odder", 3)
    os.unlink(os.fsencode(source) + b"/\xff\xfe")
    (source / LONG).unlink()
    _write(source, "N" * 210, b"another long one", 3)
    _write(source, f"{LONGEST}/in", b"changed in a long one", 3)
    _write(source, f"{LONGEST}/new", b"new in a long one", 3)
    (source / "g1-a").unlink()
    _write(source, "g2-a", b"group two, changed", 3)
    for name, content in (("g3-c", b"group three"), ("g3-b", b"split off")):
        (source / name).unlink()
        _write(source, name, content, 3)
    (source / "g3-d").unlink()
    os.link(source / "g3-c", source / "g3-d")
    build(source / "brought", Dir({"x": File(b"x", mtime=MTIME + 3), "y": Dir({"z": Link("x")})}))
    _write(source, "kept/more", b"more", 3)
    (source / "m-photos").rename(source / "a-photos")  # comes before its old place, the others after it
    (source / "m-texts").rename(source / "brought/texts")
    (source / "brought/texts/4").rename(source / "n-four")
    (source / "m-one").rename(source / "m-texts")
    if os.geteuid() == 0:
        (source / "device").unlink()
        build_device(source / "device")
        os.chown(source / "owned", 0, 0)


def back_up(sessions: Sessions) -> None:
    """All four, each a session."""
    for step in (first, second, third, fourth):
        step(sessions.source)
        sessions.backup()


def build_device(path: Path) -> None:
    os.mknod(path, 0o020600, os.makedev(1, 5))


def _write(source: Path, name: str, content: bytes, number: int) -> None:
    """Write in place, so that all links change, with a time of its own for each session."""
    path = source / name
    path.write_bytes(content)
    os.utime(path, (MTIME + number, MTIME + number))


def _tag(source: Path, value: bytes, *names: str) -> None:
    """An extended attribute and a list of somebody without a name, where the file system takes them."""
    if has_xattrs(os.fsencode(source)):
        for name in names:
            mode = (source / name).stat().st_mode
            os.setxattr(source / name, "user.tag", value)
            entries = (
                (1, mode >> 6 & 7, -1),
                (2, len(value) % 8, 4711),
                (4, 0, -1),
                (16, mode >> 3 & 7, -1),
                (32, mode & 7, -1),
            )
            packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
            os.setxattr(source / name, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def _retype(path: Path, node: Dir | File | Symlink | Fifo) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    build(path.parent / "made", Dir({path.name: node}))
    os.rename(path.parent / "made" / path.name, path)
    (path.parent / "made").rmdir()
