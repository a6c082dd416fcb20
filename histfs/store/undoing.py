"""How a session that did not finish is undone (docs/format.md 7.2, 7.4); `recovery` says whether it is.

The repository goes back to the newest finished session. Every step can be repeated: a recovery that is killed is
finished by the next one. Order: what the mirror must hold is rebuilt aside and checked; a barrier; it takes its
place; a barrier; only then the increments it was rebuilt from go; the newer marker goes last.
A file that cannot be rebuilt as it was stops the recovery with everything kept: nothing is put in its place.

On a full disk all of it begins again, and what the good session does not need goes first: lists of the unfinished one,
new names in the mirror; and then each increment as soon as its file is on the disk as it was. What is rebuilt needs
room for a while, as its increment is there until then.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress

from histfs.errors import NO_ROOM, DamagedError, HistfsError, printable
from histfs.store.batch import Batch
from histfs.store.compression import compress
from histfs.store.content.opening import sha1_of
from histfs.store.entry import NO_EXTRAS, Entry, Extras, Kind, is_below, join, name_of, parent_of
from histfs.store.files import Attributes, WritableTree
from histfs.store.format.metadata import format_record
from histfs.store.format.names import parse_increment_name
from histfs.store.held import MirrorAttributes
from histfs.store.layout import DATA, INCREMENTS, TEMPORARY, State
from histfs.store.ledger import lists_of, remove_unfinished
from histfs.store.listing import Listing, Node
from histfs.store.look import KINDS
from histfs.store.owners import Owners
from histfs.store.repository import Repository
from histfs.store.snapshot import Snapshot
from histfs.store.special import make_special
from histfs.store.strangers import repository_in
from histfs.store.touched import Notes, Session, Touched, discard
from histfs.store.writing import write_content

_FEW_BYTES, _FEW_FILES = 1 << 20, 100  # that are rebuilt on a full disk before their increments go


def _is_as_recorded(entry: Entry, status: os.stat_result | None) -> bool:
    """Whether a regular file is `entry`, for all that can be seen from outside."""
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    return (status.st_size, status.st_mtime_ns // 10**9) == (entry.size_bytes, entry.mtime_s)


class Undoing:
    """Brings the repository from within the session `unfinished` back to the session `good`.

    A path without an increment of `good` was not touched by the session: if its file is damaged, it was so before, and
    is reported and left. One with an increment is checked by its digest, and rebuilt if it is another version.
    The list of `good` must be intact: what it does not name is removed from the mirror.
    """

    def __init__(
        self,
        tree: WritableTree,
        repository: Repository,
        state: State,
        good: int,
        unfinished: int,
        report: Callable[[HistfsError], None],
        owners: Owners,
        tell: Callable[[int], object],
        *,
        saves_room: bool = False,
    ) -> None:
        self._saves_room = saves_room
        self._spent: list[bytes] = []  # increments of what is, or will be after the batch, as it was
        self._spent_bytes = 0
        self._has_made_room = not saves_room
        self._tree = tree
        self._repository = repository
        self._layout = repository.layout
        self._state = state
        self._good = good
        self._unfinished = unfinished
        self._report = report
        self._owners = owners
        self._tell = tell
        self._batch = Batch(tree)
        self._is_root = os.geteuid() == 0
        self._extras = Extras(xattrs=good in state.xattrs, acls=good in state.acls)  # else nobody knows what they were
        self._rebuilt: dict[int, bytes] = {}  # the mirror paths of rebuilt files by the row of their inode
        # Of the mirror's files with several links: the row of the inode by its number.
        self._claimed: dict[int, int] = {}
        self._numbered: set[bytes] = set()  # what in that directory belongs to the mirror
        self._temporary = self._layout.temporary_names(secrets.randbits(62))
        self._attributes = MirrorAttributes(self._extras, owners).of
        self._touched: Touched | None = None  # all that need be looked at; None: everything
        self._strangers: dict[bytes, list[bytes]] = {}  # of it, what the list does not name, by its directory

    def has_run(self) -> bool:
        """Undo the session; False if the disk is full, and another attempt has more room, or saves it."""
        try:
            self._undo()
        except OSError as exc:
            if exc.errno not in NO_ROOM or self._tree.sync_has_failed:
                raise
            self._repository.forget()
            with suppress(OSError):
                self._settle()
            if not self._has_made_room:
                raise
            return False
        return True

    def _undo(self) -> None:
        snapshot = self._repository.snapshot(self._good)
        marker = self._state.markers[self._unfinished]
        notes = Notes(self._tree, self._layout)
        with closing(self._listing(snapshot)) as listing, notes:
            self._repository.refer_to(self._good, listing)
            if self._touched is None:
                discard(self._tree)
            else:
                notes.resume(self._touched)
            self._run(snapshot, listing)
            self._tree.unlink(marker, missing_ok=True)
            self._tree.sync_directory(DATA)
            notes.end()

    def _listing(self, snapshot: Snapshot) -> Listing:
        """What is to be looked at: what the session has noted, or everything. A damaged record stops it."""
        list_path = lists_of(self._state, self._good)[0]
        session = Session(self._state.markers[self._unfinished], self._unfinished, self._good, list_path)
        touched = Touched.read(self._tree, self._layout, session)
        if touched is not None:
            listing = Listing.build(touched.looked_at(snapshot.wanted_entries(touched.wants)))
            if touched.suffices(self._tree):
                self._touched, self._strangers = touched, touched.strangers()
                return listing
            listing.close()
        return Listing.build(snapshot.entries())

    def _run(self, snapshot: Snapshot, listing: Listing) -> None:
        increments = list(self._increments())
        touched = {self._increment_place(directory, name): join(directory, name) for directory, name in increments}
        if self._saves_room:
            self._make_room(listing)
        self._keep_full_list(listing)
        with snapshot.extras(self._extras, self._report) as extras:
            nodes = (node._replace(entry=extras.added_to(node.entry)) for node in listing.nodes())
            self._restore_mirror(snapshot, listing, nodes, touched)
        self._repository.forget()
        self._batch.apply()
        self._tree.sync()
        for directory, name in increments:
            self._tree.unlink(join(directory, name), missing_ok=True)
        self._remove_session_files()
        self._remove_leftovers()
        self._tree.sync()

    # The mirror

    def _restore_mirror(
        self,
        snapshot: Snapshot,
        listing: Listing,
        nodes: Iterable[Node],
        touched: dict[tuple[bytes, bytes], bytes],
    ) -> None:
        directories: list[Entry] = []
        for node in nodes:
            while directories and not is_below(node.entry.path, directories[-1].path):
                self._leave(directories.pop())
            path = self._layout.mirror_path(node.entry)
            status = self._status(path)
            if node.entry.alternate_mirror is not None:
                self._numbered.add(b"%d" % node.entry.alternate_mirror)
            if node.entry.kind is Kind.DIRECTORY:
                self._restore_directory(listing, node, path, status)
                directories.append(node.entry)
            elif node.entry.kind is Kind.REGULAR:
                self._restore_file(snapshot, node, path, status, touched.get(self._layout.increments_of(node.entry)))
            else:
                self._restore_special(node.entry, path, status)
            self._tell(node.entry.size_bytes)
            self._batch.apply_if_large()
            if self._spent_bytes >= _FEW_BYTES or len(self._spent) >= _FEW_FILES:
                self._settle()
        while directories:
            self._leave(directories.pop())

    def _status(self, path: bytes) -> os.stat_result | None:
        try:
            return self._tree.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _restore_directory(self, listing: Listing, node: Node, path: bytes, status: os.stat_result | None) -> None:
        """Make sure that it is a directory, and that nothing is in it that the list does not name."""
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self._tree.unlink(path)
            status = None
        if status is None:
            self._tree.make_directory(path)
            return
        self._remove_strangers(listing, node, path, status)

    def _remove_strangers(self, listing: Listing, node: Node, path: bytes, status: os.stat_result) -> None:
        self._tree.open_up(path, status)
        if self._touched is not None and not self._touched.is_whole(path):
            for stranger in self._strangers.get(path, ()):
                self._remove_stranger(stranger)
            return
        known = {DATA} if not path else set()
        after = -1
        while children := listing.children(node.row, after):
            known.update(self._layout.mirror_path(child.entry).rpartition(b"/")[2] for child in children)
            after = children[-1].row
        for name in self._tree.names(path):
            if name not in known:
                self._remove_stranger(join(path, name))

    def _remove_stranger(self, path: bytes) -> None:
        """What the session has put there. Not a repository that is older: a person's other backups."""
        repository = repository_in(self._tree, path)
        if repository is not None:
            began_ns = self._tree.stat(self._state.markers[self._unfinished]).st_ctime_ns
            if self._tree.stat(join(repository, DATA)).st_ctime_ns < began_ns:
                return
        self._tree.remove_tree(path)

    def _leave(self, entry: Entry) -> None:
        path = self._layout.mirror_path(entry)
        self._batch.set_attributes(path, Kind.DIRECTORY, self._attributes(entry, self._status(path)))

    def _restore_file(
        self, snapshot: Snapshot, node: Node, path: bytes, status: os.stat_result | None, increment: bytes | None
    ) -> None:
        """`increment`: what the session kept of the version before it replaced the file, if it came that far."""
        entry = node.entry
        is_there = status is not None and self._holds_version(node, path, status, increment is not None)
        if status is not None and is_there and self._claims(node, status):
            wanted = self._attributes(entry, status)
            if not self._has(path, status, wanted):
                self._tree.set_attributes(path, Kind.REGULAR, wanted)
            self._spend(entry, increment)
            return
        try:
            temporary = self._rebuild(snapshot, node, path)
        except DamagedError as error:
            if increment is not None and not _is_as_recorded(entry, status):
                error.advice = (
                    "the unfinished session cannot be undone with it, and all that could help is kept; to give this"
                    f" version up and go on, move {printable(increment)} out of the repository"
                )
                raise
            self._report(error)  # it was damaged before the session, which has not replaced it
            return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._tree.remove_tree(path)
        self._batch.replace(temporary, path)
        self._spend(entry, increment)

    def _claims(self, node: Node, status: os.stat_result) -> bool:
        """Whether the mirror's file may be that of `node`: the session may have linked what was not."""
        return status.st_nlink == 1 or self._claimed.setdefault(status.st_ino, node.inode_row) == node.inode_row

    def _holds_version(self, node: Node, path: bytes, status: os.stat_result, is_touched: bool) -> bool:
        if not stat.S_ISREG(status.st_mode) or status.st_size != node.entry.size_bytes:
            return False
        if (not is_touched or node.sha1 is None) and _is_as_recorded(node.entry, status):
            return True
        fd = self._tree.open_file(path)
        try:
            return sha1_of(fd) == node.sha1
        finally:
            os.close(fd)

    def _rebuild(self, snapshot: Snapshot, node: Node, path: bytes) -> bytes:
        """The version of the good session under a temporary name; a link if the first of its group was rebuilt."""
        temporary = join(path.rpartition(b"/")[0], next(self._temporary))
        first = self._rebuilt.get(node.inode_row)
        if first is not None and self._tree.try_link(self._batch.present_name(first), temporary):
            return temporary
        with snapshot.open(node.entry, node.sha1) as content:
            fd = self._tree.create_file(temporary)
            try:
                write_content(fd, content, self._repository)
                mtime = content.mtime_ns if content.mtime_ns is not None else node.entry.mtime_s * 10**9
                self._tree.set_file_attributes(fd, self._attributes(node.entry, None)._replace(mtime_ns=mtime))
            except BaseException:
                self._tree.unlink(temporary)
                raise
            finally:
                os.close(fd)
        self._rebuilt[node.inode_row] = path
        self._batch.add_bytes(content.size_bytes)
        return temporary

    def _restore_special(self, entry: Entry, path: bytes, status: os.stat_result | None) -> None:
        wanted = self._attributes(entry, None)
        if status is not None and self._is_same_special(entry, path, status):
            if not self._has_extras(path, wanted):
                self._tree.set_attributes(path, KINDS[stat.S_IFMT(status.st_mode)], wanted)
            return
        temporary = join(path.rpartition(b"/")[0], next(self._temporary))
        make_special(self._tree, temporary, entry, wanted)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._tree.remove_tree(path)
        self._batch.replace(temporary, path)

    def _is_same_special(self, entry: Entry, path: bytes, status: os.stat_result) -> bool:
        kind = KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is Kind.REGULAR and not self._is_root:
            return status.st_size == 0  # stands for what cannot be made; as root it is tried again
        if kind is not entry.kind:
            return False
        if kind is Kind.SYMLINK:
            return self._tree.readlink(path) == entry.target and self._has_owner(status, entry)
        if kind.is_device and (os.major(status.st_rdev), os.minor(status.st_rdev)) != entry.device_number:
            return False
        if kind.has_mtime and status.st_mtime_ns // 10**9 != entry.mtime_s:
            return False
        return stat.S_IMODE(status.st_mode) == entry.mode and self._has_owner(status, entry)

    def _has(self, path: bytes, status: os.stat_result, wanted: Attributes) -> bool:
        owner = not self._is_root or (status.st_uid, status.st_gid) == (wanted.uid, wanted.gid)
        is_same = owner and stat.S_IMODE(status.st_mode) == wanted.mode and status.st_mtime_ns == wanted.mtime_ns
        return is_same and self._has_extras(path, wanted)

    def _has_extras(self, path: bytes, wanted: Attributes) -> bool:
        """Whether nothing need be done about them: most files have none and shall have none."""
        try:
            return self._extras == NO_EXTRAS or not (wanted.xattrs or wanted.acl or self._tree.xattr_names(path))
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return True

    def _has_owner(self, status: os.stat_result, entry: Entry) -> bool:
        return not self._is_root or (status.st_uid, status.st_gid) == self._owners.of(entry)

    # Room

    def _make_room(self, listing: Listing) -> None:
        """Remove what only the unfinished session needs. Nothing depends on the order."""
        if self._state.metadata[self._good].snapshot is not None:  # else its list was made of newer ones
            self._remove_session_files()
        remove_unfinished(self._tree)
        self._remove_temporary_files(DATA)
        for node in listing.nodes():
            if node.entry.kind is Kind.DIRECTORY:
                path = self._layout.mirror_path(node.entry)
                status = self._status(path)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    self._remove_strangers(listing, node, path, status)

    def _spend(self, entry: Entry, increment: bytes | None) -> None:
        """What has other links stays: theirs may be rebuilt from it."""
        if self._saves_room and increment is not None and entry.link_group is None:
            self._spent.append(increment)
            self._spent_bytes += entry.size_bytes

    def _settle(self) -> None:
        """Remove increments; what they lead to is on the disk first, in its place."""
        if not self._spent:
            return
        self._batch.apply()
        self._tree.sync()
        for increment in self._spent:
            self._tree.unlink(increment, missing_ok=True)
        self._spent.clear()
        self._spent_bytes = 0
        self._has_made_room = True

    # Lists and increments

    def _keep_full_list(self, listing: Listing) -> None:
        """The newest list must be a full one (docs/format.md 8.3): make it from the diff if there is only that."""
        if self._state.metadata[self._good].snapshot is not None:
            return
        path = self._layout.data_path(b"mirror_metadata", self._good, b"snapshot", compressed=True)
        temporary = join(DATA, next(self._temporary))
        records = (format_record(node.entry) for node in listing.nodes())
        self._tree.write_file(temporary, compress(records), durable=True)
        self._tree.rename(temporary, path)
        self._tree.sync_directory(DATA)

    def _increments(self) -> Iterator[tuple[bytes, bytes]]:
        """Increments that the unfinished session wrote, as (directory on disk, name on disk)."""
        for directory, name in self._places_of_increments():
            parsed = parse_increment_name(self._layout.quoting.unquote(name))
            if parsed is not None and parsed.type != b"data" and parsed.time >= self._good:
                yield directory, name
        for time, path in self._state.root_increments.items():
            if time >= self._good:
                directory, _, name = path.rpartition(b"/")
                yield directory, name

    def _places_of_increments(self) -> Iterator[tuple[bytes, bytes]]:
        if self._touched is not None:
            there = filter(self._tree.exists, self._touched.increments)
            yield from ((parent_of(path), name_of(path)) for path in there)
            return
        for place in (INCREMENTS, self._layout.long_names):
            yield from self._tree.files_below(place)

    def _increment_place(self, directory: bytes, name: bytes) -> tuple[bytes, bytes]:
        parsed = parse_increment_name(self._layout.quoting.unquote(name))
        assert parsed is not None
        return directory, parsed.base

    def _remove_session_files(self) -> None:
        """Every file of the unfinished session in the data directory but its marker, and the diff of the good one."""
        for name in self._tree.names(DATA):
            parsed = parse_increment_name(self._layout.quoting.unquote(name))
            if parsed is not None and parsed.base != b"current_mirror" and parsed.time == self._unfinished:
                self._tree.unlink(join(DATA, name), missing_ok=True)
        diff = self._state.metadata[self._good].diff
        if diff is not None:
            self._tree.unlink(diff, missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Temporary files in the data directory, and long names of paths that only the unfinished session had."""
        remove_unfinished(self._tree)
        self._remove_temporary_files(DATA)
        if not self._tree.exists(self._layout.long_names):
            return
        self._remove_temporary_files(self._layout.long_names)
        for name in self._tree.names(self._layout.long_names) if self._touched is None else ():
            meant = self._layout.quoting.unquote(name)
            if meant.isdigit() and meant not in self._numbered:
                self._tree.remove_tree(join(self._layout.long_names, name))

    def _remove_temporary_files(self, place: bytes) -> None:
        for name in self._tree.names(place):
            if self._layout.quoting.unquote(name).startswith(TEMPORARY):
                self._tree.remove_tree(join(place, name))
