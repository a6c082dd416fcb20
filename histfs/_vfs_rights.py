"""By which rights versions are shown: a private part of `histfs._vfs_tree`.

With OldModes.STRICT nobody reads through the mode of an old version what is closed today: a version grants what it has
recorded, and of that only what the newest session grants at the same path. A path that is not there any more grants
what it did; the directories that it lies in, which are shown by the same rule, may be closed. What belongs to an inode
must not depend on the way to it: a file that had several names grants what the newest session grants at all of them.

The kernel is told so for a second only, as the next session may close more.
"""

import stat
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from histfs.store.accounts import BY_NAME, resolved
from histfs.store.catalog import LIVE, Access, Catalog, Version
from histfs.store.entry import Acl, Xattrs
from histfs.store.format import posix_acl
from histfs.store.rights import OldModes, Rights, common, mode_and_list, mode_of_owner, rights_of, seen_as

FOREVER_S = 86_400.0  # for what cannot change while it is mounted
STRICT_S = 1.0
NO_CHANGES: Mapping[bytes, int] = {}

_KEPT = 1024
_VERSIONS_KEPT = 4096
_PRIVILEGED = (b"security.", b"trusted.")


class Policy(NamedTuple):
    """What of the recorded rights and attributes is shown."""

    old_modes: OldModes = OldModes.AS_STORED
    privileged: bool = True  # also the attributes that root alone can set

    @property
    def valid_s(self) -> float:
        """For how long attributes are sure to be true."""
        return STRICT_S if self.old_modes is OldModes.STRICT else FOREVER_S

    def xattrs(self, xattrs: Xattrs, acl: Acl | None) -> dict[bytes, bytes]:
        """Extended attributes as the kernel has them, lists among them, with the ids that names have here."""
        shown = {name: value for name, value in xattrs if self.privileged or not name.startswith(_PRIVILEGED)}
        return shown if self.old_modes is OldModes.OWNER else shown | posix_acl.shown(_here(acl))

    def mode(self, mode: int, acl: Acl | None) -> int:
        """What is shown of `mode`, where only the version itself counts."""
        return mode_of_owner(mode, _here(acl)) if self.old_modes is OldModes.OWNER else mode


class Granted(NamedTuple):
    """The mode of a version, and its access list if that is another one than was recorded."""

    mode: int
    acl: Acl | None = None


class Grants:
    """What the versions of one catalog grant. Any threads may use it; raises DamagedError, StorageError."""

    def __init__(self, catalog: Catalog, policy: Policy) -> None:
        self.policy = policy
        self._catalog = catalog
        self._acl = lru_cache(_KEPT)(lambda extras: _here(catalog.extras(extras)[1]))
        self._recorded = lru_cache(_KEPT)(lambda extras: policy.xattrs(*catalog.extras(extras)))
        self._granted: dict[int, Granted] = {}  # by number of the version

        self.is_owners = policy.old_modes is OldModes.OWNER
        self._is_strict = policy.old_modes is OldModes.STRICT

    def of(self, version: Version) -> Granted:
        if self.is_owners:
            return Granted(mode_of_owner(version.mode, self._acl_of(version)))
        if not self._is_strict or (version.last == LIVE and version.link is None):
            return Granted(version.mode)
        granted = self._granted.get(version.number)
        if granted is None:
            granted = self._with_newest(_access(version), *self._catalog.newest_access(version))
            if len(self._granted) >= _VERSIONS_KEPT:
                self._granted.clear()
            self._granted[version.number] = granted
        return granted

    def changes(self, directory: int, time: int, after: bytes | None, limit: int) -> Mapping[bytes, int]:
        """The modes of what has other rights in the newest session, in a page of a listing, by name."""
        if not self._is_strict:
            return NO_CHANGES
        changed = self._catalog.changed_access(directory, time, after, limit)
        return {name: self._with_newest(old, new).mode for name, old, new in changed if old != new}

    def xattrs(self, version: Version) -> Mapping[bytes, bytes]:
        """The extended attributes of a version, lists among them."""
        shown = {} if version.extras is None else self._recorded(version.extras)
        acl = self.of(version).acl
        if acl is None:
            return shown
        return {name: value for name, value in shown.items() if name != posix_acl.ACCESS} | posix_acl.shown(acl)

    def _with_newest(self, stored: Access, *newest: Access) -> Granted:
        own = self._rights(stored)
        rights = own
        for access in newest:
            seen = seen_as(self._rights(access), stat.S_IFMT(access.mode), stat.S_IFMT(stored.mode))
            if seen is not None and seen != rights:
                rights = common(rights, seen)
        return Granted(stored.mode) if rights == own else Granted(*mode_and_list(rights, stored.mode))

    def _rights(self, access: Access) -> Rights:
        return rights_of(access.mode, access.uid, access.gid, self._acl_of(access))

    def _acl_of(self, found: Access | Version) -> Acl:
        return () if found.extras is None else self._acl(found.extras)


def _access(version: Version) -> Access:
    return Access(version.mode, version.uid, version.gid, version.extras)


def _here(acl: Acl | None) -> Acl:
    """A list with the ids that names have here; of one that is damaged nothing is known, and its mode is safe."""
    return resolved(acl or (), BY_NAME).acl
