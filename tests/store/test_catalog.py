"""The catalog shows what the lists say, however it came to be."""

from pathlib import Path

import pytest

from histfs.store.catalog import open_catalog
from tests.histories import ANYTHING, random_history
from tests.store.catalogs import assert_same_trees, fresh_rows, rows
from tests.store.sessions import Sessions


@pytest.mark.parametrize("seed", range(4))
def test_random_histories(scratch: Path, seed: int) -> None:
    sessions = Sessions(scratch)
    cache = scratch / "cache"
    for number, state in enumerate(random_history(sessions.source, seed, 24, ANYTHING)):
        sessions.now = state.time - 86_400
        sessions.backup(may_report=True)
        if number % 5 == seed:
            with sessions.open() as repository:
                repository.distrust_catalog()
                with open_catalog(repository, cache=cache) as catalog:
                    assert rows(catalog) == fresh_rows(sessions.repository)
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert_same_trees(catalog, repository)
