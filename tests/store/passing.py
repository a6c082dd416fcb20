"""Sources that change at random, and what the sessions of a repository have made of them: for passing over."""

import gzip
import os
import random
import shutil
from pathlib import Path

from histfs.store.entry import AclEntry
from histfs.store.format import posix_acl
from tests.comparison import read
from tests.store.sessions import Sessions
from tests.trees import Dir, Fifo, File, Node, Symlink

NAMES = [b"a", b"a.b", b"a b", b"A", b"\xff", b"b\\n", b"b\nc", b"d", b"d.e", b"-", b"x" * 200]


def ledger(sessions: Sessions) -> Path:
    return sessions.data / "histfs/ledger"


def of_session(sessions: Sessions) -> dict[bytes, object]:
    """All that is in a repository, but what is derived, who wrote it, and when."""
    found: dict[bytes, object] = {}
    for path, attributes in read(sessions.repository).items():
        if path.startswith((b"rdiff-backup-data/histfs", b"rdiff-backup-data/session_statistics")):
            continue
        if path.startswith(b"rdiff-backup-data/") and attributes.type == "file":
            data = (sessions.repository / os.fsdecode(path)).read_bytes()
            found[path] = gzip.decompress(data) if path.endswith(b".gz") else data
        elif not path.startswith(b"rdiff-backup-data"):
            found[path] = attributes._replace(mtime=0) if attributes.type == "symlink" else attributes
    return found


def grow(random_: random.Random, depth: int = 0) -> Dir:
    entries: dict[str | bytes, Node] = {}
    for name in random_.sample(NAMES, random_.randint(0, 7)):
        kind = random_.randrange(10)
        if kind < 4 and depth < 4:
            entries[name] = grow(random_, depth + 1)
        elif kind < 8:
            entries[name] = File(random_.randbytes(random_.randint(0, 50)))
        else:
            entries[name] = Symlink(b"somewhere") if kind == 8 else Fifo()
    return Dir(entries)


def disturb(random_: random.Random, top: Path, number: int) -> None:
    """Some changes of a tree, of every kind."""
    for _ in range(random_.randint(0, 6)):
        places = [Path(os.fsdecode(place)) for place, _, _ in os.walk(os.fsencode(top))]
        place = random_.choice(places)
        there = sorted(place.iterdir())
        path = random_.choice(there) if there else place / "new"
        what = random_.randrange(11)
        if what == 0:
            (place / os.fsdecode(random_.choice(NAMES) + b"%d" % number)).write_bytes(random_.randbytes(30))
        elif what == 1 and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif what == 2 and path.is_file() and not path.is_symlink():
            path.write_bytes(random_.randbytes(random_.randint(0, 50)))
        elif what == 3 and there and (path.is_symlink() or not path.is_dir()):
            path.unlink()
        elif what == 4 and there and not path.is_symlink():
            path.chmod(random_.choice([0o700, 0o755, 0o750]) if path.is_dir() else random_.choice([0o600, 0o644]))
        elif what == 5:
            (place / f"made{number}{random_.randrange(9)}").mkdir(exist_ok=True)
        elif what == 6 and path.is_file() and not path.is_symlink():
            with_other_name = place / f"link{number}{random_.randrange(99)}"
            if not os.path.lexists(with_other_name):
                os.link(path, with_other_name)
        elif what == 7 and there:
            other = place / f"moved{number}{random_.randrange(99)}"
            if not os.path.lexists(other):
                path.rename(other)
        elif what == 8 and path.is_file() and not path.is_symlink():
            os.setxattr(path, "user.test", random_.randbytes(9))
        elif what == 9 and path.is_file() and not path.is_symlink():
            set_list(path, *range(random_.randrange(3)))
        elif what == 10 and places[0] != place:
            path = place.with_name(f"moved{number}{random_.randrange(99)}")
            if not os.path.lexists(path):
                place.rename(path)


def set_list(path: Path, *users: int) -> None:
    """An access control list that lets some others read the file."""
    named_here = [AclEntry(b"user", user, 4) for user in users]
    base = [AclEntry(b"user", None, 6), AclEntry(b"group", None, 4), AclEntry(b"mask", None, 4)]
    os.setxattr(path, posix_acl.ACCESS, posix_acl.format_posix_acl([*base, *named_here, AclEntry(b"other", None, 4)]))
