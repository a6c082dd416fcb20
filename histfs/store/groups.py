"""The hard links of a session: which names of the source are one file, and which files of the mirror hold them."""

import os
from collections.abc import Callable
from typing import NamedTuple

from histfs.store.entry import Entry, LinkDigests
from histfs.store.format.ledger import Seen
from histfs.store.format.metadata import parse_record

Key = tuple[int, int]

_INODE_BYTES = 16  # with which a record of the ledger begins: inode and device


class Group(NamedTuple):
    """Where its content lies in the mirror, and its digest."""

    mirror_path: bytes
    sha1: bytes
    attributes: tuple[int, ...]  # what all its links showed


class LinkGroups:
    """What is known of the files with several links. Call in metadata order.

    `mirror_path` and `mirror_status` tell where a file lies in the mirror, and what is there now (None: not what was
    recorded). Of groups of which links were passed over these are asked only when a name comes that has to do with
    any group.
    """

    def __init__(
        self, mirror_path: Callable[[Entry], bytes], mirror_status: Callable[[Entry], os.stat_result | None]
    ) -> None:
        self._mirror_path = mirror_path
        self._mirror_status = mirror_status
        self._groups: dict[Key, Group] = {}
        self._passed: dict[bytes, tuple[bytes, bytes]] = {}  # by inode and device, the first link of each
        self._digests = LinkDigests()
        self._claimed: dict[int, Key] = {}  # inodes of the mirror that belong to a group of this session

    def pass_over(self, links: list[tuple[bytes, bytes]]) -> None:
        """Files that are as they were: their records in the list and in the ledger."""
        for record, seen in links:
            self._passed.setdefault(seen[:_INODE_BYTES], (record, seen))

    def come_to(self, old: Entry | None, new: Entry | None) -> None:
        """The next path, as it was recorded and as it is now."""
        if self._passed and any(entry is not None and entry.link_group is not None for entry in (old, new)):
            self._learn()
        self._digests.remember(old)

    def _learn(self) -> None:
        """As if what was passed over had been looked at."""
        for record, data in self._passed.values():
            entry, seen = parse_record(record), Seen.parse(data)
            if entry.link_group is None or entry.sha1 is None:
                continue
            self._digests.remember(entry)
            self.add(entry.link_group.key, entry, (*entry.shared_attributes, seen.mtime_ns))
            status = self._mirror_status(entry)
            if status is not None:
                self.may_have(status.st_ino, entry.link_group.key)
        self._passed.clear()

    def old_digest(self, old: Entry) -> bytes | None:
        """That of the last session's content (hex); None if none was recorded."""
        return self._digests.of(old)

    def of(self, key: Key | None) -> Group | None:
        return None if key is None else self._groups.get(key)

    def add(self, key: Key, record: Entry, attributes: tuple[int, ...]) -> None:
        """The first link of a group, with its digest."""
        assert record.sha1 is not None
        self._groups[key] = Group(self._mirror_path(record), record.sha1, attributes)

    def may_have(self, mirror_inode: int, key: Key) -> bool:
        """Whether the mirror's file belongs to the group; it does if no other one has come first."""
        return self._claimed.setdefault(mirror_inode, key) == key
