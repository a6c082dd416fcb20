"""Bringing the mirror, path by path, from the state of the last session to that of the source.

For each path: what the mirror still holds is preserved as an increment, new content is written aside, and the change
itself is put off until the batch has had its barrier (see `batch`). What did not exist before is written in place at
once: nothing is lost if it is there too early, as the list of the last session does not name it.
"""

import os
import secrets
from collections.abc import Callable

from histfs.errors import DamagedError, HistfsError, SourceError
from histfs.store import held, plan
from histfs.store.batch import Batch
from histfs.store.begun import FirstSession
from histfs.store.copying import Copies
from histfs.store.entry import Entry, Kind, is_below, join
from histfs.store.files import WritableTree
from histfs.store.groups import Group, Key, LinkGroups
from histfs.store.increments import IncrementWriter
from histfs.store.layout import Layout
from histfs.store.long_names import LongNames
from histfs.store.moved import Moves
from histfs.store.owners import Owners
from histfs.store.records import Update
from histfs.store.source import Found, Source
from histfs.store.special import make_special
from histfs.store.strangers import remove_stranger
from histfs.store.sums import Sums


class MirrorUpdate:
    """One session's changes to the mirror. Call in metadata order; `increments` is None in a first session.

    `report` is told of damage found in the mirror. OSErrors concern the repository; SourceErrors the source, and leave
    the path as it was.
    """

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        source: Source,
        batch: Batch,
        increments: IncrementWriter | None,
        report: Callable[[HistfsError], None],
        owners: Owners,
        copies: Copies,
        links: plan.Links = plan.ALL_LINKS,
        moves: Moves | None = None,
        first: FirstSession | None = None,
    ) -> None:
        self._moves = moves
        self._first = first
        self._links = links
        self._copies = copies
        self._sums = Sums(tree)
        self.before_changes: Callable[[], None] = copies.wait  # called before anything is changed that was there
        self._tree = tree
        self._layout = layout
        self._source = source
        self._batch = batch
        self._increments = increments
        self._report = report
        self._attributes = held.MirrorAttributes(source.extras, owners).of
        self._long_names = LongNames(tree, layout)
        self._temporary = layout.temporary_names(secrets.randbits(62))
        self._directories: list[held.Directory] = []
        self._marked = 0  # so many of `_directories`, from the root, need their attributes set when they are left
        self._groups = LinkGroups(layout.mirror_path, self._intact_mirror_file)

    def pass_links(self, links: list[tuple[bytes, bytes]]) -> None:
        """Files with other links that are as they were: their records in the list and in the ledger."""
        self._groups.pass_over(links)

    # What can happen to a path

    def update(self, old: Entry | None, found: Found) -> Update:
        """The path exists in the source now. Raises SourceError if its content cannot be had."""
        self._enter(found.path)
        self._groups.come_to(old, found.entry)
        parent = self._directories[-1].new if self._directories else None
        new = self._long_names.named(old, found.entry, parent)
        if not self._links.are_kept:
            new = new._replace(link_group=None)
        if new.kind is Kind.DIRECTORY:
            return self._directory(old, new, found.status)
        found = found._replace(entry=new)
        if old is None and (sha1 := self._there_already(found)) is not None:
            record = new._replace(sha1=sha1)
            return Update(record, True, self._preserve(None, record))
        if new.kind is Kind.REGULAR:
            return self._regular(old, found)
        return self._special(old, new, found.status)

    def _there_already(self, found: Found) -> bytes | None:
        """The SHA1 (hex) of what is new in the source, if the mirror has it, and has it there now."""
        there = self._moves or self._first
        return None if there is None else there.take(found, self._layout.mirror_path(found.entry))

    def remove(self, old: Entry) -> Update:
        """The path does not exist in the source any more."""
        self._enter(old.path)
        self._groups.come_to(old, None)
        increment_bytes = self._preserve(old, None)
        if old.kind is Kind.DIRECTORY:
            self._open_up(old)
            self._directories.append(held.Directory(old.path, old, None, None, None, self._may_go_last()))
        else:
            self._remove_file(old, self._layout.mirror_path(old))
        return Update(None, True, increment_bytes)

    def _may_go_last(self) -> bool:
        """Whether what does not exist any more here need not make way for anything else."""
        above = self._directories[-1]
        return self._moves is not None and (above.goes_last or above.is_there)

    def _remove_file(self, old: Entry, path: bytes) -> None:
        above = self._directories[-1]
        may_have_moved = self._moves is not None and self._moves.gone(old, path) and self._may_go_last()
        if above.goes_last and old.alternate_mirror is None:
            self._batch.add_last_bytes(old.size_bytes)  # it goes with its directory
        elif may_have_moved:
            self._batch.remove_last(path)
            self._batch.add_last_bytes(old.size_bytes)
        else:
            self._batch.unlink(path)

    def keep(self, old: Entry) -> Update:
        """The source cannot tell what the path is now: the record stays as it was.

        As the numbers that tell hard links are of another time, the path is a file of its own until it can be read.
        """
        self._enter(old.path)
        self._groups.come_to(old, None)
        if self._moves is not None:
            self._moves.kept(old.path)
        if old.kind is Kind.DIRECTORY:
            self._directories.append(held.Directory(old.path, old, old, None, None))
        return Update(old._replace(link_group=None, sha1=self._groups.old_digest(old)), False, None, True)

    def mark_root(self) -> None:
        """Write the increment of the root also if nothing changes: tools find sessions by it (docs/format.md 8.3)."""
        self._touch()

    def finish(self) -> None:
        """Leave all directories and make all changes that wait."""
        while self._directories:
            self._leave()
        self.before_changes()
        self._batch.finish()
        if self._moves is not None:
            self._moves.finish()
            self._batch.finish()

    def settle(self, update: Update) -> Update:
        """What became of a path whose copy had been begun. Raises SourceError, and then there is nothing of it."""
        copy = update.copy
        assert copy is not None
        assert update.record is not None
        sha1 = copy.sha1()
        if sha1 is None:
            _, sha1 = self._copy(None, copy.found)
        record = update.record._replace(sha1=sha1)
        increment_bytes = None if self._increments is None else self._increments.write(None, record)
        return Update(record, True, increment_bytes)

    # Directories

    def _enter(self, path: bytes) -> None:
        """Leave the directories that `path` does not lie in."""
        while self._directories and not is_below(path, self._directories[-1].path):
            self._leave()
        if self._batch.is_large:
            self._apply()

    def _apply(self) -> None:
        """Make the changes that wait, when all that was begun before is there."""
        self.before_changes()
        self._batch.apply()

    def _leave(self) -> None:
        directory = self._directories.pop()
        is_marked = len(self._directories) < self._marked
        self._marked = min(self._marked, len(self._directories))
        if directory.new is None or not directory.is_there:
            assert directory.old is not None
            path = self._layout.mirror_path(directory.old)
            if not directory.goes_last:
                self._batch.remove_directory(path)
            elif not self._directories[-1].goes_last:
                self._batch.remove_last(path, is_directory=True)
            if directory.replacement is not None:
                self._batch.replace(directory.replacement, self._layout.mirror_path(directory.old))
        elif is_marked:
            path = self._layout.mirror_path(directory.new)
            if self._first is not None:
                self._first.leave(path, directory.new.path)
            attributes = self._attributes(directory.new, directory.status)
            self._batch.set_attributes(path, Kind.DIRECTORY, attributes)

    def _touch(self) -> None:
        """Something below the open directories changes: each gets an increment, and its attributes again at the end."""
        for directory in self._directories[self._marked :]:
            if self._increments is not None and directory.old is not None and directory.old.kind is Kind.DIRECTORY:
                self._write_marker(directory.old, directory.new)
        self._marked = len(self._directories)

    def _write_marker(self, old: Entry, new: Entry | None) -> int:
        assert self._increments is not None
        try:
            return self._increments.write(old, new)
        except FileExistsError:  # written when the directory itself changed
            return 0

    def _directory(self, old: Entry | None, new: Entry, status: os.stat_result) -> Update:
        path = self._layout.mirror_path(new)
        change = plan.change(old, new, self._links)
        increment_bytes: int | None = None
        if change is plan.Change.REPLACED:
            increment_bytes = self._preserve(old, new)
            if old is not None:
                # The barrier must come before the directory can be made, as its children are written at once.
                self._batch.unlink(self._layout.mirror_path(old))
                self._apply()
            self._make_directory(path, new.path)
        elif not self._open_up(new):
            self._report(DamagedError("is missing in the mirror, and is made again", path=new.path))
            self._make_directory(path, new.path)
            self._touch()
        self._directories.append(held.Directory(new.path, old, new, status, None))
        if change is not plan.Change.NONE:
            self._touch()
        return Update(new, change is not plan.Change.NONE, increment_bytes)

    def _open_up(self, entry: Entry) -> bool:
        return held.open_up(self._tree, self._layout.mirror_path(entry))

    def _make_directory(self, path: bytes, named: bytes) -> None:
        if (self._first is not None and self._first.enter(path, named)) or not path:
            return  # as the root of the repository is always
        try:
            self._tree.make_directory(path)
        except FileExistsError:
            remove_stranger(self._tree, path)
            self._tree.make_directory(path)

    # Regular files

    def _regular(self, old: Entry | None, found: Found) -> Update:
        key = found.entry.link_group.key if found.entry.link_group is not None else None
        group = self._groups.of(key)
        if group is not None and group.attributes != found.of_all_links:
            # It changed since its first link was looked at: what is here now is a file of its own.
            found, key, group = found._replace(entry=found.entry._replace(link_group=None)), None, None
        if group is not None:
            update = self._further_link(old, found, group)
            if update is not None:
                return update
        update = self._file(old, found, key)
        if key is not None and update.record is not None and update.record.sha1 is not None:
            self._groups.add(key, update.record, found.of_all_links)
        return update

    def _file(self, old: Entry | None, found: Found, key: Key | None) -> Update:
        """A file, or the first of a link group."""
        new = found.entry
        if old is None and key is None and self._copies.can_take(found):
            self._touch()
            self._batch.add_bytes(new.size_bytes)
            path = self._layout.mirror_path(new)
            return Update(new, True, copy=self._copies.add(found, path, self._attributes(new, found.status)))
        change = plan.change(old, new, self._links)
        status = self._intact_mirror_file(old)
        stays = status is not None and self._may_stay(status, key, change) and not self._is_shared(old)
        sha1 = None if old is None else self._groups.old_digest(old)
        is_same_file = status is not None and found.has_time_of(status) and not self._is_another_file(old, found)
        seems_same = stays and is_same_file and change in (plan.Change.NONE, plan.Change.ATTRIBUTES)
        if seems_same and sha1 is not None and (not found.is_suspect or self._copies.digest(found) == sha1):
            return self._unchanged_content(found, sha1, change)
        if old is not None and status is not None and self._increments is not None and self._copies.is_large(found):
            return self._large_file(old, found, may_stay=stays, old_sha1=sha1)
        temporary, new_sha1 = self._copy(old, found)
        record = new._replace(sha1=new_sha1)
        if old is not None and old.kind is Kind.REGULAR and (new_sha1, new.size_bytes) == (sha1, old.size_bytes):
            if stays:
                self._tree.unlink(temporary)
                return self._unchanged_content(found, new_sha1, plan.Change.ATTRIBUTES)
            self._replace(old, record, temporary)
            return Update(record, True)
        if old is not None and old.kind is Kind.REGULAR and status is None:
            self._replace(old, record, temporary)
            return Update(record, True)
        return Update(record, True, self._preserve_and_replace(old, record, temporary))

    def _is_shared(self, old: Entry | None) -> bool:
        """Whether the mirror's file is already also what something else is now."""
        return old is not None and self._moves is not None and self._moves.is_shared(self._layout.mirror_path(old))

    def _is_another_file(self, old: Entry | None, found: Found) -> bool:
        """Whether it may be another file of the same size and time, going by the numbers that tell hard links."""
        if self._links != plan.ALL_LINKS:
            return False
        if old is None or old.link_group is None:
            return found.entry.link_group is not None
        return old.link_group.key != (found.status.st_ino, found.status.st_dev)

    def _large_file(self, old: Entry, found: Found, *, may_stay: bool, old_sha1: bytes | None) -> Update:
        """A file that may have changed, and takes long to copy: what it was is compared with it meanwhile."""
        assert self._increments is not None
        self.before_changes()  # who watches sees the files in their order
        temporary = self._new_name(old, found.entry)
        attributes = self._attributes(found.entry, found.status)
        place = self._layout.mirror_path(found.entry)
        copying = self._copies.begin(
            *(found, temporary, attributes, self._layout.mirror_path(old)),
            lambda: self._sums.begin(place, old_sha1, old.size_bytes, found.status.st_size),
        )
        try:
            try:
                increment_bytes = self._increments.write(old, found.entry, temporary, copying.content)
            finally:
                copying.content.let_go()
            size, sha1 = copying.result()
        except SourceError:
            copying.content.give_up_sums()
            self._increments.discard_diff(old)
            self._tree.unlink(temporary)
            raise
        copying.content.keep_sums(sha1, size)
        record = found.entry._replace(sha1=sha1)
        self._batch.add_bytes(size + increment_bytes)
        if (sha1, size) != (old_sha1, old.size_bytes):
            self._replace(old, record, temporary)
            return Update(record, True, increment_bytes)
        self._increments.discard_diff(old)
        if may_stay:
            self._tree.unlink(temporary)
            return self._unchanged_content(found, sha1, plan.Change.ATTRIBUTES)
        self._replace(old, record, temporary)
        return Update(record, True)

    def _unchanged_content(self, found: Found, sha1: bytes | None, change: plan.Change) -> Update:
        record = found.entry._replace(sha1=sha1)
        if change is not plan.Change.NONE:
            self._touch()
            path = self._layout.mirror_path(record)
            self._batch.set_attributes(path, Kind.REGULAR, self._attributes(record, found.status))
        return Update(record, change is not plan.Change.NONE)

    def _further_link(self, old: Entry | None, found: Found, group: Group) -> Update | None:
        """Another link of a file that this session has already seen; None if the mirror cannot link it."""
        new = found.entry
        present = self._batch.present_name(group.mirror_path)
        status = self._intact_mirror_file(old)
        if status is not None and os.path.samestat(status, self._tree.stat(present)):
            is_changed = plan.change(old, new, self._links) is not plan.Change.NONE
            if is_changed:
                self._touch()
            return Update(new, is_changed)
        temporary = self._new_name(old, new)
        if not self._tree.try_link(present, temporary):
            return None
        if old is not None and old.kind is Kind.REGULAR:
            is_same = (self._groups.old_digest(old), old.size_bytes) == (group.sha1, new.size_bytes)
            if is_same or status is None:
                self._replace(old, new, temporary)
                return Update(new, True)
        return Update(new, True, self._preserve_and_replace(old, new, temporary))

    def _intact_mirror_file(self, old: Entry | None) -> os.stat_result | None:
        status = held.intact_file(self._tree, self._layout, old, self._report)
        if status is None and old is not None and old.kind is Kind.REGULAR and self._increments is not None:
            self._increments.check_damaged(old)
        return status

    def _may_stay(self, status: os.stat_result, key: Key | None, change: plan.Change) -> bool:
        """Whether the file or link group `key` may go on with this mirror file, shared with nobody who would mind."""
        if status.st_nlink == 1:
            return True
        if key is None:
            return change is plan.Change.NONE
        return self._groups.may_have(status.st_ino, key)

    def _copy(self, old: Entry | None, found: Found) -> tuple[bytes, bytes]:
        """Copy the source's file under a new name in the mirror; the name and the SHA1 (hex)."""
        if self._copies.is_large(found):
            self.before_changes()  # who watches sees the files in their order
        path = self._new_name(old, found.entry)
        size, sha1 = self._copies.copy(found, path, self._attributes(found.entry, found.status))
        self._batch.add_bytes(size)
        return path, sha1

    # Everything else

    def _special(self, old: Entry | None, new: Entry, status: os.stat_result) -> Update:
        """A symbolic link, fifo, socket or device."""
        change = plan.change(old, new, self._links)
        if change is plan.Change.NONE:
            return Update(new, False)
        path = self._new_name(old, new)
        attributes = self._attributes(new, status)
        try:
            make_special(self._tree, path, new, attributes)
        except FileExistsError:
            remove_stranger(self._tree, path)
            make_special(self._tree, path, new, attributes)
        if change is plan.Change.ATTRIBUTES:
            self._replace(old, new, path)
            return Update(new, True)
        return Update(new, True, self._preserve_and_replace(old, new, path))

    # Preserving and replacing

    def _preserve(self, old: Entry | None, new: Entry | None, new_content: bytes | None = None) -> int | None:
        self._touch()
        if self._increments is None:
            return None
        if old is not None and old.kind is Kind.REGULAR and self._intact_mirror_file(old) is None:
            return None
        try:
            size = self._increments.write(old, new, new_content)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if old is None or exc.filename != self._layout.mirror_path(old):
                raise  # then it is the increment that cannot be written
            self._report(DamagedError("is missing in the mirror", path=old.path))
            return None
        self._batch.add_bytes(size)
        return size

    def _preserve_and_replace(self, old: Entry | None, new: Entry, temporary: bytes) -> int | None:
        increment_bytes = self._preserve(old, new, temporary)
        self._replace(old, new, temporary)
        return increment_bytes

    def _replace(self, old: Entry | None, new: Entry, temporary: bytes) -> None:
        """Put `temporary` off to take the place of `old`; a directory goes when all that was in it has gone."""
        self._touch()
        if old is not None and old.kind is Kind.DIRECTORY:
            self._open_up(old)
            self._directories.append(held.Directory(old.path, old, new, None, temporary))
        elif old is not None:
            self._batch.replace(temporary, self._layout.mirror_path(new))

    def _new_name(self, old: Entry | None, new: Entry) -> bytes:
        """Where new content is written: in place if there was nothing, else under a temporary name beside it."""
        path = self._layout.mirror_path(new)
        if old is None:
            return path
        return join(path.rpartition(b"/")[0], next(self._temporary))
