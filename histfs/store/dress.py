"""What a restore sets on a file beside its content: owner, mode, time, extended attributes, access control list."""

import os
import stat
from collections.abc import Callable

from histfs.errors import HistfsError, StorageError, UsageError, printable
from histfs.store import plan
from histfs.store.accounts import BY_NAME, resolved
from histfs.store.entry import Entry, Extras, Kind, Xattrs
from histfs.store.files import Attributes
from histfs.store.format.posix_acl import mode_without
from histfs.store.owners import Owners

_OF_USERS = b"user."
_SETUID_SETGID = stat.S_ISUID | stat.S_ISGID


class Dress:
    """`owners`: whose the files are. `extras`: what is set beyond stat(2).

    An entry of an access control list for a name that nobody has here is left out, and `report` is told of each such
    name once: it is no error, as nobody can be meant. With `never_drop_acls` it is a UsageError.

    `untrusted`: no file gets privileges because the repository, which anybody may have written, says so: neither setuid
    and setgid nor attributes that only root can set.
    """

    def __init__(
        self,
        owners: Owners,
        extras: Extras,
        *,
        never_drop_acls: bool,
        report: Callable[[HistfsError], None],
        untrusted: bool = False,
    ) -> None:
        self._owners = owners
        self.extras = extras
        self.untrusted = untrusted
        self._never_drop_acls = never_drop_acls
        self._report = report
        self._unknown_names: set[bytes] = set()
        self._is_root = os.geteuid() == 0

    def attributes(self, entry: Entry, mtime_ns: int | None) -> Attributes:
        """All that is set on what was restored, whatever its kind is."""
        if self.untrusted:
            entry = _without_privileges(entry)
        mode, acl = entry.safe_mode, entry.acl or ()
        if not self.extras.acls:
            mode = mode_without(mode, acl)
        elif unknown := set(resolved(acl, self._owners).unknown) - self._unknown_names:
            self._tell_unknown(unknown, entry)
        return Attributes(mode, *self._owners.of(entry), mtime_ns).with_extras(entry, self.extras, self._owners)

    def change(self, entry: Entry, there: Entry) -> plan.Change:
        """What `entry` asks of what is there, as far as this user can give it; links are looked at elsewhere."""
        wanted, found = self._wanted(entry), self._found(there)
        if not self._is_root and (wanted.uid, wanted.gid) != (found.uid, found.gid):
            wanted = wanted._replace(uid=found.uid, gid=found.gid, mode=wanted.mode & ~_SETUID_SETGID)
        wanted = wanted._replace(uname=None, gname=None, link_group=None)
        return plan.change(found._replace(uname=None, gname=None, link_group=None), wanted)

    def _wanted(self, entry: Entry) -> Entry:
        """`entry` as it is when it has been restored, to be compared with `found`."""
        attributes = self.attributes(entry, None)
        return entry._replace(
            mode=attributes.mode,
            uid=attributes.uid,
            gid=attributes.gid,
            xattrs=self._that_can_be_set(attributes.xattrs or ()),
            acl=attributes.acl or (),
        )

    def _found(self, entry: Entry) -> Entry:
        """What is there already, as far as a restore looks at it."""
        acl = resolved(entry.acl or (), BY_NAME).acl
        return entry._replace(xattrs=self._that_can_be_set(entry.xattrs), acl=acl)

    def _that_can_be_set(self, xattrs: Xattrs) -> Xattrs:
        return xattrs if self._is_root else tuple(item for item in xattrs if item[0].startswith(_OF_USERS))

    def _tell_unknown(self, names: set[bytes], entry: Entry) -> None:
        self._unknown_names |= names
        listed = ", ".join(sorted(map(printable, names)))
        if self._never_drop_acls:
            raise UsageError(
                f"its access control list names {listed}, whom this system does not know",
                path=entry.path,
                advice="make the user or group, or restore without --never-drop-acls",
            )
        self._report(
            UsageError(
                f"its access control list names {listed}, whom this system does not know: entries for such a name are"
                " left out, here and below",
                path=entry.path,
            )
        )


def _without_privileges(entry: Entry) -> Entry:
    mode = entry.mode if entry.kind is Kind.DIRECTORY else entry.mode & ~_SETUID_SETGID
    return entry._replace(mode=mode, xattrs=tuple(item for item in entry.xattrs if item[0].startswith(_OF_USERS)))


def refused_extras(target: str | os.PathLike[str]) -> StorageError:
    """The file system of a target did not take all of them."""
    return StorageError(
        "does not take all extended attributes and access control lists: some of what was restored lacks them, and"
        " nobody may do more with it",
        path=target,
        advice="--no-eas and --no-acls restore without them",
    )


def mtime_ns_of(entry: Entry, found_ns: int | None) -> int:
    """What was found on a file of the repository, if its seconds are those that were recorded."""
    if found_ns is not None and found_ns // 10**9 == entry.mtime_s:
        return found_ns
    return entry.mtime_s * 10**9
