"""Where file systems are mounted, as proc(5) has it in mountinfo; nothing is known where the kernel does not tell."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from histfs.store.entry import is_below


class Mount(NamedTuple):
    """What is mounted at `place`: the directory `root` of the file system on `device`."""

    place: bytes
    device: bytes
    root: bytes


def mounts() -> Iterator[Mount]:
    """All that this process sees, in the order in which they were made."""
    with suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            _, _, device, root, place, *_ = line.split(b" ")
            yield Mount(_unquoted(place), device, _unquoted(root))


def _unquoted(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), text)


def is_same_place_or_below(path: Path, directory: Path) -> bool:
    """Whether the file system has `path` in `directory`, also where that is mounted somewhere else.

    `path` need not be there.
    """
    inner, outer = os.path.realpath(os.fsencode(path)), os.path.realpath(os.fsencode(directory))
    if is_below(inner, outer):
        return True
    known = list(mounts())
    there, here = _mount_of(inner, known), _mount_of(outer, known)
    return (
        there is not None
        and here is not None
        and there.device == here.device
        and is_below(_on_device(inner, there), _on_device(outer, here))
    )


def are_on_one_mount(one: Path, other: Path) -> bool:
    """Whether the kernel would move something from one place to the other. Neither need be there."""
    known = list(mounts())
    found = [_mount_of(os.path.realpath(os.fsencode(each)), known) for each in (one, other)]
    return found[0] == found[1]


def _mount_of(path: bytes, known: list[Mount]) -> Mount | None:
    """What `path`, without links in it, is on."""
    within = [mount for mount in known if is_below(path, mount.place.rstrip(b"/"))]
    longest = max((len(mount.place) for mount in within), default=0)
    return next((mount for mount in reversed(within) if len(mount.place) == longest), None)  # of several the last


def _on_device(path: bytes, mount: Mount) -> bytes:
    return mount.root.rstrip(b"/") + path[len(mount.place.rstrip(b"/")) :]
