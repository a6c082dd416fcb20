"""The users and groups of this computer, by name and by number. Asked once each: a directory service may be slow."""

import grp
import os
import pwd
from functools import lru_cache
from pathlib import Path

from histfs.errors import FormatError, UsageError
from histfs.store.entry import Acl
from histfs.store.format.posix_acl import Resolved, completed, resolve
from histfs.store.owners import Accounts, Owners, parse_mapping

_LARGEST_MAPPING_BYTES = 16 << 20


@lru_cache(maxsize=1024)
def user_name(uid: int) -> bytes | None:
    try:
        return _recordable(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return None


@lru_cache(maxsize=1024)
def group_name(gid: int) -> bytes | None:
    try:
        return _recordable(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError):
        return None


def _recordable(name: str) -> bytes | None:
    """ASCII names only: other readers of the format drop records with more (docs/format.md 8.3, rule 7)."""
    return name.encode("ascii") if name.isascii() and name.isprintable() and name and name != ":" else None


@lru_cache(maxsize=1024)
def user_number(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(os.fsdecode(name)).pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in a hostile record
        return None


@lru_cache(maxsize=1024)
def group_number(name: bytes) -> int | None:
    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid
    except (KeyError, ValueError):
        return None


BY_NAME = Owners(Accounts(user_number), Accounts(group_number))


def mapped_owners(user_mapping: Path | None, group_mapping: Path | None) -> Owners:
    """Owners by name, but for what the files of lines `old:new` say. Raises UsageError."""
    return Owners(
        Accounts(user_number, {} if user_mapping is None else _read_mapping(user_mapping)),
        Accounts(group_number, {} if group_mapping is None else _read_mapping(group_mapping)),
    )


def resolved(acl: Acl, owners: Owners) -> Resolved:
    """`acl` with the numbers that those whom it names have here; names without a number count in any case."""
    users, groups = owners.users or Accounts(user_number), owners.groups or Accounts(group_number)
    return resolve(acl, users.find, groups.find)


def numbered(acl: Acl, mode: int) -> Acl:
    """`acl`, of a file of this mode, such that equal lists are equal: names are numbers where they are known here."""
    entries = []
    for entry in completed(acl, mode):
        if isinstance(entry.qualifier, bytes):
            number = (user_number if entry.tag == b"user" else group_number)(entry.qualifier)
            entry = entry if number is None else entry._replace(qualifier=number)
        entries.append(entry)
    return tuple(sorted(entries, key=repr))


def _read_mapping(path: Path) -> dict[bytes, bytes]:
    try:
        with path.open("rb") as file:  # not a pipe's worth of everything: a mapping is small
            text = file.read(_LARGEST_MAPPING_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"the mapping cannot be read ({exc.strerror})", path=path) from exc
    if len(text) > _LARGEST_MAPPING_BYTES:
        raise UsageError("is too large to be a mapping of owners", path=path)
    try:
        return parse_mapping(text)
    except FormatError as exc:
        raise UsageError(exc.problem, path=path, advice="each line is OLD:NEW, names or numbers") from exc
