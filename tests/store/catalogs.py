"""What tests of the catalog share: the tree that it shows, the one that a snapshot lists, and its rows to compare."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import DamagedError
from histfs.store.catalog import LIVE, Access, Catalog, Listed, Version, open_catalog
from histfs.store.entry import Entry
from histfs.store.repository import Repository


def versions_at(catalog: Catalog, time: int, *, is_at_rest: bool = True) -> Iterator[Version]:
    """Every version of the tree at a session, parents first, found as a mount finds them.

    What different questions are answered is compared, unless a session may come in between: whether a version is still
    the newest is then another answer.
    """
    pending = [catalog.root(time)]
    while pending:
        version = pending.pop()
        yield version
        if version.is_directory:
            after = None
            below = []
            while page := catalog.children(version.directory, time, after, 3):
                oldest = catalog._oldest
                names = list(catalog.names(version.directory, time, after, 3))
                assert [found.name for found in names] == [child.name for child in page]
                below += page
                after, first = page[-1].name, after
                if not is_at_rest:
                    continue
                tags = [catalog.tag(child.directory) if child.directory else None for child in page]
                expected = [listed(child, tag, oldest) for child, tag in zip(page, tags, strict=True)]
                assert names == expected
                changed = list(catalog.changed_access(version.directory, time, first, 3))
                assert changed == [pair for child in page for pair in changed_access(catalog, child)]
            pending += reversed(below)


def listed(version: Version, tag: int | None, oldest: int) -> Listed:
    """What a listing shows of a version."""
    kind, mtime_s, size_bytes = stat.S_IFMT(version.mode), version.mtime_s, version.size_bytes
    is_plain = version.link is None and kind not in (stat.S_IFCHR, stat.S_IFBLK)
    if kind == stat.S_IFLNK:
        mtime_s, size_bytes = max(version.first, oldest), len(version.target or b"")
        is_plain = is_plain and version.last == LIVE
    ids = version.uid, version.gid
    return Listed(
        version.number,
        version.name,
        version.mode,
        *ids,
        size_bytes,
        mtime_s,
        version.target,
        None if version.sha1 is None else bytes.fromhex(version.sha1.decode()),
        version.last == LIVE and version.alternate_mirror is None,
        version.directory,
        tag,
        is_plain,
        version.extras,
    )


def changed_access(catalog: Catalog, version: Version) -> list[tuple[bytes, Access, Access]]:
    """What a listing says of another version at the same path in the newest session."""
    if version.last == LIVE:
        return []
    newest = [access_of(other) for other in catalog.versions(version.parent, version.name) if other.last == LIVE]
    assert version.link is not None or catalog.newest_access(version) == newest
    assert set(newest) <= set(catalog.newest_access(version))
    return [(version.name, access_of(version), other) for other in newest]


def access_of(version: Version) -> Access:
    return Access(version.mode, version.uid, version.gid, version.extras)


def entries_at(catalog: Catalog, time: int, *, is_at_rest: bool = True) -> list[Entry]:
    return [catalog.entry(version) for version in versions_at(catalog, time, is_at_rest=is_at_rest)]


def recorded(repository: Repository, time: int) -> list[Entry]:
    """What the lists say, in the words of the catalog: without names of owners, with the digest of the group."""
    snapshot = repository.snapshot(time)
    try:
        nodes = list(snapshot.listing().nodes())
    finally:
        snapshot.close()
    digests = {node.inode_row: node.sha1 for node in reversed(nodes) if node.sha1 is not None}
    return [
        node.entry._replace(
            uname=None, gname=None, resource_fork=None, carbon_file=None, sha1=node.sha1 or digests.get(node.inode_row)
        )
        for node in nodes
    ]


def assert_same_trees(catalog: Catalog, repository: Repository) -> None:
    """Every session's tree is the one that its lists say; what cannot be read cannot be read in both."""
    assert catalog.sessions == repository.sessions()
    for time in repository.sessions():
        try:
            expected = recorded(repository, time)
        except DamagedError:
            expected = None
        try:
            found = entries_at(catalog, time)
        except DamagedError:
            found = None
        if found is not None and expected is not None:  # a group may have lost its digest since
            expected = [
                one._replace(sha1=None) if other.sha1 is None and one.link_group else one
                for one, other in zip(expected, found, strict=True)
            ]
        assert found == expected, (
            time,
            [pair for pair in zip(found or [], expected or [], strict=False) if pair[0] != pair[1]][:2],
        )


def rows(catalog: Catalog) -> dict[str, Any]:
    """All that is in the database, with paths in the place of the ids, which are private to it."""
    database = catalog._database
    paths = {number: catalog.path(number) for (number,) in database.execute("select id from directory")}
    paths[0] = None
    return {
        "directories": {paths[number]: tag for number, tag in database.execute("select id, tag from directory")},
        "versions": sorted(
            (paths[row[0]] or b"", row[1], *row[2:5], paths[row[5]] if row[5] else b"", *map(repr, row[6:]))
            for row in database.execute("select * from version")
        ),
        "extras": database.execute("select * from extras order by id").fetchall(),
        "sessions": database.execute("select * from session order by time").fetchall(),
        "newest": database.execute("select * from state").fetchall(),
    }


def own_rows(repository: Path) -> dict[str, Any]:
    """The rows of the catalog in the repository, which must be up to date."""
    with Repository.open(repository) as opened, open_catalog(opened, progress=pytest.fail) as catalog:
        return rows(catalog)


def fresh_rows(repository: Path) -> dict[str, Any]:
    """The rows of a catalog that is made now, from nothing."""
    with Repository.open(repository) as opened:
        opened.distrust_catalog()
        with open_catalog(opened) as catalog:
            return rows(catalog)
