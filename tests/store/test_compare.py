"""Comparing: what a selection excludes on one side only is no difference; attributes and access control lists."""

import gzip
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import DamagedError
from histfs.store.compare import Difference, Method
from histfs.store.entry import NO_EXTRAS, Extras
from histfs.store.selection import Option, Selection
from tests.histories import has_xattrs
from tests.store.sessions import Sessions
from tests.store.test_extras import ACCESS, DEFAULT, acl
from tests.trees import Dir, File, Node, build
from tests.users import as_ordinary_user, give_away

MARKED: dict[str | bytes, Node] = {"mark": File(), "in": File(b"in")}
SMALL, LARGE = File(b"small"), File(bytes(200))


def differences(sessions: Sessions, *rules: tuple[str, bytes]) -> list[Difference]:
    selection = Selection.parse([Option(name, value) for name, value in rules], base=b"source")
    sources = sessions.source, Path(f"{sessions.source}2")
    found = [each for source in sources for each in sessions.compare(source, selection=selection)]
    assert sessions.reported == []
    return found


@pytest.mark.parametrize(("then", "now"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_a_file_that_grew_or_shrank_over_the_limit(sessions: Sessions, then: File, now: File) -> None:
    build(sessions.source, Dir({"d": Dir({"f": then, "gone": SMALL}), "same": SMALL}, mtime=5))
    sessions.backup()
    build(Path(f"{sessions.source}2"), Dir({"d": Dir({"f": now, "new": SMALL}), "same": SMALL}, mtime=5))
    assert differences(sessions, ("max-file-size", b"100")) == [
        Difference(b"d/gone", "deleted"),
        Difference(b"d/new", "new"),
    ]


@pytest.mark.parametrize(("then", "now"), [({}, MARKED), (MARKED, {})])
def test_a_directory_that_is_excluded_on_one_side(
    sessions: Sessions, then: dict[str | bytes, Node], now: dict[str | bytes, Node]
) -> None:
    build(sessions.source, Dir({"d": Dir({"x": SMALL, **then})}))
    sessions.backup()
    build(Path(f"{sessions.source}2"), Dir({"d": Dir({"y": SMALL, **now})}))
    assert differences(sessions, ("exclude-if-present", b"mark")) == []


def test_the_repository_in_the_source_is_left_out(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": SMALL, "z": SMALL}))
    sessions.repository = sessions.source / "kept/repository"
    (sessions.source / "kept").mkdir()
    sessions.repository.mkdir()
    sessions.backup(may_report=True)
    assert sessions.compare() == []


# Extended attributes and access control lists

SOMEBODY, NAMED = 4711, pwd.getpwnam("daemon").pw_uid
READERS = acl((1, 6), (2, 4, SOMEBODY), (2, 6, NAMED), (4, 0), (16, 6), (32, 0))  # the mode says rw-rw----
OTHER_READERS = acl((1, 6), (2, 4, SOMEBODY), (2, 4, NAMED), (4, 0), (16, 6), (32, 0))
DEFAULTS = acl((1, 7), (2, 7, NAMED), (4, 5), (16, 7), (32, 5))


def dressed() -> Dir:
    tagged, listed = {"user.a": b"1", "user.b": bytes(9)}, {ACCESS: READERS}
    return Dir(
        {
            "d": Dir({"in": File(b"in", xattrs=tagged)}, xattrs={DEFAULT: DEFAULTS}),
            "listed": File(b"listed", 0o660, xattrs=listed),
            "plain": File(b"plain"),
            "tagged": File(b"tagged", xattrs=tagged),
        }
    )


@pytest.fixture
def with_extras(sessions: Sessions) -> Sessions:
    if not has_xattrs(os.fsencode(sessions.source.parent)):
        pytest.skip("the file system takes no extended attributes or no access control lists")
    build(sessions.source, dressed())
    sessions.backup()
    assert sessions.compare() == []
    return sessions


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("tagged", "user.a", b"2"),
        ("tagged", "user.a", None),
        ("plain", "user.a", b""),
        ("d/in", "user.c", b"1"),
        ("d", "user.c", b"1"),
        ("d", DEFAULT, None),
        ("listed", ACCESS, OTHER_READERS),
        ("listed", ACCESS, None),
    ],
)
def test_attributes_and_lists_are_compared(with_extras: Sessions, path: str, name: str, value: bytes | None) -> None:
    place = with_extras.source / path
    before = place.stat()
    if value is None:
        os.removexattr(place, name)
    else:
        os.setxattr(place, name, value)
    place.chmod(before.st_mode & 0o7777)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    is_file = place.is_file()
    assert with_extras.compare() == [Difference(path.encode(), "changed")]
    word = "metadata changed, data the same" if is_file else "changed"
    for method in (Method.HASH, Method.FULL):
        assert with_extras.compare(method=method) == [Difference(path.encode(), word)]
    is_list = name.startswith("system.")
    assert with_extras.compare(extras=Extras(xattrs=is_list, acls=not is_list)) == []
    assert with_extras.reported == []


def test_attributes_are_compared_below_a_path(with_extras: Sessions) -> None:
    assert with_extras.compare(with_extras.source / "d", b"d") == []
    os.setxattr(with_extras.source / "d/in", "user.a", b"2")
    assert with_extras.compare(with_extras.source / "d", b"d") == [Difference(b"in", "changed")]


@pytest.mark.parametrize("safely", [True, False])
def test_what_was_not_recorded_is_not_compared(sessions: Sessions, safely: bool) -> None:
    """Nor are modes that were recorded so that they are right without a list, or, by other programs, as they are."""
    build(sessions.source, dressed())
    sessions.backup(extras=NO_EXTRAS)
    if not safely:
        [path] = sessions.data.glob("mirror_metadata.*")
        text = gzip.decompress(path.read_bytes())
        safe, mode = (b"  Permissions %d\n" % mode for mode in (0o600, 0o660))
        assert text.count(safe) == 1
        path.write_bytes(gzip.compress(text.replace(safe, mode)))
    assert sessions.compare() == []
    (sessions.source / "listed").chmod(0o664)
    assert sessions.compare() == [Difference(b"listed", "changed")]
    assert sessions.reported == []


def test_a_damaged_list_is_reported_and_not_compared(with_extras: Sessions) -> None:
    [path] = with_extras.data.glob("access_control_lists.*")
    text = gzip.decompress(path.read_bytes())
    assert text.count(b"user:4711:r--") == 1
    path.write_bytes(gzip.compress(text.replace(b"user:4711:r--", b"user:4711:???")))
    assert with_extras.compare() == []
    assert [type(error) for error in with_extras.reported] == [DamagedError]


def test_an_attribute_that_root_alone_sees(scratch: Path) -> None:
    if os.geteuid() or not has_xattrs(os.fsencode(scratch)):
        pytest.skip("needs root, and extended attributes")
    sessions = Sessions(scratch)
    build(sessions.source, dressed())
    sessions.backup()
    os.setxattr(sessions.source / "plain", "trusted.a", b"1")
    assert sessions.compare() == [Difference(b"plain", "changed")]
    sessions.backup()
    assert sessions.compare() == []
    give_away(sessions.repository)
    scratch.chmod(0o755)

    def compare(*expected: Difference) -> Callable[[], None]:
        def compared() -> None:
            assert sessions.compare() == list(expected)

        return compared

    as_ordinary_user(compare())
    os.setxattr(sessions.source / "plain", "user.a", b"1")
    as_ordinary_user(compare(Difference(b"plain", "changed")))
    assert sessions.reported == []
