"""Which files to read, and which directories to list, before anybody asks: read-ahead over files, as the kernel does it
within one.

Whoever goes through a tree (tar, grep -r, cp -r, rsync) reads one small file after another, in the order of the
listings. What was read ahead is answered without Python (see `fuse`), so that nobody says here whether it was asked
for. Hence the strategy:

- Who asks for the file that comes next gets a window of those behind it, which doubles each time. One in its middle is
  left out: when it is asked for, the reader has come so far.
- Files that were asked for in the order of their listings build up trust. As long as it lasts, what a directory has is
  read as soon as it is listed. Each such directory costs trust, and when little is left, its first file is left out: if
  it is asked for, trust grows again; where names are listed and nothing is read, it is soon used up.

- Who lists one directory after the other (find, du, ls -R) goes down before it goes on. Of what comes next in that
  order a window is listed, which doubles each time that the reader has come to its end. While files are read nothing is
  listed ahead: they take longer.

Pure policy: it is told what is listed and asked for, and says what to read. To be used in one loop.
"""

from collections import OrderedDict
from collections.abc import Sequence

_FILES_REMEMBERED = 32_768  # some megabytes
_FIRST_WINDOW = 2
_LARGEST_WINDOW = 128  # files
_WINDOW_BYTES = 2 << 20
_TRUST_GAINED = 3
_SURE = 8
_MOST_TRUST = 24
_FIRST_CRAWL = 2
_LARGEST_CRAWL = 32  # directories; who asks waits for them
_CRAWLS_WAITING = 16
_MOST_TO_COME = 100_000  # directories of a crawl that are known and not listed


class Crawl:
    """A walk down a tree, ahead of somebody: take a `next_directory`, list it, and `add` what is in it."""

    def __init__(self) -> None:
        self._to_come: list[int] = []  # the next one last
        self._window = 0
        self._left = 0  # of the window

    def go_on(self, directories: Sequence[int]) -> None:
        """The reader has come to the end of the window, to a directory in which there are these."""
        self.add(directories)
        self._left = self._window = min(max(_FIRST_CRAWL, self._window * 2), _LARGEST_CRAWL)

    def add(self, directories: Sequence[int]) -> None:
        """What is in the last directory; it comes before all that is to come."""
        if len(self._to_come) + len(directories) <= _MOST_TO_COME:
            self._to_come.extend(reversed(directories))

    def next_directory(self) -> int | None:
        """None at the end of the window."""
        if not self._left or not self._to_come:
            return None
        self._left -= 1
        return self._to_come.pop()

    def take_marker(self) -> int | None:
        """The first directory behind the window, which is left out to hear of the reader; None if there is none."""
        return self._to_come.pop() if self._to_come else None


class _Directory:
    """What a directory lists that is worth reading ahead, and how far that has come."""

    def __init__(self, files: Sequence[tuple[int, int]]) -> None:
        self.files = files  # inode and size, in the order of the listing
        self.next = 0  # everything before was asked for, or is read ahead
        self.marker = 0  # the one that was left out, to hear of the reader
        self.window = 0

    def take(self, count: int) -> list[int]:
        """The next `count` inodes, or fewer with many bytes."""
        taken: list[int] = []
        room = _WINDOW_BYTES
        for inode, size_bytes in self.files[self.next : self.next + count]:
            room -= size_bytes
            if room < 0:
                break
            taken.append(inode)
        self.next += len(taken)
        return taken


class Ahead:
    """Says, for what is listed and asked for, which inodes to read now."""

    def __init__(self) -> None:
        self._directories: OrderedDict[int, _Directory] = OrderedDict()
        self._crawls: OrderedDict[int, Crawl] = OrderedDict()  # by marker
        self._new: list[int] = []  # directories whose files have no places yet: most are listed by who reads nothing
        self._places: dict[int, tuple[int, int]] = {}  # directory and position, by inode
        self._remembered = 0  # files of all directories
        self._trust = 0

    def crawled(self, inode: int, directories: Sequence[int]) -> Crawl | None:
        """A directory was asked for that was not listed ahead; `directories` are in it. The walk that now goes on."""
        crawl = self._crawls.pop(inode, None)
        if self._trust or not (crawl or directories):
            return None
        crawl = crawl or Crawl()
        crawl.go_on(directories)
        return crawl

    def paused(self, crawl: Crawl) -> None:
        """A window is listed."""
        marker = crawl.take_marker()
        if marker is not None:
            self._crawls[marker] = crawl
            if len(self._crawls) > _CRAWLS_WAITING:
                self._crawls.popitem(last=False)

    def listed_ahead(self, inode: int, files: Sequence[tuple[int, int]]) -> None:
        """A directory was listed that nobody has asked for yet."""
        if files:
            self._remember(inode, _Directory(files[:_FILES_REMEMBERED]))

    def listed(self, inode: int, files: Sequence[tuple[int, int]]) -> list[int]:
        """A directory was listed to its end; `files` are the inodes and sizes of what is worth it, in order."""
        if not files:
            return []
        self._remember(inode, _Directory(files[:_FILES_REMEMBERED]))
        if not self._trust:
            return []
        directory = self._directories[inode]
        if self._trust < _SURE:
            directory.next = 1  # and the marker is 0
        taken = directory.take(_LARGEST_WINDOW)
        if taken:
            self._trust -= 1
        if len(taken) == _LARGEST_WINDOW:
            self._leave_marker(directory, taken)
        return taken

    def asked(self, file: int) -> list[int]:
        """The first bytes of a file were asked for by a reader."""
        self._place_new()
        inode, position = self._places.get(file, (0, 0))
        directory = self._directories.get(inode)
        if directory is None:
            return []
        if position not in (directory.marker, directory.next):
            if position > directory.next:  # it was not read in order
                directory.next, directory.marker, directory.window = position + 1, position + 1, 0
            return []
        self._trust = min(self._trust + _TRUST_GAINED, _MOST_TRUST)
        directory.next = max(directory.next, position + 1)
        directory.window = min(max(_FIRST_WINDOW, directory.window * 2), _LARGEST_WINDOW)
        taken = directory.take(directory.window)
        self._leave_marker(directory, taken)
        return taken

    def _leave_marker(self, directory: _Directory, taken: list[int]) -> None:
        if not taken:
            directory.marker = directory.next
            return
        left_out = len(taken) // 2
        directory.marker = directory.next - len(taken) + left_out
        del taken[left_out]

    def _remember(self, inode: int, directory: _Directory) -> None:
        self._forget(inode)
        self._remembered += len(directory.files)
        while self._remembered > _FILES_REMEMBERED:
            self._forget(next(iter(self._directories)))
        self._directories[inode] = directory
        self._new.append(inode)
        if len(self._new) > _FILES_REMEMBERED:  # most of them are forgotten already
            self._place_new()

    def _place_new(self) -> None:
        for inode in self._new:
            if inode in self._directories:
                for position, (file, _size) in enumerate(self._directories[inode].files):
                    self._places[file] = inode, position
        self._new.clear()

    def _forget(self, inode: int) -> None:
        directory = self._directories.pop(inode, None)
        if directory is None:
            return
        self._remembered -= len(directory.files)
        for file, _size in directory.files:
            if self._places.get(file, (0, 0))[0] == inode:
                del self._places[file]
