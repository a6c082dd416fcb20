"""What fuzzing has found to lead to code that nothing else led to: one archive, from which each search begins."""

import io
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ARCHIVE = Path(__file__).parent / "corpus" / "found.tar.xz"


@cache
def found() -> Mapping[str, Sequence[bytes]]:
    """The inputs by target."""
    inputs: defaultdict[str, list[bytes]] = defaultdict(list)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            inputs[member.name.partition("/")[0]].append(file.read())
    return dict(inputs)


def keep(corpus: Path) -> int:
    """Add what lies in directories of `corpus` named as targets; how many inputs there are then."""
    inputs = {name: set(known) for name, known in found().items()} if ARCHIVE.exists() else {}
    for path in corpus.glob("*/*"):
        inputs.setdefault(path.parent.name, set()).add(path.read_bytes())
    count = 0
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for name, known in sorted(inputs.items()):
            for number, data in enumerate(sorted(known)):
                member = tarfile.TarInfo(f"{name}/{number}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                count += 1
    return count
