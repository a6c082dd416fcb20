"""Random rules about the files of a tree, as command line options that both programs take.

Patterns are made of the paths that are there, so that most rules mean something. What the programs deliberately take
otherwise does not come up (docs/rdiff-backup.md).
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path

_TYPES = ("symbolic-links", "special-files")
_ONLY_EXCLUDED = ("device-files", "fifos", "sockets", "other-filesystems")  # there, to include these is an error


def random_rules(
    chance: random.Random, source: Path, paths: Sequence[bytes], scratch: Path, *, present: bool = True
) -> list[str]:
    """Options for one to six rules about `paths` in `source`, the last of which excludes; lists are put into `scratch`.

    Rules about what is `present` in a directory are taken alike only where all directories can be read.
    """
    rules = _Rules(chance, str(source), [os.fsdecode(path) for path in paths] or ["nothing"], scratch, present)
    options = [
        option for _ in range(chance.randrange(6)) for option in rules.make(chance.choice(("include", "exclude")))
    ]
    return options + rules.make("exclude")


class _Rules:
    def __init__(self, chance: random.Random, source: str, paths: Sequence[str], scratch: Path, present: bool) -> None:
        self._random = chance
        self._source = source
        self._some_present = present
        self._paths = paths
        self._scratch = scratch
        self._lists = 0

    def make(self, kind: str) -> list[str]:
        makers = [self._pattern, self._pattern, self._pattern, self._list, self._globs, self._regexp, self._type]
        makers += [self._present] * self._some_present + [self._size] * (kind == "exclude")
        return self._random.choice(makers)(kind)

    def _pattern(self, kind: str) -> list[str]:
        return [f"--{kind}={self._glob()}"]

    def _glob(self) -> str:
        path = self._random.choice(self._paths)
        shape = self._random.random()
        if shape < 0.3:
            return f"{self._source}/{_literal(path)}"
        if shape < 0.35:
            return "**"
        names = [self._vague(name) for name in path.split("/")]
        if shape < 0.6:
            names = names[self._random.randrange(len(names)) :]
            return f"**{self._random.choice(('/', '', '/'))}{'/'.join(names)}"
        if shape < 0.7:
            names[self._random.randrange(len(names))] = "**"
        ignore_case = "ignorecase:" * (self._random.random() < 0.2)
        return f"{ignore_case}{self._source}/{'/'.join(names)}{'/' * (self._random.random() < 0.05)}"

    def _vague(self, name: str) -> str:
        """A pattern that matches the name, or nearly."""
        at = self._random.randrange(len(name))
        before, char, after = _literal(name[:at]), name[at], _literal(name[at + 1 :])
        beginning, end = _literal(name[: at + 1]), _literal(name[at:])
        inner = f"[{char}x]" if char.isalnum() else "?"
        outer = f"[!{char}]" if char.isalnum() else "[!a-c]"
        choices = (
            "*",
            beginning + "*",
            "*" + end,
            before + "?" + after,
            before + inner + after,
            before + outer + after,
        )
        return self._random.choice((*choices, _literal(name), _literal(name), "?" * len(name), before + "**" + after))

    def _written(self, lines: list[str], kind: str) -> str:
        self._lists += 1
        path = self._scratch / f"list {kind} {self._lists}"
        path.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
        return str(path)

    def _list(self, kind: str) -> list[str]:
        paths = self._random.choices([path for path in self._paths if "\n" not in path] or ["no"], k=4)
        sign = self._random.choice(("", "", "+ ", "- "))  # one for all of them
        lines = [f"{sign}{self._source}/{path}" for path in paths]
        return [f"--{kind}-filelist={self._written(lines, kind)}"]

    def _globs(self, kind: str) -> list[str]:
        globs = [glob for glob in (self._glob() for _ in range(4)) if "\n" not in glob and not glob.endswith("\r")]
        lines = [self._random.choice(("", "", "+ ", "- ")) + glob for glob in globs]
        lines.append(f"- {self._source}/nothing" if kind == "exclude" else "")
        return [f"--{kind}-globbing-filelist={self._written(lines, kind)}"]

    def _regexp(self, kind: str) -> list[str]:
        name = self._random.choice(self._paths).rpartition("/")[2]
        plain = "".join(char if char.isalnum() else "." for char in name if char.isascii()) or "."
        expressions = (f"/{plain}$", plain, f"(?i){plain}", f"^{self._source}/.*{plain}")
        return [f"--{kind}-regexp={self._random.choice(expressions)}"]

    def _present(self, kind: str) -> list[str]:
        return [f"--{kind}-if-present={self._random.choice(self._paths).rpartition('/')[2]}"]

    def _type(self, kind: str) -> list[str]:
        return [f"--{kind}-{self._random.choice(_TYPES + _ONLY_EXCLUDED * (kind == 'exclude'))}"]

    def _size(self, _kind: str) -> list[str]:
        return [f"--{self._random.choice(('min', 'max'))}-file-size={self._random.choice((1, 100, 10_000))}"]


def _literal(name: str) -> str:
    return "".join("\\" + char if char in "*?[\\" else char for char in name)
