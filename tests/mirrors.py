"""What the mirror of a repository holds, by the names that its names on disk mean."""

from pathlib import Path

from histfs.store.format.quoting import Quoting
from tests import comparison
from tests.comparison import Manifest

DATA = "rdiff-backup-data"


def read_mirror(repository: Path) -> Manifest:
    """A manifest of the mirror, without what long names have elsewhere."""
    data = repository / DATA
    chars, words = ((data / name).read_bytes() for name in ("chars_to_quote", "special_escapes"))
    unquote = Quoting.parse(chars, words).unquote
    return {
        unquote(path): found._replace(links=None if found.links is None else tuple(sorted(map(unquote, found.links))))
        for path, found in comparison.read(repository, leaving_out=DATA.encode()).items()
    }
