"""No bad input may make anybody wait: every test of this folder has a time limit of its own."""

import signal
from collections.abc import Iterator

import pytest

_LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Interrupts system calls too, such as the opening of a fifo that nobody writes to."""

    def stop(*_: object) -> None:
        pytest.fail(f"not done after {_LIMIT_S} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
