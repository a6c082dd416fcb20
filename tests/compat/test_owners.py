"""Who gets a file: both programs, by name, by number, and by mappings. Only root can give files away."""

import gzip
import itertools
import os
import re
from pathlib import Path

import pytest

from histfs.cli import main
from tests.oracle import Oracle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

FIRST, SECOND = 1_700_000_000, 1_700_086_400
NAMES = (b"root", b"daemon", b"bin", b"no-such-user", b":")
NUMBERS = (0, 2, 4_000)
MAPPINGS = (
    "daemon:bin\n",
    "2:games\n4000:12345\n",
    "root:no-such-user\n0:77\n\nno-such-user:5\n",
    "daemon:0\nno-such-user:root\n4000:2\nbin:99999\n",
)


@pytest.fixture
def repository(scratch: Path, rdiff_backup: Oracle) -> Path:
    """A repository of files whose names and numbers of users and groups are in all relations to those of this host."""
    source, repository = scratch / "source", scratch / "repository"
    source.mkdir()
    for number in range(len(NAMES) * len(NUMBERS)):
        (source / f"{number:02}").write_bytes(b"%d" % number)
    rdiff_backup.backup(source, repository, at=FIRST).check()
    [path] = (repository / "rdiff-backup-data").glob("mirror_metadata.*")
    owners = itertools.product(NAMES, NUMBERS)

    def changed(record: re.Match[bytes]) -> bytes:
        name, number = next(owners)
        return b"Uid %d\n  Uname %s\n  Gid %d\n  Gname %s\n" % (number, name, number, name)

    text, count = re.subn(
        rb"(?<=Uid )0\n  Uname root\n  Gid 0\n  Gname root\n", b"@", gzip.decompress(path.read_bytes())
    )
    assert count == len(NAMES) * len(NUMBERS) + 1
    text = text.replace(b"Uid @", b"Uid 0\n  Uname root\n  Gid 0\n  Gname root\n", 1)  # the root's own
    path.write_bytes(gzip.compress(re.sub(rb"Uid @", changed, text)))
    return repository


def owners(top: Path) -> dict[str, tuple[int, int]]:
    return {name: ((top / name).stat().st_uid, (top / name).stat().st_gid) for name in sorted(os.listdir(top))}


@pytest.mark.parametrize("options", ["", "numerical", "users 0", "groups 1", "users 2 groups 3", "users 0 numerical"])
def test_restored_owners(repository: Path, scratch: Path, rdiff_backup: Oracle, options: str) -> None:
    words = options.split()
    arguments = ["--preserve-numerical-ids"] if "numerical" in words else []
    for kind in ("user", "group"):
        if f"{kind}s" in words:
            mapping = scratch / f"{kind}-mapping"
            mapping.write_text(MAPPINGS[int(words[words.index(f"{kind}s") + 1])])
            arguments.append(f"--{kind}-mapping-file={mapping}")
    rdiff_backup.run(["restore", *arguments, str(repository), str(scratch / "theirs")]).check()
    assert main(["--quiet", "restore", *arguments, str(repository), str(scratch / "ours")]) == 0
    assert owners(scratch / "ours") == owners(scratch / "theirs")


@pytest.mark.parametrize("text", ["daemon\n", "# daemon to bin\n", "a:b:c\n"])
def test_mappings_that_are_refused(repository: Path, scratch: Path, rdiff_backup: Oracle, text: str) -> None:
    (scratch / "mapping").write_text(text)
    for name in ("mapping", "missing"):
        arguments = ["restore", f"--user-mapping-file={scratch / name}", str(repository), str(scratch / "target")]
        assert rdiff_backup.run(arguments).code == 1
        if (scratch / "target").is_dir():
            (scratch / "target").rmdir()
        assert main(["--quiet", *arguments]) == 1
        assert not (scratch / "target").exists()


@pytest.mark.parametrize("arguments", [[], ["--user-mapping-file"], ["--group-mapping-file"]])
def test_owners_in_the_mirror(scratch: Path, rdiff_backup: Oracle, arguments: list[str]) -> None:
    """And what is recorded is not changed by them: without a mapping all comes back as it was."""
    source = scratch / "source"
    source.mkdir()
    for uid in (0, 1, 2, 4_000):
        (source / f"{uid}").write_bytes(b"old")
        os.chown(source / f"{uid}", uid, uid)
    (scratch / "mapping").write_text("daemon:bin\n4000:12345\n")
    arguments = [f"{name}={scratch / 'mapping'}" for name in arguments]
    before = owners(source)
    for at in (FIRST, SECOND):
        rdiff_backup.backup(source, scratch / "theirs", at=at, special=arguments).check()
        command = ["--quiet", f"--current-time={at}", "backup", *arguments, str(source), str(scratch / "ours")]
        assert main(command) == 0
        for name in ("1", "4000"):
            (source / name).write_bytes(b"longer")
    for place in ("", "rdiff-backup-data/increments"):
        ours, theirs = owners(scratch / "ours" / place), owners(scratch / "theirs" / place)
        ours.pop(".keep", None)
        assert {name: ours[name] for name in theirs} == theirs
    assert main(["--quiet", "restore", str(scratch / "ours"), str(scratch / "target")]) == 0
    assert owners(scratch / "target") == before
