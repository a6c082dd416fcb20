"""The steps that look at a repository and its mount, and what must hold between any two steps."""

import os
import random
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from tests import comparison
from tests.comparison import below, difference
from tests.compat.test_interrupted import marker_names
from tests.faults.judge import DATA, check_mounted
from tests.mirrors import read_mirror
from tests.soak.commands import Commands, Wrong
from tests.soak.model import Model, name_of
from tests.soak.mounting import Mount, chosen_way

_OWN = "histfs"
_KEPT = ".keep"  # in an empty directory of increments
_TEMPORARY = re.compile(r"rdiff-backup\.tmp\.|\.new\Z|-journal\Z|-wal\Z|-shm\Z")
_TIME = re.compile(
    r"\.(\d{4}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\dZ)\.(missing|dir|snapshot|snapshot\.gz|diff|diff\.gz|data)\Z"
)
_OF_OWN = {"catalog.sqlite", "ledger", "paths-were-removed"}


class Looker:
    """Changes nothing but what is derived. `place`: where the repository and all else is."""

    def __init__(self, place: Path, commands: Commands, model: Model, mount: Mount) -> None:
        self._repository = place / "repository"
        self._restored = place / "restored"
        self._kept = place / "kept"
        self._commands = commands
        self._model = model
        self._mount = mount
        self._mountpoint = place / "mnt"
        self.restored = 0
        self.remounts = 0

    def _session(self, chance: random.Random) -> int:
        return chance.choice(self._model.times)

    # Steps

    def verify(self, chance: random.Random) -> None:
        if chance.random() < 0.4:
            self._commands.run("verify", "--all", "--restart", self._repository)
        else:
            self._commands.run("verify", f"--at={self._session(chance)}", self._repository)

    def restore(self, chance: random.Random) -> None:
        """All of a session to a new place, a part of it, or all of it over what was restored before."""
        session_time, kind = self._session(chance), chance.random()
        state = self._model.state(session_time)
        at = f"--at={chance.choice((session_time, name_of(session_time)))}"
        if kind < 0.4:
            self._commands.run("--quiet", "restore", at, "--delete", self._repository, self._kept)
            self._compare(difference(state, comparison.read(self._kept)), f"restore --delete of {session_time}")
        else:
            directories = sorted(path for path, found in state.items() if found.type == "directory")
            path = chance.choice(directories) if kind < 0.7 else b""
            what = os.fsencode(self._repository) + b"/" + path if path else self._repository
            self._commands.run("--quiet", "restore", at, what, self._restored)
            wanted = below(state, path) if path else state
            self._compare(difference(wanted, comparison.read(self._restored)), f"restore of {path!r} at {session_time}")
            shutil.rmtree(self._restored)
        self.restored += 1

    def mount_anew(self, chance: random.Random) -> None:
        self._end_mount(chosen_way(chance))
        self._begin_mount()

    def lose_catalog(self, chance: random.Random) -> None:
        """Catalog or ledger is gone, or is another file with something else in it; perhaps a new mount meets it."""
        path = self._repository / DATA / _OWN / chance.choice(("catalog.sqlite", "catalog.sqlite", "ledger"))
        kind, is_mounted_anew = chance.random(), chance.random() < 0.5
        if is_mounted_anew:
            self._end_mount(chosen_way(chance))
        if path.exists():
            content = path.read_bytes()
            keep = chance.randrange(len(content) + 1)
            path.unlink()
            if kind > 0.3:
                path.write_bytes(content[:keep] if kind < 0.6 else chance.randbytes(keep))
                path.chmod(0o600)
            self._commands.recent.append(
                f"# {path.name} is {'gone' if kind <= 0.3 else 'cut' if kind < 0.6 else 'noise'}"
            )
        if is_mounted_anew:
            self._begin_mount()

    def _end_mount(self, way: str) -> None:
        self._model.mounted(None)
        self._commands.recent.append(f"# the mount is ended by {way}")
        self._mount.down(way)

    def _begin_mount(self) -> None:
        self._mount.up()
        self.remounts += 1
        self._mount.wait_until_shown({name_of(at) for at in self._model.times})
        self._model.mounted(self._mount.number)

    def look_at_all(self, _chance: random.Random) -> None:
        """Every session in the mount, with link groups, is what it was."""
        problems = check_mounted(self._mountpoint, self._model.history, "lost")
        self._compare([f"{problem.kind}: {problem.text}" for problem in problems], "mount")

    # Between steps

    def check(self, *, is_tidy: bool) -> None:
        """What must hold at any time."""
        self._mount.check()
        self._mount.wait_until_shown({name_of(at) for at in self._model.times})
        self._model.publish()
        if is_tidy:
            self._check_names()

    def check_mirror(self) -> None:
        """Links of what was rebuilt may be files of their own (docs/reliability.md)."""
        newest = self._model.state(self._model.times[-1])
        self._compare(difference(newest, read_mirror(self._repository), links=False), "mirror")

    def _check_names(self) -> None:
        """Nothing is left over from what was cut off or removed."""
        data, known = self._repository / DATA, set(self._model.times)
        litter = [name for name in os.listdir(data) if _TEMPORARY.search(name)]
        increments = os.fsencode(data / "increments")
        for place, _, names in os.walk(os.fsencode(data)):
            of_increments = place.startswith(increments)
            for name in map(os.fsdecode, names):
                found = _TIME.search(name)
                if found is None:
                    litter += [name] * (of_increments and name != _KEPT)
                elif _seconds(found[1]) not in known:
                    litter.append(name)
        own = data / _OWN
        litter += sorted(set(os.listdir(own)) - _OF_OWN) if own.exists() else []
        lock = data / "lock.yml"
        if lock.exists() and lock.stat().st_size:
            litter.append("lock.yml still names who holds it")
        self._compare([f"left behind: {name!r}" for name in litter], f"names ({marker_names(self._repository)})")

    @staticmethod
    def _compare(lines: list[str], where: str) -> None:
        if lines:
            raise Wrong("\n".join([f"{where}:", *lines]))


def _seconds(text: str) -> int:
    date, _, clock = text.partition("T")
    return int(
        datetime.strptime(f"{date}T{clock.replace('-', ':')}", "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    )
