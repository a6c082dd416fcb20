"""The catalog: every version of every path of a repository, in one SQLite database. Derived, disposable.

with open_catalog(repository, cache=place) as catalog:
    for version in catalog.children(catalog.root(time).directory, time): ...
"""

from histfs.store.catalog.lists import Came
from histfs.store.catalog.place import (
    catalog_problem,
    discard_catalog,
    open_catalog,
    open_current,
    open_recorded,
    update_catalog,
)
from histfs.store.catalog.reading import Catalog
from histfs.store.catalog.rows import Access, Listed, Version
from histfs.store.catalog.schema import LIVE

__all__ = [
    "LIVE",
    "Access",
    "Came",
    "Catalog",
    "Listed",
    "Version",
    "catalog_problem",
    "discard_catalog",
    "open_catalog",
    "open_current",
    "open_recorded",
    "update_catalog",
]
