"""Whether what was timed was right: a wrong result has no speed."""

import os
import random
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.commands import TroubleError

_LISTING = r"%P\0%y %l\0"
_LISTING_OF_FILES = r"%P\0%s\0"
_LIMIT_S = 3600


class WrongBytesError(TroubleError):
    """Not what was backed up."""


def same_trees(found: Path, truth: Path) -> None:
    """Names and all contents."""
    if differing(found, truth):
        raise WrongBytesError(f"{found} is not what was backed up")


def differing(one: Path, other: Path) -> list[str]:
    """The names below that differ between two trees, sorted: those of one alone, and files of different contents."""
    ran = subprocess.run(diff_command(one, other), capture_output=True, timeout=_LIMIT_S, check=False)
    if ran.returncode > 1:
        raise WrongBytesError(f"cannot be read: {os.fsdecode(ran.stderr[-200:])}")
    return differences(ran.stdout, one, other)


def diff_command(one: Path, other: Path) -> list[str]:
    return ["env", "LC_ALL=C", "diff", "-rq", "--no-dereference", str(one), str(other)]


def differences(output: bytes, one: Path, other: Path) -> list[str]:
    """What `diff_command` wrote, without the places of the trees."""
    return sorted(os.fsdecode(output).replace(str(one), "ONE").replace(str(other), "OTHER").splitlines())


def same_listings(found: Path, truth: Path) -> None:
    """Names, kinds and targets of links of everything, and sizes of files."""
    if _listing(found) != _listing(truth):
        raise WrongBytesError(f"the names, kinds or sizes in {found} are not those that were backed up")


def _listing(root: Path) -> list[bytes]:
    command = ["find", str(root), "(", "-type", "f", "-printf", _LISTING_OF_FILES, ")", "-o", "-printf", _LISTING]
    ran = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=False)
    if ran.returncode:
        raise WrongBytesError(f"cannot be listed: {os.fsdecode(ran.stderr[-200:])}")
    words = ran.stdout.split(b"\0")
    return sorted(b"%b %b" % pair for pair in zip(words[::2], words[1::2], strict=False))


def same_files(found: Path, truth: Path, names: Iterable[str]) -> None:
    """The contents of some files, named from the top of both trees."""
    for name in names:
        if (found / name).read_bytes() != (truth / name).read_bytes():
            raise WrongBytesError(f"{found / name} is not what was backed up")


def sample(root: Path, count: int) -> list[str]:
    """Some files of a tree, the same in every run."""
    names = sorted(
        os.path.relpath(os.path.join(directory, name), root)
        for directory, _, files in os.walk(root)
        for name in files
        if not os.path.islink(os.path.join(directory, name))
    )
    return random.Random("sample").sample(names, min(count, len(names)))


def same_pieces(pieces: Mapping[int, bytes], truth: Mapping[int, bytes]) -> None:
    """What was read at some offsets."""
    for offset, piece in pieces.items():
        if piece != truth[offset]:
            raise WrongBytesError(f"{len(piece)} bytes at {offset} are not those that were backed up")


def same_file(found: Path, truth: Path) -> None:
    if subprocess.run(["cmp", "-s", str(found), str(truth)], check=False, timeout=_LIMIT_S).returncode:
        raise WrongBytesError(f"{found} is not what was backed up")
