"""What a restore tells of its steps: each when it was done, and none that failed."""

from collections.abc import Callable

from histfs.store.target import Step


class Steps:
    """Tells `tell` of steps, with paths below `top`. `dry_run`: they are told and not done."""

    def __init__(self, tell: Callable[[Step, bytes], None], top: bytes, *, dry_run: bool) -> None:
        self._tell = tell
        self._skip = len(top) + 1 if top else 0
        self._begun: list[tuple[Step, bytes]] = []
        self.dry_run = dry_run

    def begin(self, step: Step, path: bytes) -> bool:
        """Something is going to be done at `path`; whether it shall be done indeed."""
        self._begun.append((step, path))
        return not self.dry_run

    def done(self) -> None:
        """All that was begun was done."""
        for step, path in self._begun:
            self._tell(step, path[self._skip :])
        self._begun.clear()

    def failed(self, is_gone: Callable[[bytes], bool]) -> None:
        """Of all that was begun only that was done which is gone."""
        gone = [] if self.dry_run else [path for step, path in self._begun if step is Step.DELETED and is_gone(path)]
        self._begun = [(Step.DELETED, path) for path in gone]
        self.done()
