"""Histories of a source directory: random, but the same for the same seed.

    for state in random_history(source, seed=7, sessions=12):
        back_up(source, at=state.time)          # state.manifest says what must come back

Between two states the directory is changed by ordinary system calls: every kind of change of every type of
file, with names, modes, owners and times that a real tree has once in a million. Rules that keep the
histories fair, because the format cannot see more (docs/format.md 6.2, trap 8): content never changes without
a new modification time in whole seconds, and no two files ever get the same one.

A program that writes sessions may have limits of its own; `Limits` says what a history must not contain.
"""

import gzip
import os
import random
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests import comparison
from tests.comparison import Manifest

FIRST_SESSION = 1_700_000_000  # 2023-11-14T22:13:20Z
_MTIMES_FROM = 1_600_000_000
_MAX_PATHS = 90
_MAX_DEPTH = 12
_RECENT_S = 86_400
_NO_ID = 0xFFFFFFFF

# fmt: off
ODD_NAMES = (
    b"new\nline", b"back\\slash", b"\xff\xfe\x80", b"caf\xc3\xa9", b"-rf", b" ", b"  two  blanks ", b"x;065y", b"~",
    b"a'b\"c", b"\x01\x1b[31m\x7f", b"tab\there\r", b"rdiff-backup.tmp.0", b"d.txt", b"d ", b"con", b"trailing.",
    b"%41", b"UPPER", b"upper", b"@2024-01-01T10:00", b"picture.jpg", b"archive.tar.gz", b".hidden", b"...",
    b"File x\n  Type reg",
)
# fmt: on
LONG_NAMES = (b"\1" * 255, b"N" * 205)  # 205 is the longest that an increment takes (docs/format.md 3.4)
LATE_LONG_NAMES = (b"L" * 255, b"M" * 206, b"\xf0\x9f\x92\xbe" * 51 + b".gz", b"\xff" * 254)
INCREMENT_NAMES = (
    b"q.2023-11-14T22:13:20Z.diff.gz",
    b"q.2023-11-14T22:13:20Z.snapshot",
    b"q.2023-11-14T22:13:20Z.missing",
    b"q.2023-11-14T22:13:20Z.dir",
    b"current_mirror.2023-11-14T22:13:20Z.data",
    b"q",
)
ODD_MODES = (0o000, 0o400, 0o755, 0o4755, 0o2750, 0o1777, 0o600, 0o666, 0o7777, 0o111)
XATTR_NAMES = (b"user.comment", b"user.a", b"user.empty", b"user.x#y")
ROOT_XATTR_NAMES = (b"trusted.overlay.opaque", b"security.capability", b"security.other")
ODD_XATTR_NAMES = (
    b"user.with blank",
    b"user.a=b",
    b"user.back\\slash",
    b"user.\xff",
    b"user.\xc3\xa4",
)  # docs/format.md trap 11
XATTR_VALUES = (b"", b"text", b"\0\xff\n", bytes(1_000))
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ODD_TIMES = (0, 1, -1, -86_400 * 365 * 30, 2**31 - 2, 2**31 + 12_345, 2**32 + 5)


class Limits(NamedTuple):
    """What a history leaves out."""

    root: bool = os.geteuid() == 0  # what only root can do: owners, devices, files that nobody may read
    increment_directories: bool = True  # directories named like increments (docs/format.md trap 20)
    long_names: bool = True
    late_long_names: bool = True  # longer ones that do not sort first in their directory: the oracle cannot judge them
    directory_to_link: bool = True  # a directory that becomes a further link (docs/format.md trap 16)
    symlink_owners: bool = True  # owners of symbolic links that change (docs/format.md trap 8)
    odd_xattr_names: bool = True  # which other programs take for other names (docs/format.md trap 11)


ANYTHING = Limits()
RDIFF_BACKUP_READS = ANYTHING._replace(increment_directories=False, late_long_names=False, odd_xattr_names=False)
RDIFF_BACKUP_WRITES = RDIFF_BACKUP_READS._replace(directory_to_link=False, symlink_owners=False)


class State(NamedTuple):
    """The source as it is now, and the time (seconds since the epoch) of the session that shall record it."""

    time: int
    manifest: Manifest


def random_history(source: Path, seed: int, sessions: int, limits: Limits = RDIFF_BACKUP_READS) -> Iterator[State]:
    """Bring `source`, which must not exist yet, from state to state."""
    source.mkdir()
    random_source = random.Random(f"history {seed}")
    changes = Changes(os.fsencode(source), random_source, limits)
    changes.begin()
    now = FIRST_SESSION
    for number in range(sessions):
        if number:
            changes.mutate(random_source.choice((0, 1, 3, 8, 20)))
        yield State(now, comparison.read(source))
        now += random_source.choice((1, 2, 59, 60, 3_600, 86_400, 86_401, 30 * 86_400))


class Changes:
    """Random changes of the tree at `top`. Paths are bytes below it."""

    def __init__(self, top: bytes, source_of_chance: random.Random, limits: Limits) -> None:
        self._top = top
        self._random = source_of_chance
        self._limits = limits
        self._last_mtime = _MTIMES_FROM
        self._has_xattrs = has_xattrs(top)

    def begin(self) -> None:
        """Fill the empty tree with some of everything."""
        for _ in range(6):
            self._make_directory()
        for make in (self._make_file, self._make_file, self._make_symlink, self._make_special):
            for _ in range(5):
                make()
        for _ in range(3):
            self._hard_link()
        self._stamp_directories()

    def mutate(self, count: int) -> None:
        """Make `count` random changes; a change that finds nothing to work on counts too."""
        directories = self._paths(stat.S_ISDIR)
        kinds = [change for change, weight in self._weights() for _ in range(weight)]
        for _ in range(count):
            self._random.choice(kinds)()
        if not self._limits.directory_to_link:
            self._separate_links(directories)
        self._stamp_directories()

    def _weights(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self._modify, 12),
            (self._make_file, 6),
            (self._make_directory, 3),
            (self._make_symlink, 2),
            (self._make_special, 2),
            (self._remove, 7),
            (self._empty_directory, 1),
            (self._change_type, 5),
            (self._recreate, 2),
            (self._change_mode, 4),
            (self._change_owner, 3),
            (self._hard_link, 4),
            (self._copy_of_link, 2),
            (self._rename, 5),
            (self._touch, 3),
            (self._retarget, 2),
            (self._change_xattrs, 4),
            (self._change_acl, 4),
        ]

    # What is there

    def _full(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def _paths(self, wanted: Callable[[int], bool]) -> list[bytes]:
        """The paths whose mode passes `wanted`, the root first if it does."""
        return [path for path, mode in self._walk(b"") if wanted(mode)]

    def _walk(self, path: bytes) -> Iterator[tuple[bytes, int]]:
        mode = os.lstat(self._full(path)).st_mode
        yield path, mode
        if stat.S_ISDIR(mode):
            for name in sorted(os.listdir(self._full(path))):
                yield from self._walk(os.path.join(path, name))

    def _choose(self, wanted: Callable[[int], bool]) -> bytes | None:
        """A random path that passes, but not the root."""
        paths = [path for path in self._paths(wanted) if path]
        return self._random.choice(paths) if paths else None

    def _new_path(self, *, directory: bool = False) -> bytes | None:
        """A free path in some directory; None if there is enough already."""
        directories = self._paths(stat.S_ISDIR)
        if len(self._paths(bool)) >= _MAX_PATHS:
            return None
        parent = self._random.choice(directories[-2:] if self._random.random() < 0.3 else directories)
        if parent.count(b"/") >= _MAX_DEPTH:
            parent = b""
        names = ODD_NAMES + self._limits.long_names * LONG_NAMES + self._limits.late_long_names * LATE_LONG_NAMES
        if self._limits.increment_directories or not directory:
            names += INCREMENT_NAMES
        name = self._random.choice(names) if self._random.random() < 0.4 else self._plain_name()
        path = os.path.join(parent, name)
        return None if os.path.lexists(self._full(path)) else path

    def _plain_name(self) -> bytes:
        # Increments of some names are not compressed (docs/format.md 6.3), and those of a plain `x.gz` are gzip then.
        suffix = self._random.choice((b"", b"", b"", b".gz", b".jpg"))
        return b"%c%d%s" % (self._random.choice(b"abcde"), self._random.randrange(30), suffix)

    # Attributes

    def _new_mtime(self) -> int:
        """A time in nanoseconds whose whole seconds no file had before."""
        self._last_mtime += self._random.randrange(1, 50_000)
        return self._last_mtime * 1_000_000_000 + self._random.choice((0, self._random.randrange(10**9)))

    def _stamp(self, path: bytes) -> None:
        mtime = self._new_mtime()
        os.utime(self._full(path), ns=(mtime, mtime), follow_symlinks=False)

    def _stamp_directories(self) -> None:
        """Replace the times that the kernel gave to directories: a history does not depend on the clock."""
        for path in self._paths(stat.S_ISDIR):
            if abs(os.lstat(self._full(path)).st_mtime - time.time()) < _RECENT_S:
                self._stamp(path)

    def _dress(self, path: bytes) -> None:
        """Give a new file its attributes."""
        full = self._full(path)
        if self._limits.root and self._random.random() < 0.2:
            self._give_away(path)
        if not os.path.islink(full):
            is_directory = os.path.isdir(full)
            os.chmod(
                full,
                self._random.choice(self._modes()) if self._random.random() < 0.3 else 0o644 | is_directory * 0o111,
            )
        if self._has_xattrs and self._random.random() < 0.2:
            self._random.choice((self._set_xattr, self._set_acl))(path)
        self._stamp(path)

    def _modes(self) -> list[int]:
        return [mode for mode in ODD_MODES if self._limits.root or mode & 0o700 == 0o700]

    def _give_away(self, path: bytes) -> None:
        full = self._full(path)
        if os.path.islink(full) and not self._limits.symlink_owners:
            return
        owner = self._random.choice((0, 1, 1234, 1235, 65_534, 4_000_000_000)), self._random.choice((0, 5, 4321))
        mode = stat.S_IMODE(os.lstat(full).st_mode)
        os.chown(full, *owner, follow_symlinks=False)
        if not os.path.islink(full):
            os.chmod(full, mode)  # chown cleared setuid

    # New things

    def _make_directory(self) -> None:
        path = self._new_path(directory=True)
        if path is not None:
            os.mkdir(self._full(path))
            self._dress(path)

    def _make_file(self) -> None:
        path = self._new_path()
        if path is not None:
            self._write(path, self._content())
            self._dress(path)

    def _make_symlink(self) -> None:
        path = self._new_path()
        if path is not None:
            self._symlink(path)
            self._dress(path)

    def _symlink(self, path: bytes) -> None:
        os.symlink(self._target(), self._full(path))
        if not self._limits.symlink_owners:  # in a directory with the setgid bit it has that directory's group
            os.chown(self._full(path), os.geteuid(), os.getegid(), follow_symlinks=False)

    def _target(self) -> bytes:
        others = self._paths(bool)
        targets = (b"/nowhere", b"..", b"x/" * 2_000, b"line\nbreak\\", b"\xff", self._random.choice(others) or b".")
        return self._random.choice(targets)

    def _make_special(self) -> None:
        path = self._new_path()
        if path is not None:
            self._mknod(path)
            self._dress(path)

    def _mknod(self, path: bytes) -> None:
        kinds = [stat.S_IFIFO, stat.S_IFSOCK] + self._limits.root * [stat.S_IFCHR, stat.S_IFBLK]
        device = os.makedev(self._random.choice((1, 8, 250)), self._random.choice((3, 5, 7, 300)))
        os.mknod(self._full(path), self._random.choice(kinds) | 0o644, device)

    def _write(self, path: bytes, content: bytes) -> None:
        """Write in place: all links of the file change. Zeros become holes."""
        with open(self._full(path), "wb") as file:
            for start in range(0, len(content), 4_096):
                block = content[start : start + 4_096]
                if block.count(0) == len(block):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate(len(content))

    def _content(self) -> bytes:
        shape = self._random.random()
        if shape < 0.15:
            return b""
        if shape < 0.25:
            return bytes(self._random.randrange(1, 20_000))
        if shape < 0.32:
            return self._random.randbytes(self._random.randrange(100_000, 400_000))
        if shape < 0.38:
            return self._random.randbytes(50_000) + bytes(150_000) + self._random.randbytes(70_000)
        if shape < 0.46:
            return gzip.compress(self._random.randbytes(self._random.randrange(3_000)), mtime=0)
        lines = [
            b"%d %d\n" % (number, self._random.randrange(1_000)) for number in range(self._random.randrange(1, 900))
        ]
        return b"".join(lines)

    # Changes of files

    def _modify(self) -> None:
        path = self._choose(stat.S_ISREG)
        if path is None:
            return
        full = self._full(path)
        old = Path(os.fsdecode(full)).read_bytes()
        new = self._edit(old)
        if self._random.random() < 0.4:  # a new file with the name and the mode of the old one, as editors do
            info = os.lstat(full)
            os.unlink(full)
            self._write(path, new)
            if self._limits.root:
                os.chown(full, info.st_uid, info.st_gid)
            os.chmod(full, stat.S_IMODE(info.st_mode))
        else:
            mode = stat.S_IMODE(os.lstat(full).st_mode)
            self._write(path, new)
            os.chmod(full, mode)  # a write by others than root clears setuid
        self._stamp(path)

    def _edit(self, old: bytes) -> bytes:
        start = self._random.randrange(len(old) + 1)
        length = self._random.randrange(1, 300)
        some = self._random.randbytes(length)
        edits = (
            old[:start] + some + old[start + length :],  # overwrite a little
            old + some * self._random.randrange(1, 30),
            old[:start],
            old[:start] + some + old[start:],
            old[:start] + old[start + length :],
            old[start:] + old[:start],
            old,  # the time alone
            bytes(len(old)),
            b"",
            self._content(),
        )
        return self._random.choice(edits)

    def _remove(self) -> None:
        path = self._choose(bool)
        if path is not None:
            self._delete(path)

    def _delete(self, path: bytes) -> None:
        for found, mode in reversed(list(self._walk(path))):
            (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(self._full(found))

    def _empty_directory(self) -> None:
        path = self._choose(stat.S_ISDIR)
        if path is not None:
            for name in os.listdir(self._full(path)):
                self._delete(os.path.join(path, name))

    def _change_type(self) -> None:
        path = self._choose(bool)
        if path is None:
            return
        mode = os.lstat(self._full(path)).st_mode
        self._delete(path)
        kinds = [kind for kind in ("directory", "file", "symlink", "special") if kind != _kind(mode)]
        if os.path.basename(path) in INCREMENT_NAMES and not self._limits.increment_directories:
            kinds = [kind for kind in kinds if kind != "directory"]
        kind = self._random.choice(kinds)
        if kind == "directory":
            os.mkdir(self._full(path))
            if self._random.random() < 0.7:
                self._write(os.path.join(path, b"inner"), self._content())
                self._dress(os.path.join(path, b"inner"))
        elif kind == "file":
            self._write(path, self._content())
        elif kind == "symlink":
            self._symlink(path)
        else:
            self._mknod(path)
        self._dress(path)

    def _recreate(self) -> None:
        """Delete a file and make another one of the same type there."""
        path = self._choose(stat.S_ISREG)
        if path is not None:
            os.unlink(self._full(path))
            self._write(path, self._content())
            self._dress(path)

    def _change_mode(self) -> None:
        path = self._random.choice(self._paths(lambda mode: not stat.S_ISLNK(mode)))
        os.chmod(self._full(path), self._random.choice(self._modes()))

    def _change_owner(self) -> None:
        if self._limits.root:
            self._give_away(self._random.choice(self._paths(bool)))

    def _change_xattrs(self) -> None:
        path = self._random.choice(self._paths(bool))
        full = self._full(path)
        if not self._has_xattrs:
            return
        present = [name for name in os.listxattr(full, follow_symlinks=False) if not name.startswith("system.")]
        if present and self._random.random() < 0.4:
            os.removexattr(full, self._random.choice(sorted(present)), follow_symlinks=False)
        else:
            self._set_xattr(path)

    def _set_xattr(self, path: bytes) -> None:
        full = self._full(path)
        mode = os.lstat(full).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # they are not recorded (docs/format.md 4.6)
            return
        is_plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        names = XATTR_NAMES + self._limits.odd_xattr_names * ODD_XATTR_NAMES if is_plain else ()
        names += ROOT_XATTR_NAMES * self._limits.root
        if not names:
            return
        name = self._random.choice(names)
        value = CAPABILITY if name == b"security.capability" else self._random.choice(XATTR_VALUES)
        if name == b"security.capability" and not stat.S_ISREG(mode):
            return
        os.setxattr(full, name, value, follow_symlinks=False)

    def _change_acl(self) -> None:
        if self._has_xattrs:
            self._set_acl(self._random.choice(self._paths(lambda mode: not stat.S_ISLNK(mode))))

    def _set_acl(self, path: bytes) -> None:
        """Give a file an access control list, or take it away; a directory perhaps one for what is made in it."""
        full = self._full(path)
        if os.path.islink(full):
            return
        mode = stat.S_IMODE(os.lstat(full).st_mode)
        name = "system.posix_acl_access"
        if os.path.isdir(full) and self._random.random() < 0.4:
            name = "system.posix_acl_default"
            if name in os.listxattr(full) and self._random.random() < 0.4:
                os.removexattr(full, name)
                return
        os.setxattr(full, name, self._acl(mode))
        if mode & 0o7000 and name.endswith("access"):  # the kernel may clear setgid
            os.chmod(full, mode & 0o7000 | stat.S_IMODE(os.lstat(full).st_mode))

    def _acl(self, mode: int) -> bytes:
        """An access control list in the kernel's form; with the owner's permissions of `mode`. Perhaps it says no more
        than a mode does."""
        bits = self._random.randrange
        ids = sorted(self._random.sample((1, 2, 1234, 65_534, 4_000_000_000), bits(4)))
        entries = [(0x01, mode >> 6 & 7, _NO_ID), *((0x02, bits(8), uid) for uid in ids[:2]), (0x04, bits(8), _NO_ID)]
        entries += [(0x08, bits(8), gid) for gid in ids[2:]]
        if ids:
            entries.append((0x10, bits(8), _NO_ID))
        entries.append((0x20, bits(8), _NO_ID))
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    def _hard_link(self) -> None:
        path, new = self._choose(stat.S_ISREG), self._new_path()
        if path is not None and new is not None:
            os.link(self._full(path), self._full(new))

    def _copy_of_link(self) -> None:
        """One member of a group of links becomes a file of its own, with the same content."""
        path = self._choose(stat.S_ISREG)
        if path is None or os.lstat(self._full(path)).st_nlink == 1:
            return
        content = Path(os.fsdecode(self._full(path))).read_bytes()
        os.unlink(self._full(path))
        self._write(path, content)
        self._dress(path)

    def _rename(self) -> None:
        path = self._choose(bool)
        if path is None:
            return
        is_directory = stat.S_ISDIR(os.lstat(self._full(path)).st_mode)
        new = self._new_path(directory=is_directory)
        if new is not None and not new.startswith(path + b"/"):
            os.rename(self._full(path), self._full(new))

    def _touch(self) -> None:
        path = self._random.choice(self._paths(bool))
        if self._random.random() < 0.5:
            self._stamp(path)
            return
        self._last_mtime += 1
        mtime = self._random.choice(ODD_TIMES) + self._last_mtime - _MTIMES_FROM
        os.utime(self._full(path), (mtime, mtime), follow_symlinks=False)

    def _retarget(self) -> None:
        path = self._choose(stat.S_ISLNK)
        if path is not None:
            os.unlink(self._full(path))
            self._symlink(path)

    def _separate_links(self, directories: list[bytes]) -> None:
        """Give files of their own to names that were directories at the last session."""
        for path in directories:
            full = self._full(path)
            if os.path.isfile(full) and not os.path.islink(full) and os.lstat(full).st_nlink > 1:
                os.unlink(full)
                self._write(path, self._content())
                self._dress(path)


def has_xattrs(directory: bytes) -> bool:
    """Whether the file system of `directory` takes extended attributes and access control lists."""
    try:
        os.setxattr(directory, "user.histfs-test", b"")
        os.removexattr(directory, "user.histfs-test")
        os.setxattr(directory, "system.posix_acl_access", struct.pack("<IHHIHHIHHI", 2, *_ACCESS_0755))
    except OSError:
        return False
    return True


_ACCESS_0755 = (0x01, 7, _NO_ID, 0x04, 5, _NO_ID, 0x20, 5, _NO_ID)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "file"
    return "symlink" if stat.S_ISLNK(mode) else "special"
