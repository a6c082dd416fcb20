"""A command line whose operations are fakes: what is tested here is arguments, words and exit codes."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest

from histfs.cli import main
from histfs.errors import NotARepositoryError, StorageError
from histfs.store.compare import Difference, Method
from histfs.store.entry import Entry, Kind
from histfs.store.layout import Layout

TIMES = (1_714_550_400, 1_714_636_800, 1_714_723_200)


class FakeRepository:
    """As much of a Repository as the command line uses."""

    layout = Layout()

    def __init__(self, path):
        self.path = path
        self.times = TIMES
        self.unfinished_time = None
        self.paths = [b"", b"etc", b"etc/passwd"]
        self.damage = []
        self.asked = []

    def state(self):
        raise StorageError("has nothing beside what is here")

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.asked.append("closed")

    def sessions(self):
        return self.times

    def unfinished(self):
        return self.unfinished_time

    def statistics(self, session_time):
        return None

    def snapshot(self, session_time):
        self.asked.append(session_time)
        return self

    def entries(self, below, on_damage):
        for problem in self.damage:
            on_damage(problem)
        for path in self.paths:
            if path == below or not below or path.startswith(below + b"/"):
                yield Entry(path, Kind.REGULAR)


class Cli:
    """Runs command lines; `calls` are the operations' arguments, `outcomes` what they return or raise."""

    def __init__(self, capfd):
        self._capfd = capfd
        self.calls = {}
        self.outcomes = {}
        self.reports = []
        self.told = []  # what operations tell, as tuples of arguments
        self.repository = FakeRepository(None)

    def __call__(self, *argv):
        code = main([str(arg) for arg in argv])
        out, err = (text.decode("utf-8", "surrogateescape") for text in self._capfd.readouterr())
        return SimpleNamespace(code=code, out=out, err=err)

    def operation(self, name):
        def run(*args, report=None, tell=None, **options):
            self.calls[name] = (*args, options) if options else args
            for problem in self.reports:
                report(problem)
            for news in self.told:
                tell(*news)
            outcome = self.outcomes.get(name)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return run


@pytest.fixture
def cli(monkeypatch, capfdbinary):
    cli = Cli(capfdbinary)

    def fake(name, **contents):
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    @contextmanager
    def opened(path):
        cli.repository.path = path
        with cli.repository:
            yield cli.repository

    def parse_when(text, *, now, times, zone):
        cli.calls["when"] = (text, now, zone)
        return times[1]

    def mount(*args, on_ready, **options):
        on_ready()
        return cli.operation("mount")(*args, **options)

    fake("histfs.mount", mount=mount, unmount=cli.operation("unmount"))
    for name in ("backup", "regress", "status"):
        fake(f"histfs.store.{name}", **{name: cli.operation(name)})
    fake("histfs.store.restore", restore=cli.operation("restore"))
    fake("histfs.store.compare", compare=cli.operation("compare"), Difference=Difference, Method=Method)
    fake("histfs.store.verify", verify=cli.operation("verify"))
    fake("histfs.store.repair", repair=cli.operation("repair"), plan_repair=cli.operation("plan_repair"))
    fake("histfs.store.verify_all", verify_all=cli.operation("verify_all"))

    def find_repository(path):
        if "nowhere" in path.name:
            raise NotARepositoryError("there is no repository here", path=path, advice="check the path")
        return path.parent, path.name.encode()

    fake("histfs.store.repository", Repository=SimpleNamespace(open=opened), find_repository=find_repository)
    fake(
        "histfs.store.when",
        parse_when=parse_when,
        choose_session=lambda moment, _times: moment,
        snapshot_names=lambda times, zone: {time: f"@{time}{'Z' if zone else ''}" for time in times},
    )
    return cli
