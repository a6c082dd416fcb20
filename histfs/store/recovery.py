"""Whether there is a session that did not finish, and may be undone (docs/format.md 7.2); `undoing` is how."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from histfs.errors import DamagedError, HistfsError, LockedError, quoted, storage_errors
from histfs.store.begun import undo_first_session
from histfs.store.files import WritableTree
from histfs.store.layout import DATA, INCREMENTS, State, read_layout, read_state
from histfs.store.lock import MAKE_ROOM, living_writer, marker_text
from histfs.store.owners import Owners
from histfs.store.repository import Repository
from histfs.store.touched import discard
from histfs.store.tree import Tree
from histfs.store.undoing import Undoing


def tell_nobody(_size_bytes: int) -> None:
    """Who wants to know says so."""


def recover(
    tree: WritableTree,
    path: Path,
    report: Callable[[HistfsError], None],
    owners: Owners,
    *,
    force: bool = False,
    check_emptying: Callable[[WritableTree], None] | None = None,
    tell: Callable[[int], object] = tell_nobody,
    on_block: Callable[[int], object] | None = None,
    goes_on: bool = False,
) -> bool:
    """Undo an unfinished session of the repository at `path`, whose lock is held; whether there was one.

    `check_emptying`: where no session was ever recorded, whatever else lies in the directory goes, unless this raises.
    `tell` is told the size of each file that is as it was, `on_block` that of each block that is read for one before.
    `goes_on`: a first session follows, which goes on with what one before it has noted (see `begun`).
    Raises LockedError if its writer still runs (`force`: all the same), DamagedError if it cannot be undone.
    """
    repository = Repository(tree, path)
    repository.on_block = on_block
    state = read_state(tree, repository.layout)
    if state.is_failed_first_session:
        return undo_first_session(tree, path, check_emptying, goes_on=goes_on)
    if len(state.markers) > 2:
        raise DamagedError(
            "has more than two current_mirror markers",
            path=path,
            advice="keep the newest one whose session finished, and move the others out of rdiff-backup-data",
        )
    if not state.markers:
        raise DamagedError(
            "has sessions but no current_mirror marker",
            path=path,
            advice=f"`histfs repair {quoted(path)}` writes it (`--dry-run` shows what it would do)",
        )
    if state.has_lost_marker:
        state = _mark_again(tree, repository, state)
    unfinished = state.unfinished
    good = state.mirror_time
    if unfinished is None or good is None:
        return False
    if not force:
        check_writer_is_gone(tree, state.markers[unfinished])
    told: set[str] = set()

    def report_once(error: HistfsError) -> None:
        if str(error) not in told:
            told.add(str(error))
            report(error)

    regress = Undoing(tree, repository, state, good, unfinished, report_once, owners, tell)
    while not regress.has_run():
        repository = Repository(tree, path)
        repository.on_block = on_block
        state = read_state(tree, repository.layout)
        regress = Undoing(tree, repository, state, good, unfinished, report_once, owners, tell, saves_room=True)
    return True


def _mark_again(tree: WritableTree, repository: Repository, state: State) -> State:
    """Write the marker of a session that was cut off and has lost it, so that whoever comes next undoes it, too."""
    if state.has_old_marker:
        raise DamagedError(
            "the current_mirror marker is older than other finished sessions",
            path=repository.path,
            advice="give it the time of the newest session that has finished; nothing was changed",
        )
    assert state.unfinished is not None
    marker = repository.layout.data_path(b"current_mirror", state.unfinished, b"data")
    discard(tree)
    tree.write_file(marker, [marker_text()], durable=True)
    tree.sync_directory(DATA)
    return read_state(tree, repository.layout)


def check_writer_is_gone(tree: Tree, marker: bytes, advice: str = "use --force") -> None:
    """Raises LockedError if the session of `marker` seems to run; `advice`: what to do if that is known to be wrong.

    Other writers may not hold the lock, so the process that the marker names counts too.
    """
    pid = living_writer(tree.read_small_file(marker, limit=4096), tree.stat(marker).st_mtime)
    if pid is not None:
        raise LockedError(
            f"a session of process {pid} is running in the repository",
            advice=f"wait until it has finished; if that process is something else, {advice}",
        )


@contextmanager
def session_errors(tree: WritableTree, path: Path) -> Iterator[None]:
    """Turn an OSError of a session into a StorageError that says what became of it, and how the next one has room."""
    try:
        yield
    except OSError:
        becomes, has_history = _what_is_left(tree)
        room = f"every finished session is intact; {MAKE_ROOM}" if has_history else "make room on that disk"
        with storage_errors(advice=becomes, on_full_disk=f"{becomes}; {room}", place=path):
            raise


def _what_is_left(tree: WritableTree) -> tuple[str, bool]:
    """What becomes of a session that has stopped; whether there are sessions that could go."""
    try:
        if not tree.is_directory(DATA):
            return "no session was begun", False
        state = read_state(tree, read_layout(tree))
        has_begun = state.unfinished is not None or (state.is_failed_first_session and tree.is_directory(INCREMENTS))
    except (OSError, DamagedError):
        return "if a session was begun, the next one undoes it", True
    if not has_begun:
        return "no session was begun", len(state.sessions) > 1
    if state.unfinished is None:
        return "the session is left open, and the next one goes on with it", False
    return "the session is left open, and undone by the next one", len(state.sessions) > 1
