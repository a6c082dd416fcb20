"""Writing the content of a version to a file of its own, in a target or in the mirror."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from histfs.store.content import Content
from histfs.store.direct import try_direct, write_direct
from histfs.store.files import write_blocks
from histfs.store.repository import Repository

_DIRECT = 16 << 20  # bytes; smaller ones are likely to be read soon


def write_content(fd: int, content: Content, repository: Repository) -> None:
    """Write all of `content` to the empty file `fd`; blocks of zeros become holes. `repository` is told of it.

    What is large goes past the page cache where that can be. Raises DamagedError, also at the end; StorageError;
    OSError.
    """
    if content.size_bytes < _DIRECT or not try_direct(fd):
        with closing(content.blocks()) as blocks:  # which threads make: these must end before the content is closed
            write_blocks(fd, repository.told(blocks), sparse=True)
        return
    with closing(content.chunks()) as chunks, ThreadPoolExecutor(1) as thread:
        write_direct(fd, repository.told(chunks), content.size_bytes, thread, lambda _end: None)
