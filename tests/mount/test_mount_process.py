"""`histfs mount` as a process over a real repository: the way to the background, signals, what is refused."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import histories
from tests.mount import system_calls
from tests.trees import Dir, File, Link, Symlink, build, compare, difference, read

FIRST, SECOND, THIRD = 1_714_557_600, 1_714_644_000, 1_714_730_400
FIRST_NAME, SECOND_NAME, THIRD_NAME = "@2024-05-01T10:00", "@2024-05-02T10:00", "@2024-05-03T10:00"

OLD = Dir(
    {
        "f": File(b"old\n" * 3_000),
        "plain": File(b"plain"),
        "gone": File(b"gone"),
        "d": Dir({"l": Link("f"), "s": Symlink("../f")}, mode=0o750),
        "some": Dir({f"{number:02}": File(b"x" * number) for number in range(30)}),
    }
)
NEW = Dir(
    {
        "plain": File(b"plain"),
        "f": File(b"new\n" * 3_000, mtime=1_700_000_000),
        "d": Dir({"l": Link("f"), "s": Symlink("../f")}),
    }
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def histfs(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "histfs", *map(os.fspath, arguments)],
        **{"capture_output": True, "text": True, "timeout": 60, **options},
    )


def back_up(tree, at, repository, scratch):
    shutil.rmtree(scratch, ignore_errors=True)
    build(scratch, tree)
    done = histfs("--current-time", str(at), "backup", scratch, repository)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    top = tmp_path_factory.mktemp("original")
    back_up(OLD, FIRST, top / "repository", top / "source")
    back_up(NEW, SECOND, top / "repository", top / "source")
    return top / "repository"


@pytest.fixture
def repository(original, tmp_path):
    """A repository of two sessions that the test may change."""
    shutil.copytree(original, tmp_path / "repository", symlinks=True, copy_function=shutil.copy2)
    return tmp_path / "repository"


@pytest.fixture
def mount(repository, mountpoint):
    """Mounts; ends the processes that are left."""

    def mount(*options, where=mountpoint, **subprocess_options):
        done = histfs("mount", "--utc", *options, repository, where, **subprocess_options)
        assert (done.returncode, done.stderr) == (0, "")
        return done

    yield mount
    for pid in processes(mountpoint):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def foreground(repository, mountpoint):
    """A mount in the foreground."""
    command = [sys.executable, "-m", "histfs", "mount", "--utc", "--foreground", repository, mountpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert str(mountpoint) in process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def processes(mountpoint):
    """The numbers of the processes that have this mount point on their command line."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                words = (directory / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(mountpoint) in words:
                found.append(int(directory.name))
    return found


def is_mounted(mountpoint):
    points = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    return os.fsencode(mountpoint) in points


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The life of a mount


def test_a_mount_can_be_used_when_the_command_returns(mount, mountpoint):
    done = mount()
    assert str(mountpoint) in done.stdout
    assert sorted(os.listdir(mountpoint)) == [FIRST_NAME, SECOND_NAME]
    top = os.stat(mountpoint / FIRST_NAME).st_mtime
    assert top == FIRST
    assert compare(mountpoint / FIRST_NAME, Dir(OLD.entries, mtime=FIRST)) == []
    assert compare(mountpoint / SECOND_NAME, Dir(NEW.entries, mtime=SECOND)) == []


def test_the_process_in_the_background_holds_nothing_of_its_caller(mount, mountpoint, tmp_path):
    lock = open(tmp_path / "lock", "w")  # noqa: SIM115 - a descriptor for the child
    fcntl.flock(lock, fcntl.LOCK_EX)
    mount(cwd=tmp_path, pass_fds=[lock.fileno()])
    (pid,) = processes(mountpoint)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]
    assert links == ["/dev/null"] * 3
    lock.close()
    with open(tmp_path / "lock") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_mount_options_are_safe(mount, mountpoint, repository):
    mount()
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(mountpoint) in line)
    source, _, kind, options = line.split()[:4]
    assert (source, kind) == (f"histfs:{repository}", "fuse.histfs")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert not {"allow_other", "default_permissions"} & set(options.split(","))


@root_only
def test_others_are_let_in_with_their_permissions_only(mount, mountpoint):
    mount("--allow-other")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(mountpoint) in line)
    assert {"ro", "nosuid", "nodev", "allow_other", "default_permissions"} <= set(line.split()[3].split(","))


@pytest.mark.parametrize("lazy", [[], ["--lazy"]], ids=["", "lazy"])
def test_umount_takes_it_away(mount, mountpoint, lazy):
    mount()
    done = histfs("umount", *lazy, mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mountpoint)
    assert os.listdir(mountpoint) == []
    wait_until(lambda: not processes(mountpoint))


def test_umount_of_what_is_in_use(mount, mountpoint):
    mount()
    with open(mountpoint / SECOND_NAME / "f", "rb", buffering=0) as held:
        done = histfs("umount", mountpoint)
        assert done.returncode == 1
        assert "busy" in done.stderr
        assert "--lazy" in done.stderr
        assert histfs("umount", "--lazy", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
        assert held.read(4) == b"new\n"
        assert processes(mountpoint)
    wait_until(lambda: not processes(mountpoint))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_it_cleanly(foreground, mountpoint, number):
    started = time.monotonic()
    foreground.send_signal(number)
    assert foreground.wait(10) == 0
    assert time.monotonic() - started < 3
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_process_in_the_background(mount, mountpoint, number):
    mount()
    (pid,) = processes(mountpoint)
    os.kill(pid, number)
    wait_until(lambda: not processes(mountpoint))
    assert not is_mounted(mountpoint)


def test_further_signals_do_not_make_it_unclean(foreground, mountpoint):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        foreground.send_signal(number)
    assert foreground.wait(10) == 0
    assert not is_mounted(mountpoint)


def test_a_signal_ends_it_while_files_are_open(foreground, mountpoint):
    held = os.open(mountpoint / SECOND_NAME / "f", os.O_RDONLY)
    foreground.send_signal(signal.SIGTERM)
    assert foreground.wait(10) == 0
    assert not is_mounted(mountpoint)
    for call in (os.read, held, 1), (os.close, held):
        with pytest.raises(OSError, match=r"abort|not connected"):
            call[0](*call[1:])


def test_umount_ends_the_foreground(foreground, mountpoint):
    assert histfs("umount", mountpoint).returncode == 0
    assert foreground.wait(10) == 0


def kill_daemon(mountpoint):
    (pid,) = processes(mountpoint)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(mountpoint))
    with pytest.raises(OSError, match=r"abort|not connected"):
        os.statvfs(mountpoint)  # what the kernel has cached can still be read


def test_a_mount_that_was_killed_is_replaced(mount, mountpoint):
    for _ in range(3):
        mount()
        assert len(os.listdir(mountpoint)) == 2
        kill_daemon(mountpoint)
    mount()
    assert len(os.listdir(mountpoint)) == 2
    assert histfs("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)  # no dead one is left below


def test_umount_cleans_up_a_mount_that_was_killed(mount, mountpoint):
    mount()
    kill_daemon(mountpoint)
    assert histfs("umount", mountpoint).returncode == 0
    assert os.listdir(mountpoint) == []


def test_a_mount_that_does_not_answer_can_be_taken_away(mount, mountpoint, repository):
    mount()
    (pid,) = processes(mountpoint)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.1)  # what the kernel knows of the root is forgotten then
        assert "is mounted already" in refused(repository, mountpoint)
        assert histfs("umount", "--lazy", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not processes(mountpoint))


def test_numbers_are_the_same_after_a_kill(mount, mountpoint):
    mount()
    path = mountpoint / FIRST_NAME / "d" / "s"
    before = os.lstat(path).st_ino
    kill_daemon(mountpoint)
    mount()
    assert os.lstat(path).st_ino == before


# What a mount shows while things happen


def test_a_new_session_appears_without_a_remount(mount, mountpoint, repository, tmp_path):
    mount()
    with open(mountpoint / SECOND_NAME / "f", "rb", buffering=0) as held:
        assert held.read(4) == b"new\n"
        changed = Dir({**NEW.entries, "f": File(b"third")})
        back_up(changed, THIRD, repository, tmp_path / "source")
        wait_until(lambda: sorted(os.listdir(mountpoint)) == [FIRST_NAME, SECOND_NAME, THIRD_NAME], 1.0)
        assert (mountpoint / THIRD_NAME / "f").read_bytes() == b"third"
        assert os.pread(held.fileno(), 20_000, 0) == b"new\n" * 3_000
    assert (mountpoint / SECOND_NAME / "f").read_bytes() == b"new\n" * 3_000
    assert (mountpoint / FIRST_NAME / "f").read_bytes() == b"old\n" * 3_000


@pytest.mark.parametrize("seed", [1, 2])
def test_every_snapshot_of_a_growing_history_is_what_was_backed_up(fuse, mountpoint, tmp_path, seed):
    """One mount, which lives through all sessions while others read."""
    repository, states, readers = tmp_path / "repository", [], []
    for state in histories.random_history(tmp_path / "source", seed, 8, histories.ANYTHING):
        done = histfs("--current-time", str(state.time), "backup", tmp_path / "source", repository)
        assert (done.returncode, done.stderr) == (0, "")
        if not states:
            assert histfs("mount", "--utc", repository, mountpoint).returncode == 0
        states.append(state)
        wait_until(lambda: len(os.listdir(mountpoint)) == len(states), 1.0)
        command = ["find", mountpoint, "-type", "f", "-exec", "cat", "{}", "+"]
        readers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _check_snapshots(mountpoint, states[-2:])
    _check_snapshots(mountpoint, states)
    for reader in readers:
        reader.wait(60)


def _check_snapshots(mountpoint, states):
    by_time = {int(os.stat(mountpoint / name).st_mtime): mountpoint / name for name in os.listdir(mountpoint)}
    for state in states:
        top = state.manifest[b""]._replace(mtime=state.time)
        assert difference({**state.manifest, b"": top}, read(by_time[state.time])) == []


def test_damage_is_an_error_for_the_file_and_a_line_in_the_log(mount, mountpoint, repository, tmp_path):
    log = tmp_path / "log"
    (repository / "plain").write_bytes(b"too long")
    mount("--log-file", log)
    for _ in range(5):
        system_calls.fails(errno.EIO, (mountpoint / SECOND_NAME / "plain").read_bytes)
    assert os.readlink(mountpoint / SECOND_NAME / "d" / "s") == "../f"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    lines = [line for line in log.read_text().splitlines() if " ERROR " in line]
    assert len(lines) == 1
    assert " plain at 2024-05-02" in lines[0]


def test_a_thousand_files_at_once_in_spite_of_a_low_limit(fuse, mountpoint, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4_000:
        pytest.skip("needs a hard limit of 4000 open files")
    many = Dir({f"{number:04}": File(b"%d" % number) for number in range(1000)})
    back_up(many, FIRST, tmp_path / "many", tmp_path / "source")
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))  # noqa: E731
    assert histfs("mount", "--utc", tmp_path / "many", mountpoint, preexec_fn=limit).returncode == 0
    directory = mountpoint / FIRST_NAME
    script = (
        "import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)); top = sys.argv[1];"
        "files = {name: open(os.path.join(top, name), 'rb', 0) for name in os.listdir(top)};"
        "assert all(file.read() == b'%d' % int(name) for name, file in files.items()); print(len(files))"
    )
    done = subprocess.run([sys.executable, "-c", script, directory], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1000\n", "")


def test_descriptors_do_not_leak(mount, mountpoint):
    mount()
    (pid,) = processes(mountpoint)

    def count():
        return len(os.listdir(f"/proc/{pid}/fd"))

    compare(mountpoint / FIRST_NAME, Dir())
    wait_until(lambda: count() < 100)  # closing is not waited for
    before = count()
    for name in (FIRST_NAME, SECOND_NAME):
        compare(mountpoint / name, Dir())
    wait_until(lambda: count() <= before + 2)


def test_readers_that_are_killed_do_no_harm(mount, mountpoint):
    mount()
    path = mountpoint / FIRST_NAME / "some"
    for delay in (0.0, 0.01, 0.03, 0.1):
        readers = [subprocess.Popen(["grep", "-r", "x", path], stdout=subprocess.DEVNULL) for _ in range(4)]
        time.sleep(delay)
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(10)
    assert (mountpoint / FIRST_NAME / "f").read_bytes() == b"old\n" * 3_000


# What is refused


def refused(*arguments, **options):
    done = histfs("mount", *arguments, **options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("histfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_second_mount_at_the_same_place(mount, mountpoint, repository):
    mount()
    said = refused(repository, mountpoint)
    assert f"histfs:{repository}" in said
    assert "histfs umount" in said
    assert len(os.listdir(mountpoint)) == 2


@pytest.mark.parametrize("place", ["file", "missing", "full"])
def test_a_mount_point_that_is_no_empty_directory(fuse, repository, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "something").mkdir(parents=True)
    said = refused(repository, tmp_path / place)
    assert place in said


def test_what_is_no_repository(fuse, tmp_path, mountpoint):
    assert "not a repository" in refused(tmp_path, mountpoint)
    assert "no such directory" in refused(tmp_path / "missing", mountpoint)


OVERLAPS = {
    "equal": ("repository", "repository"),
    "inside": ("repository", "repository/d"),
    "outside": ("repository", "."),
    "equal by links": ("link", "repository"),
    "inside by links": ("repository", "link/d"),
    "outside by links": ("link", "up"),
}


@pytest.mark.parametrize("form", OVERLAPS)
def test_places_that_overlap(fuse, repository, tmp_path, form):
    (tmp_path / "link").symlink_to(repository)
    (tmp_path / "up").symlink_to(tmp_path)
    where, at = OVERLAPS[form]
    assert "repository" in refused(tmp_path / where, tmp_path / at)


@root_only
@pytest.mark.parametrize(
    ("bound", "onto", "at"),
    [("repository", "bind", "bind"), ("repository/d", "bind", "bind"), (".", "bind", "bind/repository/d")],
    ids=["the repository", "a part of it", "what it lies in"],
)
def test_places_that_overlap_by_bind_mounts(fuse, repository, tmp_path, bound, onto, at):
    (tmp_path / onto).mkdir()
    subprocess.run(["mount", "--bind", tmp_path / bound, tmp_path / onto], check=True)
    try:
        assert "lies in the repository" in refused(repository, tmp_path / at)
    finally:
        subprocess.run(["umount", tmp_path / onto], check=True)


def test_the_log_and_temporary_files_in_the_way(fuse, repository, mountpoint, tmp_path):
    assert "log" in refused("--log-file", mountpoint / "log", repository, mountpoint)
    assert "log" in refused("--log-file", repository / "log", repository, mountpoint)
    assert not (repository / "log").exists()
    for directory in (mountpoint, repository):
        environment = {**os.environ, "TMPDIR": os.fspath(directory)}
        assert "TMPDIR" in refused(repository, mountpoint, env=environment)


def test_a_log_that_cannot_be_written(fuse, repository, mountpoint, tmp_path):
    assert "log" in refused("--log-file", tmp_path / "missing" / "log", repository, mountpoint)
    assert not is_mounted(mountpoint)


def test_umount_of_what_is_not_ours(fuse, mountpoint):
    for place in (mountpoint, "/proc"):
        done = histfs("umount", place)
        assert done.returncode == 1
        assert str(place) in done.stderr


@root_only
def test_a_dead_mount_of_another_program_is_left_alone(fuse, repository, mountpoint):
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mounted = subprocess.run(["mount", "-i", "-t", "fuse.other", "-o", options, "other", mountpoint], pass_fds=[device])
    os.close(device)
    assert mounted.returncode == 0
    assert "other" in refused(repository, mountpoint)
    assert is_mounted(mountpoint)
