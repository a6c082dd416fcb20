"""Whether an installed histfs works: its compiled module, its command, a backup and a restore.

usage: python3 -I smoke.py HISTFS      the interpreter and the command of one environment; stops at the first problem
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import histfs
from histfs import _fuse, rsync


def main() -> None:
    command = str(Path(sys.argv[1]).absolute())
    assert Path(histfs.__file__).is_relative_to(sys.prefix), f"{histfs.__file__} is not in {sys.prefix}"

    old, new = bytes(range(256)) * 4000, bytes(range(256)) * 2000 + b"new" + bytes(range(256)) * 1990
    assert _fuse.lib.histfs_fuse_is_by_inode() == 0
    delta = b"".join(rsync.delta(rsync.Signature.of(old), new))
    assert len(delta) < len(new) // 10, len(delta)
    assert b"".join(rsync.patch(old, [delta], max_size=len(new))) == new

    def run(*arguments: str) -> str:
        return subprocess.run([command, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

    assert histfs.__version__ in run("--version")
    assert "mount" in run("--help")
    with tempfile.TemporaryDirectory() as place:
        source, repository, target = (Path(place, name) for name in ("source", "repository", "target"))
        source.mkdir()
        (source / "file").write_bytes(old)
        run("--current-time", "1700000000", "backup", str(source), str(repository))
        (source / "file").write_bytes(new)
        run("backup", str(source), str(repository))
        assert (repository / "file").read_bytes() == new
        run("restore", "--at", "1B", str(repository), str(target))
        assert (target / "file").read_bytes() == old
        run("verify", "--at", "1B", str(repository))
    print(f"histfs {histfs.__version__} in {sys.prefix}: works")


if __name__ == "__main__":
    main()
