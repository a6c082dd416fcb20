"""Threads that look at something all the time, while a test changes what lies below it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_PATIENCE_S = 30.0


class Watcher(threading.Thread):
    """Calls `look` until it is told to stop, or something is wrong.

    `look` returns what is wrong, or None for a look that does not count.
    """

    def __init__(self, look: Callable[[], Sequence[object] | None]) -> None:
        super().__init__(daemon=True)
        self._look = look
        self.stop = threading.Event()
        self.looks = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        try:
            while not self.stop.is_set() and not self.wrong:
                found = self._look()
                if found is not None:
                    self.wrong += found
                    self.looks += 1
        except BaseException as exc:
            self.wrong.append(exc)


@contextmanager
def watched(looks: Sequence[Callable[[], Sequence[object] | None]]) -> Iterator[list[Watcher]]:
    """A watcher for each of `looks`. At the end none has seen anything wrong, and each has looked more than twice."""
    watchers = [Watcher(look) for look in looks]
    for watcher in watchers:
        watcher.start()
    try:
        yield watchers
    finally:
        for watcher in watchers:
            watcher.stop.set()
        for watcher in watchers:
            watcher.join(_PATIENCE_S)
    assert [watcher.wrong for watcher in watchers] == [[]] * len(watchers)
    assert all(watcher.looks > 2 for watcher in watchers)
