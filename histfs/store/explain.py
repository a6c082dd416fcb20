"""The operation `explain`: which rule of a selection decides about paths of a source, as `backup` would find it now."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from histfs.errors import NotFoundError
from histfs.store.selection import Outcome, Selection, Verdict
from histfs.store.source import Source, Unreadable


class Explanation(NamedTuple):
    """What becomes of `path`: the verdict about it, or about the excluded directory `decided` that it lies in."""

    path: bytes
    verdict: Verdict
    decided: bytes


def explain(source: Path, selection: Selection, paths: Iterable[bytes]) -> Iterator[Explanation | NotFoundError]:
    """An explanation for each of `paths`, which count from the directory `source` on; or that there is no such file.

    Raises UsageError, StorageError.
    """
    with Source.open(source, selection) as opened:
        for path in paths:
            yield _explain(opened, selection, path)


def _explain(source: Source, selection: Selection, path: bytes) -> Explanation | NotFoundError:
    place = selection.root
    verdict = Verdict(Outcome.INCLUDED, None)
    for name in path.split(b"/") if path else ():
        place = selection.enter(place, name)
        found = source.look(place.path)
        if isinstance(found, Unreadable):
            return NotFoundError("is not there, or cannot be looked at", path=path)
        verdict = selection.verdict(place, source.subject(found))
        if verdict.outcome is Outcome.EXCLUDED:
            break
    return Explanation(path, verdict, place.path)
