"""A walk that compares a tree with what is known of it, without a session."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histfs.store.walk import Walk


@contextmanager
def comparing_walk(top: Path, mirror: Path | None = None) -> Iterator[Walk]:
    """In the directory `top`, which is its own mirror if no other is told of; what is ours there may be passed over."""
    descriptor = os.open(top if mirror is None else mirror, os.O_RDONLY)
    try:
        with Walk(descriptor) as walk:
            walk.push(os.open(top, os.O_RDONLY), is_trusted=True)
            walk.trust(os.getuid(), os.getgid())
            yield walk
    finally:
        os.close(descriptor)
