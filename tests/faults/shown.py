"""What a mount would show of a repository, without a mount: every snapshot, all attributes, all bytes.

`Shown` is a mount as far as `histfs.vfs` is one. One that was opened before a session is an already running mount.
"""

import hashlib
import logging
import os
import stat
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import Self

from histfs import vfs
from histfs.store.catalog import open_catalog
from histfs.store.repository import Repository
from tests.comparison import Attributes, Manifest, type_of

_MANY = 1000
_BLOCK_BYTES = 1 << 20
_SYSTEM = (b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm")


class Shown:
    """The history of a repository. A context manager."""

    def __init__(self, repository: Path, cache: Path | None = None) -> None:
        logging.disable(logging.CRITICAL)  # a mount logs to its own place; what is wrong is seen in what is shown
        self._repository = Repository.open(repository)
        self._history = vfs.History(
            self._repository, lambda: open_catalog(self._repository, cache=cache), UTC, owner=(0, 0)
        )
        self._read: dict[int, Attributes] = {}  # what has one number is asked for once, as a kernel would

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._history.close()
        self._repository.close()

    def look(self) -> list[int]:
        """The sessions there are now, oldest first."""
        self._read.clear()
        self._history.refresh()
        self._history.update()
        return list(self._history.names().values())

    def manifest(self, session_time: int) -> Manifest:
        """A snapshot as a reader of the mount sees it. Raises what stops a reader."""
        found: Manifest = {}
        groups: dict[int, list[bytes]] = {}
        top = self._history.top(session_time)
        assert top is not None
        pending = [(b"", top)]
        while pending:
            path, attributes = pending.pop()
            found[path] = self._attributes(attributes)
            if stat.S_ISREG(attributes.mode):
                groups.setdefault(attributes.inode, []).append(path)
            elif stat.S_ISDIR(attributes.mode):
                pending += self._children(path, attributes.inode)
        for members in groups.values():
            for path in members:
                found[path] = found[path]._replace(links=tuple(sorted(members)))
        return found

    def _children(self, path: bytes, inode: int) -> list[tuple[bytes, vfs.Attributes]]:
        found: list[tuple[bytes, vfs.Attributes]] = []
        offset = 0
        while children := self._history.children(inode, offset, _MANY):
            offset = children[-1].offset
            found += [
                (os.path.join(path, child.name), child.attributes)
                for child in children
                if child.name not in (b".", b"..")
            ]
        return found

    def _attributes(self, shown: vfs.Attributes) -> Attributes:
        found = self._read.get(shown.inode)
        if found is None:
            found = self._read[shown.inode] = self._asked(shown)
        return found

    def _asked(self, shown: vfs.Attributes) -> Attributes:
        inode = shown.inode
        xattrs = tuple(sorted(pair for pair in self._history.xattrs(inode).items() if pair[0] not in _SYSTEM))
        basic = Attributes(
            type_of(shown.mode), stat.S_IMODE(shown.mode), shown.uid, shown.gid, shown.mtime_s, xattrs=xattrs
        )
        if stat.S_ISREG(shown.mode):
            return basic._replace(size=shown.size_bytes, sha1=self._sha1(shown), nlink=shown.nlink)
        if stat.S_ISLNK(shown.mode):
            target = self._history.target(inode)
            assert target is not None
            return basic._replace(size=len(target), target=target)
        if stat.S_ISCHR(shown.mode) or stat.S_ISBLK(shown.mode):
            return basic._replace(device=(os.major(shown.rdev), os.minor(shown.rdev)))
        return basic

    def _sha1(self, shown: vfs.Attributes) -> str:
        file = self._history.open(shown.inode)
        assert file is not None
        digest, length = hashlib.sha1(), 0
        with closing(file.content):
            while block := file.content.pread(_BLOCK_BYTES, length):
                digest.update(block)
                length += len(block)
        return digest.hexdigest() if length == shown.size_bytes else f"{length} bytes, but stat says {shown.size_bytes}"
