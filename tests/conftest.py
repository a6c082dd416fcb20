"""Fixtures and profiles that every test shares."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import oracle

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def rdiff_backup() -> Iterator[oracle.Oracle]:
    """The original program. Without it the test is skipped, and has failed where CI is set."""
    if reason := oracle.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with oracle.Oracle() as running:
        yield running
