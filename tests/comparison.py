"""What a real directory tree is, attribute by attribute, and how two of them differ.

This is the judge of the other tests, so it shares nothing with histfs: it reads trees with plain system
calls and keeps what a person would look at. Hard links are told by the names that share a file, never by
inode numbers, so that a source, a mounted snapshot and a restored directory can be compared.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_MAX_LINES = 40
_REPETITION = re.compile(r"(.{1,16}?)\1{30,}")  # the middle of a long name
_BLOCK_BYTES = 1 << 20
_OF_THE_SYSTEM = (b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm")
_LISTS_OF_XFS = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")  # second names of access control lists
_HIDDEN = (*_OF_THE_SYSTEM, *_LISTS_OF_XFS)


def type_of(mode: int) -> str:
    """The word for the type in a mode of stat(2)."""
    return _TYPES[stat.S_IFMT(mode)]


class Attributes(NamedTuple):
    """What one name is. Attributes that a type does not have are None; times are whole seconds (rounded down)."""

    type: str
    mode: int  # the low 12 bits
    uid: int
    gid: int
    mtime: int
    size: int | None = None  # files, and symbolic links (the length of the target)
    sha1: str | None = None  # files
    target: bytes | None = None  # symbolic links
    device: tuple[int, int] | None = None  # devices: major, minor
    links: tuple[bytes, ...] | None = None  # files: the paths in the tree that share this file, sorted
    nlink: int | None = None  # files: st_nlink
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # extended attributes, sorted; access control lists among them

    def __str__(self) -> str:
        return " ".join(
            [self.type, f"{self.mode:04o}", f"{self.uid}:{self.gid}", str(self.mtime)]
            + [f"{name}={value!r}" for name, value in self._asdict().items() if name in _OPTIONAL and value]
        )


_OPTIONAL = frozenset({"size", "sha1", "target", "device", "links", "nlink", "xattrs"})

Manifest = dict[bytes, Attributes]  # by path: relative, b"" is the root


def read(root: Path | bytes, *, leaving_out: bytes = b"") -> Manifest:
    """The manifest of the tree at `root`, without what is at and below the name `leaving_out` in it.

    An OSError is not caught: a tree that cannot be read is a failed test.
    """
    top = os.fsencode(root)
    manifest: Manifest = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path in _walk(top, b"", leaving_out):
        full = os.path.join(top, path) if path else top
        info = os.lstat(full)
        manifest[path] = _attributes(full, info)
        if stat.S_ISREG(info.st_mode):
            groups.setdefault((info.st_dev, info.st_ino), []).append(path)
    for members in groups.values():
        for path in members:
            manifest[path] = manifest[path]._replace(links=tuple(sorted(members)))
    return manifest


def _walk(top: bytes, directory: bytes, leaving_out: bytes) -> Iterator[bytes]:
    yield directory
    with os.scandir(os.path.join(top, directory)) as found:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_directory in entries:
        path = os.path.join(directory, name)
        if path == leaving_out:
            continue
        if is_directory:
            yield from _walk(top, path, leaving_out)
        else:
            yield path


def look_at(path: bytes) -> Attributes:
    """What is at one path, of whose links nothing is known."""
    return _attributes(path, os.lstat(path))


def _attributes(full: bytes, info: os.stat_result) -> Attributes:
    kind = stat.S_IFMT(info.st_mode)
    mtime = info.st_mtime_ns // 1_000_000_000
    basic = Attributes(type_of(kind), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, mtime, xattrs=_xattrs(full))
    if kind == stat.S_IFREG:
        return basic._replace(size=info.st_size, sha1=_sha1(full, info.st_size), nlink=info.st_nlink)
    if kind == stat.S_IFLNK:
        return basic._replace(size=info.st_size, target=os.readlink(full))
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return basic._replace(device=(os.major(info.st_rdev), os.minor(info.st_rdev)))
    return basic


def _xattrs(full: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Without those that a system gives to every file."""
    try:
        names = sorted(map(os.fsencode, os.listxattr(full, follow_symlinks=False)))
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        return ()
    return tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in names if name not in _HIDDEN)


def _sha1(full: bytes, size: int) -> str:
    digest = hashlib.sha1()
    length = 0
    fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while block := os.read(fd, _BLOCK_BYTES):
            digest.update(block)
            length += len(block)
    finally:
        os.close(fd)
    return digest.hexdigest() if length == size else f"{length} bytes, but stat says {size}"


def below(manifest: Manifest, directory: bytes) -> Manifest:
    """The part of a manifest at and below `directory`, as if that were the root."""
    prefix = directory + b"/"
    found: Manifest = {}
    for path, attributes in manifest.items():
        if path != directory and not path.startswith(prefix):
            continue
        if attributes.links is not None:
            links = tuple(link[len(prefix) :] for link in attributes.links if link.startswith(prefix))
            attributes = attributes._replace(links=links, nlink=len(links))
        found[path[len(prefix) :]] = attributes
    return found


def part(manifest: Manifest, paths: set[bytes]) -> Manifest:
    """What is left of a manifest if only the `paths` are there."""
    found: Manifest = {}
    for path in paths:
        attributes = manifest[path]
        if attributes.links is not None:
            links = tuple(link for link in attributes.links if link in paths)
            attributes = attributes._replace(links=links, nlink=len(links))
        found[path] = attributes
    return found


def difference(
    expected: Manifest,
    actual: Manifest,
    *,
    root_mtime: bool = True,
    root: bool = True,
    owners: bool = True,
    symlink_owners: bool = True,
    links: bool = True,
    nlink: bool = True,
    special_mtimes: bool = False,
    xattrs: bool = True,
) -> list[str]:
    """How `actual` differs from `expected`, one line a path; empty if it does not.

    A False leaves something out of the comparison: `root_mtime` (a mounted snapshot may carry its session's
    time), `root` everything about the root, `owners` (another user than root cannot set them), `symlink_owners`
    (an owner that changes is not recorded by every writer), `links` with their number, or `nlink`, that number,
    alone, `xattrs` extended attributes and access control lists. `special_mtimes` are those of symbolic links and
    devices, which the format does not keep (docs/format.md 4.1).
    """
    lines = []
    for path in sorted(expected.keys() | actual.keys()):
        old, new = expected.get(path), actual.get(path)
        if path == b"" and not root:
            continue
        if old is None or new is None:
            lines.append(f"{path!r}: {'unexpected: ' + str(new) if old is None else 'missing: ' + str(old)}")
            continue
        ignored = _ignored(path, old, root_mtime, owners, symlink_owners, links, nlink, special_mtimes, xattrs)
        fields = [
            name for name in Attributes._fields if name not in ignored and getattr(old, name) != getattr(new, name)
        ]
        if fields:
            changes = ", ".join(f"{name} {getattr(old, name)!r} became {getattr(new, name)!r}" for name in fields)
            lines.append(f"{path!r} ({old.type}): {changes}")
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"... and {len(lines) - _MAX_LINES} more"]
    return [_REPETITION.sub(r"\1...\1", line) for line in lines]


def _ignored(
    path: bytes,
    old: Attributes,
    root_mtime: bool,
    owners: bool,
    symlink_owners: bool,
    links: bool,
    nlink: bool,
    special_mtimes: bool,
    xattrs: bool,
) -> set[str]:
    ignored = set()
    is_symlink = old.type == "symlink"
    if not special_mtimes and (is_symlink or old.device is not None):
        ignored.add("mtime")
    if not root_mtime and path == b"":
        ignored.add("mtime")
    if not owners or (is_symlink and not symlink_owners):
        ignored |= {"uid", "gid"}
    if not links:
        ignored |= {"links", "nlink"}
    if not nlink:
        ignored.add("nlink")
    if not xattrs:
        ignored.add("xattrs")
    return ignored
