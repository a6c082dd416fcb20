"""A history that is known: what each file was at each session, as bytes in memory."""

import os
import random
import time
from pathlib import Path

from histfs.store.backup import backup
from histfs.store.remove import remove_sessions

FIRST, DAY = 1_714_557_600, 86_400


def name_of(session_time):
    """The directory of a session in a mount with --utc."""
    return time.strftime("@%Y-%m-%dT%H:%M", time.gmtime(session_time))


class Past:
    """A source and its repository. `files[name]` are the contents at a session, by path; sessions share what is equal.

    Each session changes pages of an image, inserts into a document, adds to a log, and rewrites a few of many small
    files, so that the first one is at the end of long chains.
    """

    def __init__(self, place: Path, *, image_bytes=2 << 20, small=100, seed=1):
        self.source, self.repository = place / "source", place / "repository"
        self.files: dict[str, dict[str, bytes]] = {}
        self.now = FIRST - DAY
        self.random = random.Random(seed)
        self.current = {
            "image": self.random.randbytes(image_bytes),
            "document": self.random.randbytes(image_bytes // 8),
            "log": b"",
            "d/e/f/deep": b"deep",
            "empty": b"",
            **{f"small/{number:04}": b"%d " % number * (number % 50 + 1) for number in range(small)},
        }
        for path, content in self.current.items():
            self._write(path, content)

    @property
    def names(self):
        return list(self.files)

    def session(self, **changes: bytes):
        """Change something, and back it up; the name of the session."""
        if self.files:
            self._change()
        for path, content in changes.items():
            self._write(path, content)
        self.now += DAY
        backup(self.source, self.repository, now=self.now, report=_raise)
        self.files[name_of(self.now)] = dict(self.current)
        return name_of(self.now)

    def remove_oldest(self, kept: int):
        """Remove all but the newest sessions; the names of the others."""
        gone = self.names[:-kept]
        remove_sessions(self.repository, self.now - (kept - 1) * DAY)
        for name in gone:
            del self.files[name]
        return gone

    def _change(self):
        image = bytearray(self.current["image"])
        for _ in range(3):
            at = self.random.randrange(len(image) // 4096) * 4096
            image[at : at + 4096] = self.random.randbytes(4096)
        self._write("image", bytes(image))
        document = self.current["document"]
        at = self.random.randrange(len(document))
        self._write("document", document[:at] + self.random.randbytes(50) + document[at:])
        self._write("log", self.current["log"] + b"line %d of many\n" % len(self.files) * 500)
        small = [path for path in self.current if path.startswith("small/")]
        for path in self.random.sample(small, min(5, len(small))):
            self._write(path, self.random.randbytes(self.random.randrange(1, 3000)))

    def _write(self, path, content):
        place = self.source / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        self.current[path] = content

    def check(self, mountpoint: Path, name: str, path: str):
        """Read a file as a whole and compare."""
        assert (mountpoint / name / path).read_bytes() == self.files[name][path], (name, path)

    def check_large(self, mountpoint: Path):
        """Read all large files of all sessions: all that is kept open is open then."""
        for name in self.names:
            self.check(mountpoint, name, "image")
            self.check(mountpoint, name, "document")

    def check_some(self, mountpoint: Path, seed: int, count: int, path=None):
        """Read `count` times a file of any session, as a whole or anywhere in it, and compare."""
        draw = random.Random(seed)
        for _ in range(count):
            name = draw.choice(self.names)
            chosen = path or draw.choice(sorted(self.files[name]))
            if draw.random() < 0.3:
                self.check(mountpoint, name, chosen)
                continue
            content = self.files[name][chosen]
            fd = os.open(mountpoint / name / chosen, os.O_RDONLY)
            try:
                for _ in range(3):
                    at, size = draw.randrange(len(content) + 5000), draw.randrange(1, 200_000)
                    assert os.pread(fd, size, at) == content[at : at + size], (name, chosen, at, size)
            finally:
                os.close(fd)


def _raise(error):
    raise error
