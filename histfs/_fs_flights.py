"""Single flight: ten that want the same done at the same time wait for one who does it."""

from collections.abc import Awaitable, Callable

import trio


class _Flight:
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.error: Exception | None = None


class Flights:
    """The jobs that run, by what they are for. To be used in one trio loop."""

    def __init__(self) -> None:
        self._running: dict[int, _Flight] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, key: int, job: Callable[[], Awaitable[object]]) -> None:
        """Run `job`, or wait for the one that runs. Raises what it raises; cancelled jobs look finished to others."""
        flight = self._running.get(key)
        if flight is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            return
        flight = self._running[key] = _Flight()
        try:
            await job()
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._running[key]
            flight.landed.set()
