"""The mount of a repository: `mount` and `umount`, as the command line calls them.

place       what is mounted where, what may lie where, unmounting
background  the process in the background, and the log
session     the FUSE session: mount, answer, unmount

Everything that can be known to go wrong is checked before anything is changed, and before the process forks, so that it
is said on the screen of the person who asked.
"""

import logging
import os
import resource
import tempfile
from collections.abc import Callable
from datetime import tzinfo
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import trio

from histfs.errors import HistfsError, InRepositoryError, MountError, UsageError, quoted
from histfs.fs import Operations
from histfs.mount import background, place, session
from histfs.mount.place import unmount
from histfs.store.catalog import Catalog, open_catalog
from histfs.store.content.shared import Sizes
from histfs.store.repository import Repository
from histfs.store.rights import OldModes
from histfs.vfs import History, Policy

__all__ = ["mount", "unmount"]

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 2.0
_SOURCE_NAME_MAX = 1000  # the kernel takes one page for all options


class _Request(NamedTuple):
    """What was asked for; the paths are absolute and resolved."""

    repository: Path
    mountpoint: Path
    zone: tzinfo | None
    allow_other: bool
    foreground: bool
    log_file: Path | None
    debug: bool
    cache: Path | None = None
    memory_bytes: int = 64 << 20
    policy: Policy = Policy()


def mount(
    repository: Path,
    mountpoint: Path,
    *,
    zone: tzinfo | None,
    allow_other: bool,
    old_modes: OldModes | None = None,
    all_attributes: bool = False,
    foreground: bool,
    log_file: Path | None,
    debug: bool,
    cache: Path | None,
    memory_bytes: int,
    on_ready: Callable[[], None] = lambda: None,
    on_progress: Callable[[int], None] = lambda _records: None,
) -> int:
    """Show the history of `repository` at `mountpoint`, an empty directory.

    In the background: returns when the mount can be used. In the foreground: returns when it was unmounted.
    `on_ready` is called here when it can be used. `zone` is that of the directories' names, None the local one.
    `cache` is a directory for catalogs of repositories that have none themselves, which are built when the root can be
    listed already; in the foreground `on_progress` then hears every few seconds, from another thread, how many records
    were read (in the background the log does). `memory_bytes` is how much may be kept in memory to read faster.

    `old_modes` says by which rights old versions are shown to others, with `allow_other` (None: the strict way);
    `all_attributes` shows these also what root alone can set.

    A mount of histfs there whose process has died is cleaned up. Returns the exit code 0.

    Raises NotARepositoryError, UsageError (places that overlap, not empty, mounted already), MountError, StorageError.
    """
    request = _Request(
        _resolved(repository),
        place.resolved(mountpoint),
        zone,
        allow_other,
        foreground,
        None if log_file is None else _resolved(log_file),
        debug,
        None if cache is None else _resolved(cache),
        memory_bytes,
        _policy(allow_other=allow_other, old_modes=old_modes, all_attributes=all_attributes),
    )
    _check(request)
    task = partial(_run, request, on_progress)
    if foreground:
        task(on_ready)
    else:
        background.run(task)
        on_ready()
    return 0


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _policy(*, allow_other: bool, old_modes: OldModes | None, all_attributes: bool) -> Policy:
    """What is shown of rights and attributes. Who mounts for nobody else sees what is recorded. UsageError."""
    is_root = os.geteuid() == 0
    if all_attributes and not is_root:
        raise UsageError("--all-attributes is for root, who alone can set such attributes")
    if old_modes is not None and not allow_other:
        raise UsageError("--old-modes says what others may read", advice="with --allow-other they are let in")
    if not allow_other:
        return Policy(OldModes.AS_STORED, privileged=is_root)
    return Policy(old_modes or OldModes.STRICT, privileged=all_attributes)


def _check(request: _Request) -> None:
    try:
        Repository.open(request.repository).close()
    except InRepositoryError as error:
        error.advice = "mount that"
        raise
    place.check_fuse(allow_other=request.allow_other)
    place.clear_dead_mounts(request.mountpoint)
    temporary = _resolved(Path(tempfile.gettempdir()))
    place.check_overlap(request.mountpoint, request.repository, temporary, request.log_file, request.cache)
    place.check_directory(request.mountpoint)


def _run(request: _Request, on_progress: Callable[[int], None], on_ready: Callable[[], None]) -> None:
    """Mount and answer until it is unmounted. HistfsError; a bug is logged with its traceback and becomes one too."""
    logging_to = background.logging_to(request.log_file, foreground=request.foreground, debug=request.debug)
    memory = request.memory_bytes
    sizes = Sizes(members=memory // 2, versions=memory // 8, maps=memory // 4)  # and an eighth is the catalog's
    with logging_to, Repository.open(request.repository, sizes) as repository:
        _allow_many_open_files()
        open_now = partial(_open_catalog, request, repository, _progress(request, on_progress))
        history = History(repository, open_now, request.zone, owner=(os.geteuid(), os.getegid()), policy=request.policy)
        history.refresh()
        operations = Operations(
            history, request.repository, small_bytes=request.memory_bytes // 8, enforces_acls=request.allow_other
        )
        try:
            trio.run(session.serve, operations, request.mountpoint, mount_options(request), on_ready)
        except HistfsError:
            raise
        except Exception as exc:
            log.critical("a bug has ended the mount", exc_info=exc)
            raise MountError(
                "a bug has ended the mount, which stays there so that nobody takes it for an empty directory",
                path=request.mountpoint,
                advice=f"`histfs umount {quoted(request.mountpoint)}` takes it away",
            ) from exc
        finally:
            operations.close()
            history.close()


def _open_catalog(request: _Request, repository: Repository, progress: Callable[[int], None]) -> Catalog:
    catalog = open_catalog(repository, cache=request.cache, progress=progress)
    catalog.keep_in_memory(request.memory_bytes // 8)
    return catalog


def _progress(request: _Request, on_progress: Callable[[int], None]) -> Callable[[int], None]:
    """What the catalog tells while it is built, for the screen or for the log, and not too often."""
    next_at = monotonic() + _PROGRESS_EVERY_S

    def progress(records: int) -> None:
        nonlocal next_at
        if monotonic() < next_at:
            return
        next_at = monotonic() + _PROGRESS_EVERY_S
        if request.foreground:
            on_progress(records)
        else:
            log.info("reading the history: %d records", records)

    return progress


def mount_options(request: _Request) -> set[str]:
    """Options of mount.fuse3(8). What other users may do is always checked by the kernel, with the recorded modes."""
    # The options are ASCII, separated by commas, and a table of the kernel shows them: hence the escapes of URLs.
    source = quote_from_bytes(os.fsencode(request.repository), safe="/:@+=~")[:_SOURCE_NAME_MAX]
    options = {"ro", "nosuid", "nodev", f"fsname=histfs:{source}", "subtype=histfs"}
    if request.allow_other:
        options |= {"allow_other", "default_permissions"}
    return options


def _allow_many_open_files() -> None:
    """As many as may be: each file that is open in the mount is open here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
