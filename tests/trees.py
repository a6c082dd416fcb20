"""Directory trees as literals, and three verbs: build one, read one, compare one with a literal.

    tree = Dir({"a": File(b"text"), "b": Link("a"), "d": Dir({b"\\xff": Symlink("../a")}, mode=0o700)})
    build(path, tree)
    assert compare(path, tree) == []

Names are str or bytes. Whatever is not said is constant, so that equal literals build equal trees. Owners are
set only where they are given (root can do that, others cannot).
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.comparison import Attributes, Manifest, difference, read

__all__ = ["Device", "Dir", "Fifo", "File", "Link", "Manifest", "Node", "Socket", "Symlink"]
__all__ += ["build", "compare", "difference", "manifest", "read"]

MTIME = 1_690_000_000

Name = str | bytes
Owner = tuple[int, int]  # uid, gid
Xattrs = Mapping[Name, bytes]


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. `mtime` in seconds."""

    content: bytes = b""
    mode: int = 0o644
    mtime: int = MTIME
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dir:
    entries: "Mapping[Name, Node]" = field(default_factory=dict)
    mode: int = 0o755
    mtime: int = MTIME
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A further name of the file at `path`, which is relative to the root of the tree."""

    path: Name


@dataclass(frozen=True, slots=True)
class Symlink:
    target: Name
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fifo:
    mode: int = 0o644
    mtime: int = MTIME
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Socket:
    mode: int = 0o755
    mtime: int = MTIME
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Device:
    """A device node; only root can build one. `kind` is "c" or "b"."""

    kind: str
    major: int
    minor: int
    mode: int = 0o600
    owner: Owner | None = None
    xattrs: Xattrs = field(default_factory=dict)


Node = File | Dir | Link | Symlink | Fifo | Socket | Device

_TYPE_BITS = {Fifo: stat.S_IFIFO, Socket: stat.S_IFSOCK}
_TYPE_NAMES = {Fifo: "fifo", Socket: "socket"}


def build(path: Path | bytes, tree: Dir) -> None:
    """Make `path`, which may exist as an empty directory, what `tree` says."""
    top = os.fsencode(path)
    if not os.path.isdir(top):
        os.mkdir(top)
    nodes = list(walk(tree))
    for name, node in nodes:
        if not isinstance(node, Link) and name:
            _create(os.path.join(top, name), node)
    for name, node in nodes:
        if isinstance(node, Link):
            os.link(os.path.join(top, os.fsencode(node.path)), os.path.join(top, name), follow_symlinks=False)
    for name, node in reversed(nodes):  # a directory's time after its entries
        _set_attributes(os.path.join(top, name) if name else top, node)


def walk(tree: Dir, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Every path of the literal with its node, a directory before its entries."""
    yield path, tree
    for name, node in tree.entries.items():
        below = os.path.join(path, os.fsencode(name))
        if isinstance(node, Dir):
            yield from walk(node, below)
        else:
            yield below, node


def _create(full: bytes, node: Node) -> None:
    if isinstance(node, File):
        with open(full, "xb") as file:
            file.write(node.content)
    elif isinstance(node, Dir):
        os.mkdir(full)
    elif isinstance(node, Symlink):
        os.symlink(os.fsencode(node.target), full)
    elif isinstance(node, Device):
        type_bits = stat.S_IFCHR if node.kind == "c" else stat.S_IFBLK
        os.mknod(full, type_bits | 0o600, os.makedev(node.major, node.minor))
    else:
        os.mknod(full, _TYPE_BITS[type(node)] | 0o600)


def _set_attributes(full: bytes, node: Node) -> None:
    if isinstance(node, Link):
        return
    if node.owner is not None:
        os.chown(full, *node.owner, follow_symlinks=False)
    for name, value in node.xattrs.items():
        os.setxattr(full, name, value, follow_symlinks=False)
    if not isinstance(node, Symlink):
        os.chmod(full, node.mode)
        mtime = MTIME if isinstance(node, Device) else node.mtime
        os.utime(full, (mtime, mtime))


def manifest(tree: Dir) -> Manifest:
    """The manifest of what `build` makes of `tree`."""
    nodes = dict(walk(tree))
    files = {path: _file_path(nodes, path) for path in nodes}  # the name that holds the file, for links too
    groups: dict[bytes, list[bytes]] = {}
    for path, file in files.items():
        groups.setdefault(file, []).append(path)
    return {path: _dressed(nodes[file], tuple(sorted(groups[file]))) for path, file in files.items()}


def _dressed(node: Node, links: tuple[bytes, ...]) -> Attributes:
    assert not isinstance(node, Link)
    xattrs = sorted((os.fsencode(name), value) for name, value in node.xattrs.items())
    return _expected(node, links)._replace(xattrs=tuple(xattrs))


def _file_path(nodes: dict[bytes, Node], path: bytes) -> bytes:
    while isinstance(node := nodes[path], Link):
        path = os.fsencode(node.path)
    return path


def _expected(node: Node, links: tuple[bytes, ...]) -> Attributes:
    assert not isinstance(node, Link)
    uid, gid = node.owner or (os.geteuid(), os.getegid())
    if isinstance(node, File):
        sha1 = hashlib.sha1(node.content).hexdigest()
        return Attributes(
            "file", node.mode, uid, gid, node.mtime, len(node.content), sha1, links=links, nlink=len(links)
        )
    if isinstance(node, Dir):
        return Attributes("directory", node.mode, uid, gid, node.mtime)
    if isinstance(node, Symlink):
        target = os.fsencode(node.target)
        return Attributes("symlink", 0o777, uid, gid, 0, len(target), target=target)
    if isinstance(node, Device):
        name = "character device" if node.kind == "c" else "block device"
        return Attributes(name, node.mode, uid, gid, 0, device=(node.major, node.minor))
    return Attributes(_TYPE_NAMES[type(node)], node.mode, uid, gid, node.mtime)


def compare(path: Path | bytes, tree: Dir) -> list[str]:
    """How the directory at `path` differs from the literal; empty if it does not."""
    return difference(manifest(tree), read(path))
