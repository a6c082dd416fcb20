"""Small files of one directory, in the mirror and of old, many at once: a thousandth of a second for dozens of them.

Each is made in memory and compared with its SHA1, and not in Python (`rsync.make_small`). What cannot be made so, or is
not what it should be, is left to who opens versions one by one and finds out why.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from histfs import rsync
from histfs.store import plan
from histfs.store.entry import Kind, join
from histfs.store.layout import INCREMENTS

if TYPE_CHECKING:
    from histfs.store.repository import Repository


SMALL_BYTES = 128 << 10  # of a file that is read as a whole when it is opened


class Known(Protocol):
    """What a list or a catalog says of a file."""

    @property
    def kind(self) -> Kind: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha1(self) -> bytes | None: ...
    @property
    def alternate_mirror(self) -> int | None: ...
    @property
    def alternate_increment(self) -> int | None: ...


def is_small(known: Known) -> bool:
    """Whether it is a small file with a digest that lies, and whose increments lie, where its name says."""
    is_in_place = known.alternate_mirror is None and known.alternate_increment is None
    return is_in_place and known.sha1 is not None and known.kind is Kind.REGULAR and known.size_bytes <= SMALL_BYTES


class SmallFile(NamedTuple):
    """A file that is to be read as a whole, which is no link of others and has no number in the place of a name."""

    name: bytes
    size_bytes: int
    sha1: bytes  # not as hex digits
    at: int | None = None  # the time of a session that recorded it; None: the newest, of which the mirror is


def read_small(repository: "Repository", directory: bytes, files: Sequence[SmallFile]) -> list[rsync.Made | None]:
    """The contents of files in one directory of the source; None for one that was not made."""
    try:
        return _read(repository, directory, files)
    except (OSError, rsync.RsyncError):
        return [None] * len(files)


def _read(repository: "Repository", directory: bytes, files: Sequence[SmallFile]) -> list[rsync.Made | None]:
    quoted = repository.layout.quoted(directory)
    increments = join(INCREMENTS, quoted) if quoted else INCREMENTS
    versions, places = [], []
    for place, file in enumerate(files):
        links = _links(repository, increments, file)
        if links is not None and len(file.sha1) == 20:
            versions.append(rsync.SmallVersion(file.size_bytes, file.sha1, links))
            places.append(place)
    read: list[rsync.Made | None] = [None] * len(files)
    if versions:
        needed = {link.in_mirror for version in versions for link in version.links}
        with repository.tree.directories(
            *[quoted if is_mirror else increments for is_mirror in sorted(needed)]
        ) as opened:
            for place, made in zip(places, rsync.make_small(opened[-1], opened[0], versions), strict=True):
                read[place] = made
    return read


def _links(repository: "Repository", increments: bytes, file: SmallFile) -> list[rsync.Link] | None:
    """What a file is made of; None where that has no place here."""
    name = repository.layout.quoting.quote(file.name)
    live = rsync.Link(name, in_mirror=True)
    if file.at is None:
        return [live]
    found = repository.shared.listings.find_named(increments, file.name)
    chain = plan.chain([increment for increment in found if increment.time >= file.at], file.at)
    if isinstance(chain, plan.Increment) or len(chain.diffs) >= rsync.MOST_LINKS:
        return None
    first = live if chain.snapshot is None else _link(chain.snapshot)
    return [first, *map(_link, chain.diffs)]


def _link(increment: plan.Increment) -> rsync.Link:
    return rsync.Link(increment.path.rpartition(b"/")[2], is_compressed=increment.is_compressed)
