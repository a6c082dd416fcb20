"""Where a mount may be, what is mounted there now, and how it is taken away again.

The kernel's own table, /proc/self/mountinfo (proc_pid_mountinfo(5)), is believed, not the paths: a directory can
be reached by symbolic links and bind mounts, and a mount whose process has died cannot even be looked at.

Rules:
- The mount must never need itself: if the repository, the log or the temporary files lay below the mount point, the
  process would wait for its own answer, and with it everybody who looks at the mount.
- Nothing is mounted over another mount of ours, and nothing is unmounted that is not of ours.
"""

import errno
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

from histfs.errors import MountError, UsageError, printable, quoted

FILE_SYSTEM = "fuse.histfs"
FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONFIGURATION = Path("/etc/fuse.conf")
_MOUNT_TABLE = Path("/proc/self/mountinfo")
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
WITHOUT_FUSE = "`histfs restore` works without FUSE"
_STACK_MAX = 100  # dead mounts on top of each other that are cleaned up
_ANSWER_WITHIN_S = 5.0
_GONE_AFTER_S = 10.0
_LOOK_EVERY_S = 0.02


class Mounted(NamedTuple):
    """A line of the kernel's table."""

    mount_id: int
    device: bytes  # "major:minor" of the file system
    root: bytes  # the directory within the file system that is mounted
    point: bytes  # where
    type: str
    source: bytes
    owner: int | None  # the user who mounted it, for FUSE


def parse_mount_table(text: bytes) -> list[Mounted]:
    """The mounts in the order of mounting: of two with one mount point the later covers the earlier."""
    return [_parse_line(line) for line in text.splitlines()]


def _parse_line(line: bytes) -> Mounted:
    before, _, after = line.partition(b" - ")
    mount_id, _, device, root, point = before.split(b" ")[:5]
    kind, source, options = after.split(b" ")[:3]
    owner = re.search(rb"(?:^|,)user_id=(\d+)", options)
    return Mounted(
        int(mount_id),
        device,
        _unescape(root),
        _unescape(point),
        kind.decode(),
        _unescape(source),
        int(owner[1]) if owner else None,
    )


def _unescape(field: bytes) -> bytes:
    """Spaces, tabs, line breaks and backslashes are octal escapes in the table."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def resolved(mountpoint: Path) -> Path:
    """`mountpoint` without symbolic links. Does not look at it if something is mounted there: that might not answer."""
    absolute = os.path.abspath(mountpoint)
    parent, name = os.path.split(absolute)
    candidate = Path(os.path.realpath(parent), name)
    return candidate if mounted_at(candidate) else Path(os.path.realpath(absolute))


def mounted_at(point: Path) -> Mounted | None:
    """What is mounted at the resolved path `point`: the uppermost, if several are."""
    found = [mounted for mounted in parse_mount_table(_MOUNT_TABLE.read_bytes()) if mounted.point == os.fsencode(point)]
    return found[-1] if found else None


# Whether one directory lies in another


def is_inside(inner: Path, outer: Path) -> bool:
    """Whether the directory or file `inner` is or lies in the directory `outer`, by whatever path. Resolved paths."""
    return (
        inner.is_relative_to(outer)
        or any(_is_same(ancestor, outer) for ancestor in (inner, *inner.parents))
        or _is_below(_in_file_system(inner), _in_file_system(outer))
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return False


def _in_file_system(path: Path) -> tuple[bytes, bytes]:
    """The file system that holds `path`, and the path within it: equal for all bind mounts of one directory."""
    wanted = os.fsencode(path)
    holder = None
    for mounted in parse_mount_table(_MOUNT_TABLE.read_bytes()):
        if _is_prefix(mounted.point, wanted) and (holder is None or len(mounted.point) >= len(holder.point)):
            holder = mounted
    if holder is None:  # a chroot may hide the mount that everything is on
        return b"", wanted
    rest = wanted[len(holder.point) :].lstrip(b"/")
    return holder.device, (holder.root.rstrip(b"/") + b"/" + rest).rstrip(b"/") or b"/"


def _is_prefix(directory: bytes, path: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _is_below(inner: tuple[bytes, bytes], outer: tuple[bytes, bytes]) -> bool:
    return inner[0] == outer[0] and _is_prefix(outer[1], inner[1])


# Before mounting


def check_overlap(
    mountpoint: Path, repository: Path, temporary: Path, log_file: Path | None, cache: Path | None = None
) -> None:
    """UsageError if the mount would need itself, or write into the repository. Resolved paths."""
    advice = "choose a mount point elsewhere"
    if is_inside(mountpoint, repository):
        raise UsageError("the mount point lies in the repository", path=mountpoint, advice=advice)
    if is_inside(repository, mountpoint):
        raise UsageError("the repository lies below the mount point", path=repository, advice=advice)
    places = [("temporary files", temporary, "set TMPDIR to another directory")]
    if log_file is not None:
        places.append(("the log", log_file, "choose another --log-file"))
    if cache is not None:
        places.append(("the cache of catalogs", cache, "set XDG_CACHE_HOME to another directory"))
    for what, place, remedy in places:
        if is_inside(place, mountpoint):
            raise UsageError(f"{what} would lie below the mount point", path=place, advice=remedy)
        if is_inside(place, repository):
            raise UsageError(f"{what} would lie in the repository, which is only read", path=place, advice=remedy)


def check_fuse(*, allow_other: bool, configuration: Path = FUSE_CONFIGURATION) -> None:
    """MountError if this machine or this user cannot mount."""
    if not FUSE_DEVICE.exists():
        raise MountError(
            "there is no such device, so nothing can be mounted",
            path=FUSE_DEVICE,
            advice=f"load the kernel's module with `modprobe fuse`, or give your container the device; {WITHOUT_FUSE}",
        )
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        advice = f"install the package fuse3; {WITHOUT_FUSE}"
        raise MountError("the program fusermount3 is missing", advice=advice)
    if allow_other and not _others_are_allowed(configuration):
        raise UsageError(
            "users may not use --allow-other on this machine",
            path=configuration,
            advice="ask root to write the line user_allow_other into this file",
        )


def _others_are_allowed(configuration: Path) -> bool:
    try:
        lines = configuration.read_bytes().splitlines()
    except OSError:
        return False
    return b"user_allow_other" in (line.strip() for line in lines)


def clear_dead_mounts(mountpoint: Path) -> None:
    """Take away mounts of ours at `mountpoint` whose process has died.

    UsageError if one is alive, or if a dead one is of another program; MountError if it cannot be taken away.
    """
    for _ in range(_STACK_MAX):
        found = mounted_at(mountpoint)
        if found is None or (_is_alive(mountpoint) and found.type != FILE_SYSTEM):
            return
        source = printable(found.source)
        if found.type != FILE_SYSTEM:
            raise UsageError(f"a mount of {source} that no longer answers is there", path=mountpoint)
        if _is_alive(mountpoint):
            raise UsageError(
                f"is mounted already ({source})",
                path=mountpoint,
                advice=f"`histfs umount {quoted(mountpoint)}` ends it",
            )
        _detach(mountpoint, lazy=True)
    raise MountError("too many dead mounts lie on top of each other", path=mountpoint)


def _is_alive(mountpoint: Path) -> bool:
    """Whether there is a process behind the mount; it may be slow or stopped.

    It is asked in a thread, since an answer may never come. Unlike stat(2), statvfs(3) is not answered from a cache.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            os.statvfs(mountpoint)
        except OSError as exc:
            answers.append(exc.errno not in _DEAD)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_WITHIN_S)
    return all(answers)


def check_directory(mountpoint: Path) -> None:
    """UsageError unless `mountpoint` is an empty directory."""
    try:
        names = os.listdir(mountpoint)
    except FileNotFoundError:
        raise UsageError("there is no such directory to mount on", path=mountpoint, advice="make it first") from None
    except NotADirectoryError:
        raise UsageError("is not a directory, so nothing can be mounted on it", path=mountpoint) from None
    except OSError as exc:
        raise MountError(f"cannot be used as mount point: {exc.strerror}", path=mountpoint) from exc
    if names:
        raise UsageError("is not empty: its content would be hidden", path=mountpoint, advice="take an empty one")


# Afterwards


def unmount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount what histfs has mounted at `mountpoint`, also if its process has died; returns when it is gone.

    `lazy`: take it away now, also if it is in use; its process ends with the last open file. UsageError, MountError.
    """
    point = resolved(mountpoint)
    found = mounted_at(point)
    if found is None:
        raise UsageError("nothing is mounted there", path=mountpoint)
    if found.type != FILE_SYSTEM:
        raise UsageError(f"is a mount of the type {found.type}, not of histfs", path=mountpoint, advice="use umount")
    if os.geteuid() not in (0, found.owner):
        raise MountError("was mounted by another user, who alone can unmount it", path=mountpoint, advice="or root can")
    _detach(point, lazy=lazy)
    deadline = time.monotonic() + _GONE_AFTER_S
    while (still := mounted_at(point)) is not None and still.mount_id == found.mount_id:
        if time.monotonic() > deadline:
            raise MountError("is still mounted", path=mountpoint)
        time.sleep(_LOOK_EVERY_S)


def _detach(point: Path, *, lazy: bool) -> None:
    if shutil.which("fusermount3") is not None:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(point)]
    elif os.geteuid() == 0:
        command = ["umount", *(["--lazy"] if lazy else []), "--", str(point)]
    else:
        raise MountError("the program fusermount3 is missing", advice="install the package fuse3")
    done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode == 0:
        return
    said = printable(done.stderr.strip())
    if "busy" in said:
        raise MountError(
            "is busy: a program has a file open in it, or works in one of its directories",
            path=point,
            advice=f"`fuser -vm {quoted(point)}` shows who, and `histfs umount --lazy` takes it away all the same",
        )
    raise MountError(f"cannot be unmounted: {said}", path=point)
