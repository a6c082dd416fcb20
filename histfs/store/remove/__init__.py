"""The operations that take history away: `remove_sessions`, the oldest ones, and `remove_paths`, from all sessions."""

from histfs.store.remove.paths import RemovedPaths, remove_paths
from histfs.store.remove.sessions import Removed, remove_sessions

__all__ = ["Removed", "RemovedPaths", "remove_paths", "remove_sessions"]
