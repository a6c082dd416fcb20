"""Whether a restore may write to its target, by its place and by what is there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from histfs.errors import EXIT_FILE_ERROR, HistfsError, StorageError, UsageError, printable, quoted
from histfs.store.dress import refused_extras
from histfs.store.entry import Entry, Kind
from histfs.store.mounts import are_on_one_mount, is_same_place_or_below
from histfs.store.target import Manner, Target


def resolved(target: Path) -> Path:
    """The one place that `target` means, as the kernel finds it: `..` behind a link leads to where the link leads.

    The last name is kept, as a link in the place of the target is not followed.
    """
    if target.name in ("", ".."):
        return Path(os.path.realpath(target))
    return Path(os.path.realpath(target.parent), target.name)


def check_target(repository: Path, target: Path, manner: Manner = Manner()) -> None:  # noqa: B008 - a value
    """Raises UsageError unless `target`, `resolved`, may be written to: by its place, and that of what is kept."""
    place = Path(os.path.realpath(target))
    if is_same_place_or_below(place, repository):
        raise UsageError("lies in the repository itself", path=target, advice="choose a target outside of it")
    above = target.parent
    if not os.path.isdir(above) and not (manner.create_full_path and not os.path.lexists(above)):
        raise UsageError(
            "cannot be made, as the directory it would lie in does not exist",
            path=target,
            advice="--create-full-path makes it",
        )
    if manner.backup_dir is not None:
        aside = Path(os.path.realpath(manner.backup_dir))
        if aside.is_relative_to(place) or place.is_relative_to(aside):
            raise UsageError("must lie outside of the target, and the target of it", path=manner.backup_dir)
        if is_same_place_or_below(aside, repository):
            raise UsageError("lies in the repository itself", path=manner.backup_dir)
        if not are_on_one_mount(aside, target.parent):
            raise UsageError(
                "must be on the file system of the target, as what goes is moved there",
                path=manner.backup_dir,
                advice="choose a directory beside the target",
            )


@contextmanager
def target_errors(target: Path, manner: Manner, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Turn an OSError of the block, which is about the target, into a StorageError that names it.

    `has_begun`: whether something is in it by now. Then it says how to go on.
    """
    try:
        yield
    except OSError as exc:
        place = exc.filename if isinstance(exc.filename, str | Path) else target  # not a name below it
        error = StorageError(exc.strerror or str(exc), path=place)
        if has_begun() and not manner.dry_run:
            error.path = target
            error.problem += ", so that what is in it is incomplete"
            error.advice = f"the same command{'' if manner.is_merging else ' with --merge'} completes it"
            error.exit_code = EXIT_FILE_ERROR
        elif isinstance(exc, PermissionError):
            error.advice = "choose a target that you may write to"
        raise error from exc
    except UsageError as error:  # what was asked for turned out to make no sense
        if has_begun() and not manner.dry_run:
            error.advice += f"; what is in {printable(target)} so far is incomplete"
            error.exit_code = EXIT_FILE_ERROR
        raise


def check_what_is_there(
    target: Target, entry: Entry, place: Path, typed: Path, manner: Manner, report: Callable[[HistfsError], None]
) -> None:
    """Raises UsageError if what is in the place of the target must stay. A late look, as others may write there.

    `entry`: what shall be there. `typed`: the target as it was asked for. What `force` is for is told to `report`.
    """
    kind = entry.kind
    found = target.find(target.top)
    if found is None:
        return
    is_directory = found.entry.kind is Kind.DIRECTORY
    if is_directory and kind is Kind.DIRECTORY:
        names = target.names(found, open_up=False)
        if not names:
            return
        if not manner.is_merging:
            if len(names) < len(target.tree.names(target.top)):
                raise UsageError(
                    "is not empty: a restore to it was cut off", path=place, advice="the same with --merge completes it"
                )
            raise UsageError(
                "is not empty",
                path=place,
                advice="choose a new or an empty directory; or --merge to replace what differs and keep the rest,"
                " which also completes a restore that was cut off",
            )
        if manner.force:
            report(UsageError("is not empty: what the backup does not have is deleted", path=place))
    elif is_directory and (not manner.force or target.names(found, open_up=False)):
        raise UsageError("is a directory", path=place, advice=f"write {quoted(typed / os.fsdecode(entry.name))}")
    elif not manner.force and (kind is Kind.DIRECTORY or not manner.is_merging):
        advice = "choose a target that does not exist"
        if kind is not Kind.DIRECTORY:
            if place.is_dir():
                advice = f"write {quoted(typed / os.fsdecode(entry.name))} for a place in the directory it leads to"
            advice += "; or --merge to replace it, also if a restore was cut off"
        raise UsageError("exists already", path=place, advice=advice)


def what_was_refused(target: Target, place: Path) -> Iterator[StorageError]:
    """What the file system of the target did not take."""
    if target.tree.owners_were_refused and os.geteuid() == 0:
        yield StorageError("takes no owners: what was restored belongs to whom it gives it", path=place)
    if target.tree.extras_were_refused:
        yield refused_extras(place)
