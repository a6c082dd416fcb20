"""What readers make of every version in a repository that may be damaged: its digest, or that there is an error."""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import NamedTuple, TypeVar

from histfs.errors import DamagedError, HistfsError
from histfs.store.catalog import open_catalog
from histfs.store.entry import Kind
from histfs.store.repository import Repository
from histfs.store.verify_all import verify_all
from histfs.vfs import TOP_TAG, Child, History, NotReadyError, directory_inode

_T = TypeVar("_T")
Found = dict[tuple[int, bytes], str]
ERROR = "error"


class Verified(NamedTuple):
    """Which versions `verify --all` names, of which sessions' lists it says that they are damaged, and what it says."""

    versions: set[tuple[int, bytes]]
    sessions: set[int | None]
    sentences: list[str]


def through_snapshots(repository: Path, sessions: tuple[int, ...]) -> Found:
    """As `restore` reads. The key (session, b"") is there where its list cannot be read."""
    found: Found = {}
    try:
        opened = Repository.open(repository)
    except HistfsError:
        return {(at, b""): ERROR for at in sessions}
    with opened:
        for at in sessions:
            try:
                with closing(opened.snapshot(at)) as snapshot:
                    for node in snapshot.listing().nodes():
                        if node.entry.kind is Kind.REGULAR:
                            found[at, node.entry.path] = _read(snapshot.open, node.entry, node.sha1)
            except HistfsError:
                found[at, b""] = ERROR
    return found


def _read(open_: object, *arguments: object) -> str:
    digest = hashlib.sha1()
    try:
        with open_(*arguments) as content:  # type: ignore[operator]
            for block in content.blocks():
                digest.update(block)
    except HistfsError as error:
        return ERROR if str(error).isprintable() else "what cannot be printed"
    return digest.hexdigest()


def through_vfs(repository: Path, sessions: tuple[int, ...]) -> Found:
    """As a mount reads, in this process. A directory that cannot be listed is an error under its path with a slash."""
    found: Found = {}
    logging.getLogger("histfs").setLevel(logging.CRITICAL)
    try:
        with Repository.open(repository) as opened:
            history = History(opened, lambda: open_catalog(opened), UTC)
            try:
                history.update()
                times = history.names().values()
                for at in sessions:
                    if at not in times:
                        found[at, b"/"] = ERROR
                known: dict[int, str] = {}  # a version is read once, as the kernel does
                for at in times:
                    _walk(history, directory_inode(at, TOP_TAG), b"", at, found, known)
            finally:
                history.close()
    except HistfsError:
        return {(at, b"/"): ERROR for at in sessions}
    finally:
        logging.getLogger("histfs").setLevel(logging.NOTSET)
    return found


def _asked(history: History, ask: Callable[[], _T]) -> _T:
    """As a mount asks: when the catalog turns out to be damaged another one is made."""
    try:
        return ask()
    except NotReadyError:
        history.update()
        return ask()
    except DamagedError:
        if not history.is_current:
            raise
        history.update()
        return ask()


def _walk(history: History, directory: int, path: bytes, at: int, found: Found, known: dict[int, str]) -> None:
    try:
        for each in _children(history, directory):
            below = os.path.join(path, each.name)
            if stat.S_ISDIR(each.attributes.mode):
                _walk(history, each.attributes.inode, below, at, found, known)
            elif stat.S_ISREG(each.attributes.mode):
                inode = each.attributes.inode
                if inode not in known:
                    known[inode] = _pread(history, inode)
                found[at, below] = known[inode]
    except HistfsError:
        found[at, path + b"/"] = ERROR


def _children(history: History, inode: int) -> Iterator[Child]:
    offset = 0
    while page := _asked(history, lambda: history.children(inode, offset, 100)):  # noqa: B023 - asked at once
        yield from (each for each in page if each.name not in (b".", b".."))
        offset = page[-1].offset


def _pread(history: History, inode: int) -> str:
    digest = hashlib.sha1()
    try:
        file = _asked(history, lambda: history.open(inode))
        assert file is not None
        with closing(file.content) as content:
            at = 0
            while block := content.pread(1 << 17, at):
                digest.update(block)
                at += len(block)
    except HistfsError as error:
        return ERROR if str(error).isprintable() else "what cannot be printed"
    return digest.hexdigest()


def through_verify(repository: Path) -> Verified:
    reports: list[HistfsError] = []
    try:
        with Repository.open(repository) as opened:
            outcome = verify_all(opened, b"", report=reports.append)
    except HistfsError as error:
        return Verified(set(), {None}, [str(error)])
    return Verified(
        {(at, finding.path) for finding in outcome.findings for at in finding.sessions},
        {problem.at for problem in outcome.problems},
        list(map(str, reports)),
    )
