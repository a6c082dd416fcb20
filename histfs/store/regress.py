"""The operation `regress`: undo a session that did not finish, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from histfs.errors import HistfsError, NotARepositoryError, storage_errors
from histfs.store.accounts import BY_NAME
from histfs.store.files import WritableTree
from histfs.store.layout import DATA, read_layout, read_state
from histfs.store.lock import locked
from histfs.store.owners import Owners
from histfs.store.recovery import recover


class RegressOutcome(NamedTuple):
    """The sessions: the one that was undone (None: a first one), and the newest that is there now (None: none)."""

    undone: int | None
    newest: int | None


def regress(
    repository: Path,
    *,
    report: Callable[[HistfsError], None],
    force: bool = False,
    fsync: bool = True,
    owners: Owners = BY_NAME,
) -> RegressOutcome | None:
    """Bring the repository back to its newest finished session; None if it is there already.

    `force` goes on even if the process that began the session seems to run. Without `fsync` a crash of the system may
    cost the repository. Raises HistfsError.
    """
    with storage_errors():
        try:
            tree = WritableTree.open(repository)
        except (FileNotFoundError, NotADirectoryError):
            raise NotARepositoryError("there is no such directory", path=repository) from None
    with tree, storage_errors(advice="run `histfs regress` again when the cause is mended"):
        tree.waits_for_disk = fsync
        if not tree.is_directory(DATA):
            raise NotARepositoryError("is not a repository: it has no directory rdiff-backup-data", path=repository)
        with locked(tree, verb="regress"):
            undone = read_state(tree, read_layout(tree)).unfinished
            if not recover(tree, repository, report=report, owners=owners, force=force):
                return None
            return RegressOutcome(undone, read_state(tree, read_layout(tree)).mirror_time)
