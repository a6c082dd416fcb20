"""A whole repository that somebody has had in their hands: what all who read it, and a session, make of it.

An input is a series of changes to its files. Some are made to what is inside of a gzip stream, so that lists and
increments are wrong in what they say, with checksums that are right. However that is: nothing but an error of ours
comes out, what is not given out for what it is not, and nothing outside of the repository and the target is touched
or shown. A list that was made to say something else is the only thing that may change what files hold.
"""

import atexit
import gzip
import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from histfs.errors import HistfsError
from histfs.store import ledger
from histfs.store.backup import backup
from histfs.store.repository import Repository
from histfs.store.restore import restore
from tests.damage.readers import ERROR, Found, through_snapshots, through_verify, through_vfs
from tests.store.barriers import remove_barriers
from tests.trees import Dir, File, Link, Symlink, build

FIRST, DAY = 1_700_000_000, 86_400
SESSIONS = tuple(FIRST + number * DAY for number in range(4))
DATA = "rdiff-backup-data"
_MOST_CHANGES = 8
_INSIDE, _WITH_SESSION = 0x80, 0x40  # flags of a change: to what a gzip stream holds; a session follows
_SECRET = b"what nobody may be shown"


class Made(NamedTuple):
    """The repository as it is before all changes, and what its files hold at each session."""

    scratch: Path
    names: tuple[str, ...]
    sums: dict[tuple[int, bytes], str]

    @property
    def repository(self) -> Path:
        return self.scratch / "repository"


def _states(source: Path) -> Iterator[None]:
    text = b"".join(b"line %d of a text\n" % number for number in range(400))
    below = Dir({"f": File(b"deep"), "s": Symlink("f")})
    build(source, Dir({"a": File(text), "b": File(b"small"), "c": Link("b"), "d": below, "gone": File(b"soon")}))
    yield
    (source / "a").write_bytes(text[:2000] + b"something new" + text[2000:])
    (source / "gone").unlink()
    yield
    (source / "d/f").write_bytes(b"deeper")
    os.setxattr(source / "d/f", "user.tag", b"value")
    (source / "b").write_bytes(b"another content")
    yield
    (source / "a").write_bytes(text * 2)
    (source / "new").mkdir()
    yield


def _scratch() -> Path:
    """A directory of our own, in memory if possible. What processes have left that were killed is removed."""
    memory = Path("/dev/shm")
    place_ = memory if memory.is_dir() else Path(tempfile.gettempdir())
    for left in place_.glob("histfs-fuzz-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"histfs-fuzz-{os.getpid()}-", dir=place_))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch


@cache
def made() -> Made:
    scratch = _scratch()
    sums = {}
    for at, _ in zip(SESSIONS, _states(scratch / "source"), strict=True):
        backup(scratch / "source", scratch / "whole", now=at, report=lambda _error: None)
        for top, _, names in os.walk(scratch / "source"):
            for path in (Path(top) / name for name in names):
                if not path.is_symlink():
                    where = os.fsencode(path.relative_to(scratch / "source"))
                    sums[at, where] = hashlib.sha1(path.read_bytes()).hexdigest()
    (scratch / "outside").mkdir()
    (scratch / "outside/secret").write_bytes(_SECRET)
    found = (path for path in (scratch / "whole").rglob("*") if path.is_file() and not path.is_symlink())
    return Made(scratch, tuple(sorted(str(path.relative_to(scratch / "whole")) for path in found)), sums)


# Changes

Edit = Callable[[bytes, int, bytes], bytes]

EDITS: tuple[Edit, ...] = (
    lambda data, at, some: data[:at] + bytes(byte ^ 1 << at % 8 for byte in data[at : at + 1]) + data[at + 1 :],
    lambda data, at, some: data[:at] + some + data[at + len(some) :],
    lambda data, at, some: data[:at] + some + data[at:],
    lambda data, at, some: data[:at] + data[at + len(some) + 1 :],
    lambda data, at, some: data[:at],
    lambda data, at, some: data[:at] + data[at : at + 256] + data[at:],
)


def _other_name(name: str, some: bytes) -> str:
    """A name in the same directory."""
    made_of = os.fsdecode(some.replace(b"/", b"").replace(b"\0", b""))[:255]
    return os.path.join(os.path.dirname(name), made_of if made_of.strip(".") else "x")


def _edit(path: Path, edit: Edit, at: int, some: bytes, *, inside: bool) -> None:
    data = path.read_bytes()
    if inside:
        data = gzip.decompress(data)
    data = edit(data, at % (len(data) + 1), some)
    status = path.stat()
    path.write_bytes(gzip.compress(data, 1) if inside else data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _move(path: Path, target: Path) -> None:
    with suppress(OSError):
        path.rename(target)


def _copy(path: Path, target: Path) -> None:
    with suppress(OSError):
        target.write_bytes(path.read_bytes())


def change(whole: Made, data: bytes) -> tuple[bool, bool]:
    """Whether lists may say something else now, with sums that are right; and whether a session is to follow."""
    lies = is_followed = False
    for _ in range(_MOST_CHANGES):
        if len(data) < 5:
            break
        name, kind, at = whole.names[data[0] % len(whole.names)], data[1], int.from_bytes(data[2:4], "big")
        some, data = data[5 : 5 + data[4]], data[5 + data[4] :]
        is_followed |= bool(kind & _WITH_SESSION)
        path = whole.repository / name
        if not path.is_file() or path.is_symlink():
            continue
        what = (kind & 0x3F) % (len(EDITS) + 6)
        inside = bool(kind & _INSIDE) and name.endswith(".gz")
        if what < len(EDITS):
            with suppress(EOFError, OSError, zlib.error):  # another change came before
                _edit(path, EDITS[what], at, some, inside=inside)
            lies |= "_metadata" in name and (inside or not name.endswith(".gz"))
            continue
        other = whole.names[at % len(whole.names)]
        given = _other_name(name, some)
        match what - len(EDITS):
            case 0:
                path.unlink()
            case 1:
                _move(path, whole.repository / given)
                lies |= "_metadata" in name + given
            case 2:
                _copy(path, whole.repository / given)
                lies |= "_metadata" in name + given
            case 3:
                _copy(whole.repository / other, path)
                lies |= "_metadata" in name
            case 4:
                path.unlink()
                path.mkdir()
            case _:
                path.unlink()
                path.symlink_to(os.fsdecode(some.replace(b"\0", b"")) or "../outside/secret")
    return lies, is_followed


# What becomes of it


def _print(place_: Path) -> list[tuple[str, int, int, bytes]]:
    found = []
    for path in sorted([place_, *place_.rglob("*")]):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b""))
    return found


def _check_found(found: Found, whole: Made, *, lies: bool) -> None:
    secret = hashlib.sha1(_SECRET).hexdigest()
    for (at, path), got in found.items():
        assert got != secret, (at, path)
        assert got != "what cannot be printed", (at, path)
        if not lies and got != ERROR:
            assert got == whole.sums.get((at, path)), (at, path, got)


@contextmanager
def _quick() -> Iterator[None]:
    """Without barriers and logs, and with ledgers that are used at once."""
    with pytest.MonkeyPatch.context() as patch:
        remove_barriers(patch)
        patch.setattr(ledger, "_SETTLED_AFTER_NS", -(10**12))
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def check_repository(data: bytes) -> None:
    with _quick():
        whole = made()
        shutil.copytree(whole.scratch / "whole", whole.repository, symlinks=True)
        try:
            lies, is_followed = change(whole, data)
            outside = _print(whole.scratch / "outside"), _print(whole.scratch / "source")
            before = _print(whole.repository)
            _check_found(through_snapshots(whole.repository, SESSIONS), whole, lies=lies)
            _check_found(through_vfs(whole.repository, SESSIONS), whole, lies=lies)
            assert all(sentence.isprintable() for sentence in through_verify(whole.repository).sentences)
            _restore(whole, SESSIONS[len(data) % len(SESSIONS)])
            assert _print(whole.repository) == before, "a reader has changed the repository"
            if is_followed:
                with suppress(HistfsError):
                    backup(whole.scratch / "source", whole.repository, now=SESSIONS[-1] + DAY, report=_printable)
            assert (_print(whole.scratch / "outside"), _print(whole.scratch / "source")) == outside
        finally:
            for name in ("repository", "target"):
                shutil.rmtree(whole.scratch / name, ignore_errors=True)


def _restore(whole: Made, at: int) -> None:
    """Nothing that is read there may be what lies outside."""
    target = whole.scratch / "target"
    with suppress(HistfsError), Repository.open(whole.repository) as opened:
        restore(opened, b"", at, target, report=_printable, untrusted=True)
    for path in target.rglob("*"):
        assert path.is_symlink() or not path.is_file() or path.read_bytes() != _SECRET, path


def _printable(error: HistfsError) -> None:
    assert str(error).isprintable()


# Numbers of files, as `made` has them.
_A, _B, _MARKER, _XATTRS, _CATALOG, _LEDGER, _INCREMENT, _LIST = 0, 1, 9, 14, 22, 23, 28, 37


def _seed(number: int, kind: int, at: int, some: bytes = b"") -> bytes:
    """One change to that file."""
    return bytes([number, kind]) + at.to_bytes(2, "big") + bytes([len(some)]) + some


def seeds() -> list[bytes]:
    record = b"File ../outside/x\n  Type reg\n  Size 3\n  ModTime 1\n  Uid 0\n  Uname :\n  Gid 0\n  Gname :\n"
    record += b"  Permissions 420\n"
    found = [
        b"",
        _seed(_LIST, _INSIDE | 2, 0, record),
        _seed(_LIST, _INSIDE | 1, 150, b"  Type dir\n"),
        _seed(_LIST, _INSIDE | 4, 300),
        _seed(_LIST, 7, 0, b"mirror_metadata.2023-11-20T00:00:00Z.diff.gz"),
        _seed(_XATTRS, _INSIDE | 2, 0, b"# file: ../x\nuser.a=0sAAEC\n"),
        _seed(_INCREMENT, _INSIDE | 1, 6, b"\x45\xff\xff"),
        _seed(_INCREMENT, 7, 0, b"b.2023-11-15T22:13:20Z.diff.gz"),
        _seed(_INCREMENT, 11, 0, b"../../../outside/secret"),
        _seed(_CATALOG, 1, 2000, bytes(200)),
        _seed(_LEDGER, 1, 80, b"\xff" * 40),
        _seed(_MARKER, 8, 0, b"current_mirror.2023-11-14T22:13:20Z.data"),
        _seed(_B, 11, 0, b"../outside/secret"),
        _seed(_A, 4, 1000),
    ]
    return [*found, *(data[:1] + bytes([data[1] | _WITH_SESSION]) + data[2:] for data in found if data)]
