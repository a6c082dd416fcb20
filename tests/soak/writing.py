"""The steps that change a repository: sessions, undoing, removals, each perhaps killed, by either program."""

import json
import os
import random
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tests import comparison
from tests.comparison import Manifest, part
from tests.compat.test_interrupted import marker_names
from tests.histories import FIRST_SESSION
from tests.mirrors import DATA, read_mirror
from tests.oracle import Oracle
from tests.selections import random_rules
from tests.soak.commands import Commands, Wrong
from tests.soak.model import Model
from tests.soak.source import SoakChanges

_OPTIONS = (
    *(("--checksum",), ("--no-compression",), ("--no-file-statistics",), ("--no-compare-inode",)),
    *(("--not-compressed-regexp", ".*[a-c]"), ("--print-statistics",), ("--json",)),
)
_GENERAL = (("--use-compatible-timestamps",), ("--verbosity=5",))
_GAPS_S = (60, 120, 3_600, 86_400, 86_460, 30 * 86_400)  # names of sessions have minutes only
_MOST_SESSIONS = 24  # more than that make a removal go further
_LAST_SECOND = 4_000_000_000


class Writer:
    """Changes a repository and the model of it. Every step draws from `chance`, which is new for each."""

    def __init__(
        self, place: Path, commands: Commands, model: Model, changes: SoakChanges, rdiff_backup: Oracle | None
    ) -> None:
        self.source, self.repository = place / "source", place / "repository"
        self._scratch = place / "scratch"
        self._commands = commands
        self._model = model
        self._changes = changes
        self._rdiff_backup = rdiff_backup
        self.now = FIRST_SESSION - FIRST_SESSION % _GAPS_S[0]
        self.is_tidy = False  # the last that wrote was not cut off
        self.sessions = 0
        self.cut_off = 0  # how often a kill left something to recover from
        self.removed = 0  # sessions, by undoing and by removing
        self.paths_removed = 0
        self._scratch.mkdir()

    @property
    def is_unfinished(self) -> bool:
        """Whether a session was cut off and has not been undone yet."""
        return self.repository.exists() and len(marker_names(self.repository)) != 1

    def change(self, chance: random.Random) -> None:
        """Bring the source to its next state, and the clock to the next session."""
        self._changes.mutate(chance.choice((0, 1, 3, 8, 20)))
        self.now += chance.choice(_GAPS_S) if self.now < _LAST_SECOND else _GAPS_S[0]

    # Sessions

    def back_up(self, chance: random.Random) -> None:
        """The source changes, and a session records it."""
        self.change(chance)
        expected, rules = self._selected(chance)
        self.finish(expected, [*self._options(chance, _OPTIONS), *rules], self._options(chance, _GENERAL))

    def finish(self, expected: Manifest, options: Sequence[str] = (), general: Sequence[str] = ()) -> None:
        """A session that is run to its end, and undoes what was cut off before it."""
        self._commands.run(
            *("--quiet", f"--current-time={self.now}", *general, "backup", *options, self.source, self.repository),
            codes=(2,) if self.is_unfinished else (0,),
        )
        self.is_tidy = True
        self._add(expected)

    def _add(self, expected: Manifest) -> None:
        self._model.add(self.now, expected)
        self.sessions += 1

    @staticmethod
    def _options(chance: random.Random, options: Sequence[tuple[str, ...]]) -> list[str]:
        return [word for option in options if chance.random() < 0.15 for word in option]

    def _selected(self, chance: random.Random) -> tuple[Manifest, list[str]]:
        """What a session of the source must hold, and the rules that say so, as rdiff-backup understands them."""
        manifest = comparison.read(self.source)
        if self._rdiff_backup is None or chance.random() > 0.2:
            return manifest, []
        shutil.rmtree(self._scratch)
        self._scratch.mkdir()
        rules = random_rules(
            chance, self.source, sorted(path for path in manifest if path), self._scratch, present=False
        )
        beside = self._scratch / "beside"
        self._rdiff_backup.backup(self.source, beside, at=self.now, api=201, special=rules).check()
        return part(manifest, set(read_mirror(beside))), rules

    def killed_session(self, chance: random.Random) -> None:
        """A session is killed somewhere. What comes next may meet with it, if it is not undone at once."""
        self.change(chance)
        expected = comparison.read(self.source)
        before = marker_names(self.repository) if self.repository.exists() else set()
        command = ("--quiet", f"--current-time={self.now}", "backup", self.source, self.repository)
        self._kill(chance, *command, codes=(2,) if self.is_unfinished else (0,))
        self._look_what_became(before, expected)
        self._recover(chance)

    def _look_what_became(self, before: set[str], expected: Manifest) -> None:
        """The marker of the session before goes last of all: then the new one has finished."""
        after = marker_names(self.repository) if self.repository.exists() else set()
        if after and not after & before:
            self._add(expected)

    def _recover(self, chance: random.Random) -> None:
        """Undo what was cut off: by a plain session most times, which may be killed as well; or leave it for later."""
        while self.is_unfinished and chance.random() < 0.4:
            if chance.random() < 0.5:
                self._kill(chance, "--quiet", "regress", self.repository, codes=(0, 2))
            else:
                self.now += _GAPS_S[0]
                before, expected = marker_names(self.repository), comparison.read(self.source)
                command = ("--quiet", f"--current-time={self.now}", "backup", self.source, self.repository)
                self._kill(chance, *command, codes=(0, 2))
                self._look_what_became(before, expected)
        what = chance.random()
        if what < 0.6 or not self._model.times:
            self.now += _GAPS_S[0]
            self.finish(comparison.read(self.source))
        elif what < 0.8:
            self.undo_unfinished()

    def undo_unfinished(self) -> None:
        self._commands.run("--quiet", "regress", self.repository, codes=(2,) if self.is_unfinished else (0,))

    def _kill(self, chance: random.Random, *arguments: str | Path | bytes, codes: Collection[int] = (0,)) -> bool:
        self.is_tidy = False
        is_killed = self._commands.run_and_kill(chance, *arguments, codes=codes)
        self.cut_off += is_killed and self.is_unfinished
        return is_killed

    # Going back, and removing

    def step_back(self, chance: random.Random) -> None:
        """The newest session is undone; perhaps that is killed, and what is left is recovered."""
        self._be_at_rest()
        times = self._model.times
        if len(times) < 2:
            return
        self._model.may_go(times[-1:])
        command = ("--quiet", "--force", "regress", self.repository)
        if chance.random() < 0.4:
            self._kill(chance, *command, codes=(0,))
        else:
            self._commands.run(*command, codes=(0,))
        self._count_removed(self._listed())
        self._recover(chance)

    def remove_sessions(self, chance: random.Random) -> None:
        """The oldest ones go, by time or by number; perhaps that is killed, and then done again."""
        self._be_at_rest()
        times = self._model.times
        most = max(len(times) - 1, 0)
        count = most - _MOST_SESSIONS // 2 if most > _MOST_SESSIONS else min(chance.randrange(4), most)
        by_number = chance.random() < 0.5
        is_killed = chance.random() < 0.4
        older_than = f"{most - count}B" if by_number else str(times[count])
        command = ("--quiet", "--force", "remove", "increments", "--older-than", older_than, self.repository)
        codes = (0,) if count else (2,)
        self._model.may_go(times[:count])
        if not is_killed:
            self._commands.run(*command, codes=codes)
        elif self._kill(chance, *command, codes=codes):
            left = self._listed()
            if times[len(times) - len(left) :] != left:
                raise Wrong(f"a removal of the {count} oldest of {times} that was killed left {left}")
            self._commands.run(*command[:5], str(times[count]), self.repository, codes=(0, 2))
        if self._listed() != times[count:]:
            raise Wrong(f"a removal of the {count} oldest of {times} left {self._listed()}")
        self._count_removed(times[count:])

    def _count_removed(self, left: Collection[int]) -> None:
        self.removed += len(self._model.times)
        self._model.settle(left)
        self.removed -= len(self._model.times)

    def remove_path(self, chance: random.Random) -> bool:
        """A path goes from all sessions; perhaps that is killed, and then done again. Readers are not told yet.

        False if the root was drawn, and nothing done.
        """
        self._be_at_rest()
        manifest = self._model.state(chance.choice(self._model.times))
        path = chance.choice(sorted(manifest))
        is_killed = chance.random() < 0.3
        if not path:
            return False
        self._model.path_may_go(path)
        command = ("--quiet", "remove", "file", os.fsencode(self.repository) + b"/" + path)
        if not is_killed:
            self._commands.run(*command)
        elif self._kill(chance, *command):
            self._commands.run(*command, codes=(0, 2))  # all of it may be gone already
        self.paths_removed += 1
        return True

    def _be_at_rest(self) -> None:
        """What these steps refuse, or take otherwise, is undone before."""
        if self.is_unfinished:
            self.undo_unfinished()

    def _listed(self) -> list[int]:
        ran = self._commands.run("list", "sessions", "--json", self.repository)
        return [session["seconds"] for session in json.loads(ran.stdout)["sessions"]]

    # The other program

    def other_program(self, chance: random.Random) -> None:
        """rdiff-backup makes a session, perhaps is killed in it, or undoes what was cut off."""
        self.change(chance)
        kind = chance.random()
        if self._rdiff_backup is None:
            return
        self.is_tidy = False
        if self.is_unfinished:
            undone = self._rdiff_backup.regress(self.repository, api=201)
            self._commands.recent.append(f"rdiff-backup regress  # code {undone.code}")
            if undone.code not in (0, 2):
                raise Wrong(f"regress of rdiff-backup: {undone.output}")
        expected = comparison.read(self.source)
        before = marker_names(self.repository)
        arguments = Oracle.backup_arguments(self.source, self.repository, at=self.now, api=201)
        if kind < 0.3:
            name = "session of rdiff-backup"
            self._commands.kill(chance, name, Oracle.command(arguments), (0,), f"rdiff-backup {' '.join(arguments)}")
            self._look_what_became(before, expected)
            for left in (self.repository / DATA).glob("rdiff-backup.tmp.*"):  # it tries out what a file system can do
                shutil.rmtree(left)
            self._recover(chance)
            return
        began = time.monotonic()
        ran = self._rdiff_backup.run(arguments)
        self._commands.took("session of rdiff-backup", time.monotonic() - began + 0.3)  # it has started already here
        self._commands.recent.append(f"rdiff-backup {' '.join(arguments)}  # code {ran.code}")
        self._commands.runs["session of rdiff-backup"] += 1
        ran.check()
        self._add(expected)
