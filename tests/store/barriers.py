"""Sessions in tests that do not wait for the disk."""

import os

import pytest

from histfs.store.catalog import place
from histfs.store.files import WritableTree


def remove_barriers(patch: pytest.MonkeyPatch) -> None:
    """They wait for whatever else is being written on this computer; what they are for is tested by their place."""
    patch.setattr(WritableTree, "sync", lambda _tree: None)
    patch.setattr(os, "fsync", lambda _fd: None)
    patch.setattr(place, "_SYNCHRONOUS", "off")
