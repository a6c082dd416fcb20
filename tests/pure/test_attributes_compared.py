"""Whether a name is what a record says of it: `plan.has_recorded_attributes`."""

import pytest

from histfs.store.entry import Entry, Kind, LinkGroup
from histfs.store.plan import has_recorded_attributes

FILE = Entry(b"a", Kind.REGULAR, 0o644, 1, 2, b"anna", b"staff", 1000, 5)
LINK = Entry(b"a", Kind.SYMLINK, 0o777, 1, 2, b"anna", b"staff", target=b"x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", Kind.FIFO),
        ("mode", 0o600),
        ("uid", 9),
        ("gid", 9),
        ("uname", b"ben"),
        ("uname", None),
        ("gname", b"ben"),
        ("mtime_s", 1001),
        ("size_bytes", 6),
        ("device_number", (1, 3)),
    ],
)
def test_what_counts(field: str, value: object) -> None:
    assert has_recorded_attributes(FILE, FILE)
    assert not has_recorded_attributes(FILE, FILE._replace(**{field: value}))


def test_what_does_not_count() -> None:
    assert has_recorded_attributes(FILE._replace(uname=None, gname=None), FILE)
    assert has_recorded_attributes(FILE, FILE._replace(link_group=LinkGroup(2, 3, 4), sha1=b"0" * 40))


def test_of_symbolic_links_the_target_counts() -> None:
    assert has_recorded_attributes(LINK, LINK._replace(uid=9, uname=b"ben", mode=0o700))
    assert not has_recorded_attributes(LINK, LINK._replace(target=b"y"))
