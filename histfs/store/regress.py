"""The operation `regress`: undo the newest session, one that did not finish or, if that is wanted, a good one.

A good session is undone as a broken one is: a second marker, of the session before, makes it one that did not finish.
So it may be stopped at any moment, and whoever writes next goes on with it. Before the marker is written the state of
the session before is put together once, as nobody may be left with a session that cannot be undone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from histfs.errors import HistfsError
from histfs.store.accounts import BY_NAME
from histfs.store.entry import Entry, Kind, LinkDigests
from histfs.store.files import WritableTree
from histfs.store.format.listing import difference
from histfs.store.layout import read_layout, read_state
from histfs.store.lock import MAKE_ROOM, open_locked, write_marker
from histfs.store.owners import Owners
from histfs.store.recovery import recover, tell_nobody
from histfs.store.repository import Repository
from histfs.store.touched import discard


class RegressOutcome(NamedTuple):
    """The sessions: the one that was undone (None: a first one), and the newest that is there now (None: none)."""

    undone: int | None
    newest: int | None
    had_finished: bool = False


def regress(
    repository: Path,
    *,
    report: Callable[[HistfsError], None],
    force: bool = False,
    fsync: bool = True,
    owners: Owners = BY_NAME,
    tell: Callable[[int], object] = tell_nobody,
    on_block: Callable[[int], object] | None = None,
) -> RegressOutcome | None:
    """Bring the repository back to its newest finished session; None if there is nothing to undo.

    `force` goes on even if the process that began the session seems to run; and if all sessions have finished, the
    newest of them is undone, unless it is the only one. Without `fsync` a crash of the system may cost the repository.
    `tell` is told the size in bytes of each file that is as it was, `on_block` that of each block that is read for one
    before. Raises HistfsError.
    """
    advice = "run `histfs regress` again when the cause is mended"
    on_full_disk = f"{MAKE_ROOM}, then run `histfs regress` again"
    with open_locked(repository, verb="regress", advice=advice, on_full_disk=on_full_disk, fsync=fsync) as tree:
        state = read_state(tree, read_layout(tree))
        undone, had_finished = state.unfinished, False
        if force and undone is None and len(state.markers) == 1 and len(state.sessions) > 1:
            undone, had_finished = state.sessions[-1], True
            _open_again(tree, Repository(tree, repository))
        if not recover(tree, repository, report, owners, force=force, tell=tell, on_block=on_block):
            return None
        return RegressOutcome(undone, read_state(tree, read_layout(tree)).mirror_time, had_finished)


def _open_again(tree: WritableTree, repository: Repository) -> None:
    """Make the newest session one that did not finish. DamagedError if the one before cannot be put together."""
    previous, newest = repository.sessions()[-2:]
    _check_changed_files(repository, previous, newest)
    repository.forget()
    discard(tree)  # what that session touched may have been changed since
    marker = repository.layout.data_path(b"current_mirror", previous, b"data")
    write_marker(tree, marker, may_be_empty=True)


def _check_changed_files(repository: Repository, previous: int, newest: int) -> None:
    """Read every file that the session `newest` has changed or removed, as it was at `previous`."""
    snapshot = repository.snapshot(previous)
    digests = LinkDigests()

    def entries() -> Iterator[Entry]:
        for entry in snapshot.entries():
            digests.remember(entry)
            yield entry

    for entry in difference(entries(), repository.snapshot(newest).entries()):
        if entry.kind is Kind.REGULAR:
            with snapshot.open(entry, digests.of(entry)) as content:
                for _ in content.blocks():
                    pass
