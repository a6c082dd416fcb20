"""The kinds of hostile repositories and sources: each a script that spoils what is healthy, in one way of its own.

A repository is the one of `repositories`; beside it lies the directory `outside`, with a secret, to which those lead
that lead out. None of them is to be harmless in any other way than by being handled.
"""

import base64
import gzip
import os
import shutil
import sqlite3
import stat
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.hostile.repositories import (
    DATA,
    DELTA_MAGIC,
    END,
    FIRST,
    INCREMENTS,
    NEW,
    SECOND,
    add_record,
    copy,
    edit_records,
    increment_path,
    insert_record,
    literal,
    metadata_path,
    put,
    record,
    records,
    write_delta,
    write_records,
    write_snapshot,
)

SECRET = b"nobody may see this, and nobody may change it\n"
NAMES_FOR_TERMINALS = (
    b"esc\x1b[2J\x1b]0;owned\x07",
    b"cr\rback",
    b"line\nbreak",
    b"c1\xc2\x9b31m",
    b"bidi\xe2\x80\xaetxt.exe",
)
ODD_NAMES = (b"-rf", b" ", b"\xff\xfe", b"a" * 255, b"*", b"$(touch owned)", b"`touch owned`", b"\\n", b"=", b"#")

Spoil = Callable[[Path], object]
REPOSITORIES: dict[str, Spoil] = {}
SOURCES: dict[str, Spoil] = {}


def outside_of(path: Path) -> Path:
    """Where nothing may be read or written."""
    return path.parent / "outside"


def make_outside(path: Path) -> None:
    outside = outside_of(path)
    (outside / "d" / "deeper").mkdir(parents=True)
    for name in ("secret", "keep", "7", "d/inner", "d/deeper/x"):
        (outside / name).write_bytes(SECRET)


def kind(spoil: Spoil) -> Spoil:
    REPOSITORIES[spoil.__name__.replace("_", "-")] = spoil
    return spoil


def source(spoil: Spoil) -> Spoil:
    SOURCES[spoil.__name__.replace("_", "-")] = spoil
    return spoil


def evil(path: bytes, **fields: object) -> bytes:
    return record(path, **({"Type": "reg", "Size": 0, "ModTime": 0, "Permissions": 0o644} | fields))


def kinds_of_records(group: str, texts: dict[str, bytes], *, before: bytes = b"keep") -> None:
    """A kind for each text, which is put into the newest list."""
    for name, text in texts.items():
        REPOSITORIES[f"{group}-{name}"] = lambda path, text=text: insert_record(path, text, before=before)


def link_to(path: Path) -> Callable[[Path], object]:
    return lambda place: place.symlink_to(path)


# Paths that lead out, or nowhere

kinds_of_records(
    "path",
    {
        "above": evil(b"../outside/new"),
        "above-from-below": evil(b"d/../../outside/new"),
        "absolute": evil(b"/tmp/histfs-was-here"),
        "dots": evil(b".."),
        "own-directory": evil(b"d/./inner2"),
        "empty-component": evil(b"d//inner2"),
        "trailing-slash": evil(b"keep/"),
        "nul": evil(b"d/\0x"),
        "in-the-data": evil(b"rdiff-backup-data/chars_to_quote"),
        "too-long-name": evil(b"e" * 256),
        "very-long-name": evil(b"e" * 60_000),
        "too-deep": b"".join(
            record(b"/".join([b"e" * 8] * depth), Type="dir", ModTime=0, Permissions=0o755) for depth in range(1, 600)
        ),
        "below-a-file": evil(b"keep/evil"),
        "below-nothing": evil(b"kdnothing/evil"),
        "twice": record(b"keep", Type="sym", SymData=b"/etc/passwd", Permissions=0o777),
    },
)
kinds_of_records(
    "name", {"for-a-terminal": b"".join(evil(name.replace(b"\n", b"\\n")) for name in NAMES_FOR_TERMINALS)}
)


@kind
def names_that_are_odd(path: Path) -> None:
    for name in ODD_NAMES:
        (path / os.fsdecode(name)).write_bytes(b"odd")
        add_record(path, name.replace(b"\\", b"\\\\"), Type="reg", Size=3, ModTime=0, Permissions=0o644)


@kind
def record_below_a_link_that_leads_out(path: Path) -> None:
    edit_records(path, lambda text: text.replace(b"SymData keep", b"SymData " + os.fsencode(outside_of(path))))
    insert_record(path, evil(b"link/secret"), before=b"one")


@kind
def directory_that_becomes_a_link_that_leads_out(path: Path) -> None:
    link = record(b"d", Type="sym", SymData=os.fsencode(outside_of(path) / "d"), Permissions=0o777)
    directory = next(text for text in records(NEW) if text.startswith(b"File d\n"))
    edit_records(path, lambda text: text.replace(directory, link))


@kind
def list_in_no_order(path: Path) -> None:
    write_records(path, SECOND, b"".join([records(NEW)[0], *records(NEW)[:0:-1]]))


@kind
def list_without_a_root(path: Path) -> None:
    write_records(path, SECOND, b"".join(records(NEW)[1:]))


@kind
def root_that_is_a_link(path: Path) -> None:
    root = record(b"", Type="sym", SymData=os.fsencode(outside_of(path)), Permissions=0o777)
    write_records(path, SECOND, root + b"".join(records(NEW)[1:]))


@kind
def root_that_is_a_file(path: Path) -> None:
    write_records(
        path, SECOND, record(b"", Type="reg", Size=3, ModTime=0, Permissions=0o644) + b"".join(records(NEW)[1:])
    )


# Values that cannot be

kinds_of_records(
    "value",
    {
        "size-of-exabytes": evil(b"evil", Size=2**62),
        "size-beyond-64-bits": evil(b"evil", Size=2**70),
        "size-negative": evil(b"evil", Size=-1),
        "size-no-number": evil(b"evil", Size="abc"),
        "size-of-many-digits": evil(b"evil", Size="9" * 5_000),
        "mode-no-number": evil(b"evil", Permissions="abc"),
        "mode-beyond-its-bits": evil(b"evil", Permissions=2**40),
        "time-before-all": evil(b"evil", ModTime=-(10**14)),
        "time-after-all": evil(b"evil", ModTime=10**17),
        "time-no-number": evil(b"evil", ModTime="never"),
        "owner-beyond-32-bits": evil(b"evil", Uid=2**40, Gid=-7),
        "type-unknown": evil(b"evil", Type="other"),
        "type-missing": record(b"evil"),
        "digest-no-digest": evil(b"evil", SHA1Digest="xyz"),
        "digest-of-something-else": evil(b"evil", SHA1Digest="0" * 40),
        "link-without-target": record(b"evil", Type="sym", Permissions=0o777),
        "link-to-a-nul": record(b"evil", Type="sym", SymData=b"a\0b", Permissions=0o777),
        "link-of-5000-bytes": record(b"evil", Type="sym", SymData=b"x" * 5_000, Permissions=0o777),
        "device-number-missing": record(b"evil", Type="dev", Permissions=0o600),
        "device-number-too-large": record(b"evil", Type="dev", DeviceNum="c 99999999999 9", Permissions=0o600),
        "not-a-field": b"File evil\nnot a field\n",
        "alternate-name-above": evil(b"evil", AlternateMirrorName="../../outside/secret"),
        "alternate-increment-above": evil(b"evil", AlternateIncrementName="../../../outside/secret"),
    },
)
kinds_of_records(
    "effect",
    {
        "device-of-memory": record(b"evil", Type="dev", DeviceNum="c 1 1", Permissions=0o666),
        "device-of-zeros": record(b"evil", Type="dev", DeviceNum="c 1 5", Permissions=0o666),
        "setuid": evil(b"evil", Permissions=0o6755, Uid=0, Gid=0),
        "fifo": record(b"evil", Type="fifo", ModTime=0, Permissions=0o666),
        "socket": record(b"evil", Type="sock", ModTime=0, Permissions=0o666),
        "link-to-itself": record(b"evil", Type="sym", SymData=b"evil", Permissions=0o777),
        "link-out": record(b"evil", Type="sym", SymData=b"../outside/secret", Permissions=0o777),
    },
)

# Hard links

_GROUP: dict[str, object] = {"NumHardLinks": 2, "Inode": 4711, "DeviceLoc": 99}
kinds_of_records(
    "links",
    {
        "of-another-size": evil(b"six", Size=6, **_GROUP),
        "that-say-they-are-the-same": evil(b"six", Size=7, ModTime=1_500_000_000, **_GROUP),
        "of-very-many": b"".join(
            evil(b"zz%05d" % number, NumHardLinks=5_000, Inode=1, DeviceLoc=1) for number in range(5_000)
        ),
        "of-numbers-beyond-64-bits": evil(b"six", NumHardLinks=2**80, Inode=2**80, DeviceLoc=2**80),
    },
    before=b"two",
)


# Lists


def damaged_list(name: str, damage: Callable[[bytes], bytes], session_time: int = SECOND) -> None:
    def spoil(path: Path) -> None:
        place = metadata_path(path, session_time)
        place.write_bytes(damage(place.read_bytes()))

    REPOSITORIES[f"list-{name}"] = spoil


damaged_list("empty", lambda _: b"")
damaged_list("of-nothing", lambda _: gzip.compress(b""))
damaged_list("of-garbage", lambda _: bytes(range(256)) * 3)
damaged_list("of-compressed-garbage", lambda _: gzip.compress(bytes(range(256)) * 3))
damaged_list("cut", lambda whole: whole[: len(whole) // 2])
damaged_list("with-a-wrong-sum", lambda whole: whole[:-8] + b"1234" + whole[-4:])
damaged_list("with-garbage-behind", lambda whole: whole + bytes(range(256)))
damaged_list("in-another-format", lambda whole: zlib.compress(gzip.decompress(whole)))
damaged_list("of-a-gigabyte-in-a-line", lambda _: gzip.compress(b"File ") + gzip.compress(b"x" * (1 << 24)) * 64)
damaged_list("of-a-gigabyte-of-nothing", lambda _: gzip.compress(bytes(1 << 24)) * 64)
damaged_list("of-many-empty-lines", lambda whole: whole + gzip.compress(b"\n" * 300_000))
damaged_list("of-one-field-without-end", lambda _: gzip.compress(b"File .\n" + b"  Type dir\n" * 200_000))
damaged_list(
    "of-very-many-names",
    lambda whole: whole + gzip.compress(b"".join(evil(b"zz%06d" % number) for number in range(5_000))),
)
damaged_list("of-old-garbage", lambda _: bytes(range(256)) * 3, FIRST)
damaged_list("of-old-bomb", lambda _: gzip.compress(b"File ") + gzip.compress(b"x" * (1 << 24)) * 64, FIRST)


def placed(name: str, where: Callable[[Path], Path], make: Callable[[Path], Callable[[Path], object]]) -> None:
    """Something else in the place of what should be there."""
    REPOSITORIES[name] = lambda path: put(where(path), make(path))


def _data(name: str) -> Callable[[Path], Path]:
    return lambda path: path / DATA / name


def _secret(path: Path) -> Callable[[Path], object]:
    return link_to(outside_of(path) / "secret")


def _directory_outside(path: Path) -> Callable[[Path], object]:
    return link_to(outside_of(path))


for _name, _where in {
    "list": lambda path: metadata_path(path, SECOND),
    "old-list": lambda path: metadata_path(path, FIRST),
    "increment": lambda path: increment_path(path, b"deleted", "snapshot.gz"),
    "delta": lambda path: increment_path(path, b"changed", "diff.gz"),
    "mirror-file": lambda path: path / "keep",
    "rule": _data("chars_to_quote"),
    "marker": _data("current_mirror.2023-11-15T22:13:20Z.data"),
    "lock": _data("lock.yml"),
    "log": _data("backup.log"),
    "statistics": _data("session_statistics.2023-11-15T22:13:20Z.data"),
}.items():
    placed(f"fifo-as-{_name}", _where, lambda _: os.mkfifo)
    placed(f"link-out-as-{_name}", _where, _secret)
placed("endless-device-as-list", lambda path: metadata_path(path, SECOND), lambda _: link_to(Path("/dev/zero")))
placed("socket-as-mirror-file", lambda path: path / "keep", lambda _: lambda at: os.mknod(at, stat.S_IFSOCK | 0o600))
placed("link-to-itself-as-list", lambda path: metadata_path(path, SECOND), lambda _: lambda at: at.symlink_to(at.name))
for _name, _where in {
    "increments": lambda path: path / INCREMENTS,
    "mirror-directory": lambda path: path / "d",
    "long-names": _data("long_filename_data"),
    "own-directory": _data("histfs"),
}.items():
    placed(f"link-out-as-{_name}", _where, _directory_outside)


@kind
def long_name_that_leads_out(path: Path) -> None:
    (path / DATA / "long_filename_data").symlink_to(outside_of(path))
    add_record(path, b"evil", Type="reg", Size=len(SECRET), ModTime=0, AlternateMirrorName=7, Permissions=0o644)


# Attributes and lists


def attributes(name: str, file: str, text: Callable[[], bytes]) -> None:
    def spoil(path: Path) -> None:
        (path / DATA / f"{file}.2023-11-15T22:13:20Z.snapshot.gz").write_bytes(gzip.compress(text()))

    REPOSITORIES[f"{file.replace('_', '-')}-{name}"] = spoil


_EAS, _ACLS = "extended_attributes", "access_control_lists"
_BASE = b"user::rw-\ngroup::r--\nmask::rwx\nother::r--\n"
attributes("of-garbage", _EAS, lambda: bytes(range(256)))
attributes("of-a-gigabyte", _EAS, lambda: gzip.compress(b"x" * (1 << 24)) * 4)
attributes("of-a-megabyte", _EAS, lambda: b"# file: keep\nuser.a=0s" + base64.b64encode(bytes(1 << 20)) + b"\n")
attributes("that-are-the-systems", _EAS, lambda: b"# file: keep\nsystem.posix_acl_access=0sAgAAAAEABgD/////\n")
attributes("for-a-terminal", _EAS, lambda: b"# file: keep\nuser.\\033[2J\\012=0sMQ==\n")
attributes("of-no-file", _EAS, lambda: b"# file: ../outside/secret\nuser.a=0sMQ==\n# file: zzz\nuser.a=0sMQ==\n")
attributes("of-somebody-unknown", _ACLS, lambda: b"# file: keep\nuser:\x1b[2Jnobody here:rwx\n" + _BASE)
attributes("of-ids-beyond-32-bits", _ACLS, lambda: b"# file: keep\nuser:99999999999:rwx\nuser:4294967295:rwx\n" + _BASE)
attributes(
    "of-very-many",
    _ACLS,
    lambda: b"# file: keep\n" + b"".join(b"user:%d:rwx\n" % number for number in range(20_000)) + _BASE,
)
attributes("without-a-mask", _ACLS, lambda: b"# file: keep\nuser::rw-\nuser:1:rwx\nother::rwx\n")
attributes("default-of-a-file", _ACLS, lambda: b"# file: keep\n" + _BASE + b"default:user::rwx\n")
attributes("of-garbage", _ACLS, lambda: b"# file: keep\nuser::::rwxrwx\ngarbage\n")


# Increments


def delta(name: str, commands: bytes) -> None:
    REPOSITORIES[f"delta-{name}"] = lambda path: write_delta(path, b"changed", commands)


delta("of-two-gigabytes", copy(0, 3_900) * 500_000 + END)
delta("beyond-its-basis", copy(2**63 - 1, 1) + END)
delta("of-more-than-there-is", copy(0, 2**62) + END)
delta("without-end", copy(0, 3_900))
delta("of-nothing", END)
delta("of-something-else", literal(b"the evil text\n" * 279)[:3_900] + END)
delta("of-garbage", b"\xff" * 50)
delta("of-a-literal-that-is-not-there", b"\x44" + (2**62).to_bytes(8, "big") + b"x" * 100)


@kind
def increment_of_a_gigabyte(path: Path) -> None:
    increment_path(path, b"deleted", "snapshot.gz").write_bytes(gzip.compress(bytes(1 << 24)) * 64)


@kind
def increment_of_a_terabyte_that_is_believed(path: Path) -> None:
    increment_path(path, b"deleted", "snapshot.gz").write_bytes(gzip.compress(bytes(1 << 24)) * 64)
    edit_records(path, lambda text: text.replace(b"Size 22\n", b"Size 1099511627776\n"), FIRST)


@kind
def increment_larger_than_recorded(path: Path) -> None:
    write_snapshot(path, b"deleted", b"once there was a file\n" * 2)


@kind
def increments_twice(path: Path) -> None:
    increment_path(path, b"changed", "diff").write_bytes(DELTA_MAGIC + copy(0, 5) + END)


@kind
def increments_of_times_that_cannot_be(path: Path) -> None:
    for text in ("2023-99-99T25:61:61Z", "0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "2023-11-14T22:13:20+99:99"):
        (path / INCREMENTS / f"changed.{text}.diff.gz").write_bytes(b"x")
        (path / DATA / f"mirror_metadata.{text}.diff.gz").write_bytes(b"x")


@kind
def increments_in_a_chain_that_grows(path: Path) -> None:
    for minute in range(14, 22):
        delta_bytes = gzip.compress(DELTA_MAGIC + copy(0, 3_900) * 100 + END)
        (path / INCREMENTS / f"changed.2023-11-14T22:{minute:02}:20Z.diff.gz").write_bytes(delta_bytes)


@kind
def increments_in_a_chain_without_end(path: Path) -> None:
    for number in range(1_500):
        hour, minute = divmod(number, 60)
        name = f"changed.2023-11-{15 + hour // 24:02}T{hour % 24:02}:{minute:02}:00Z.diff.gz"
        (path / INCREMENTS / name).write_bytes(gzip.compress(DELTA_MAGIC + copy(0, 3_900) + END))


@kind
def increments_named_as_directories(path: Path) -> None:
    (path / INCREMENTS / "changed.2023-11-14T22:13:20Z.dir").mkdir()
    (path / INCREMENTS / "..2023-11-14T22:13:20Z.diff.gz").write_bytes(b"x")


@kind
def index_of_members_that_lies(path: Path) -> None:
    """docs/format.md 13: of a file that has one, each byte of the last members is another."""
    whole = gzip.compress(b"once there was a file\n")
    member = gzip.compress(b"")
    extra = b"HF" + (50).to_bytes(2, "little") + b"histfs\x01\0" + (2**63).to_bytes(8, "little") + b"\xff" * 34
    header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra
    increment_path(path, b"deleted", "snapshot.gz").write_bytes(whole + header + member[10:])


# The mirror, markers and rules


@kind
def mirror_of_other_bytes(path: Path) -> None:
    status = (path / "keep").stat()
    (path / "keep").write_bytes(b"KEPT as it is\n")
    os.utime(path / "keep", ns=(status.st_atime_ns, status.st_mtime_ns))


@kind
def mirror_with_strangers(path: Path) -> None:
    os.mkfifo(path / "stranger")
    (path / "d" / "stranger").symlink_to(outside_of(path))
    (path / DATA / "stranger").symlink_to(outside_of(path))


@kind
def markers_of_three_sessions(path: Path) -> None:
    for day in (16, 17):
        (path / DATA / f"current_mirror.2023-11-{day}T00:00:00Z.data").write_bytes(b"PID 1\n")


@kind
def marker_of_gigabytes(path: Path) -> None:
    with (path / DATA / "current_mirror.2023-11-15T22:13:20Z.data").open("wb") as file:
        file.truncate(1 << 33)


@kind
def markers_for_a_terminal(path: Path) -> None:
    marker = path / DATA / "current_mirror.2023-11-14T22:13:20Z.data"
    marker.write_bytes(b"PID 1\x1b[2J\nPID \x1b]0;owned\x07\n")


@kind
def no_marker(path: Path) -> None:
    for marker in (path / DATA).glob("current_mirror.*"):
        marker.unlink()


@kind
def rules_that_are_no_pattern(path: Path) -> None:
    (path / DATA / "chars_to_quote").write_bytes(b"(?P<x>[[:alpha:]z-a")


@kind
def rules_that_take_for_ever(path: Path) -> None:
    (path / DATA / "chars_to_quote").write_bytes(b"(a+)+$")


@kind
def rules_without_end(path: Path) -> None:
    (path / DATA / "chars_to_quote").write_bytes(b"A-Z" * 100_000)


@kind
def escapes_that_are_unknown(path: Path) -> None:
    (path / DATA / "special_escapes").write_bytes(b"owned\n\x1b[2J\n" * 1_000)


@kind
def names_that_decode_to_others(path: Path) -> None:
    (path / DATA / "chars_to_quote").write_bytes(b"A-Z;")
    for name in ("keep;047;046;046", ";046;046;047outside;047new", ";999", ";", ";0"):
        (path / name).write_bytes(b"x")
        (path / INCREMENTS / f"{name}.2023-11-14T22:13:20Z.snapshot").write_bytes(b"x")


@kind
def data_with_very_many_names(path: Path) -> None:
    for number in range(10_000):
        (path / DATA / f"increments.junk{number}").touch()


@kind
def statistics_that_are_none(path: Path) -> None:
    (path / DATA / "session_statistics.2023-11-15T22:13:20Z.data").write_bytes(
        b"StartTime \x1b[2J\nSourceFiles 1e999\n"
    )
    bomb = gzip.compress(b"x" * (1 << 24)) * 16
    (path / DATA / "file_statistics.2023-11-15T22:13:20Z.data.gz").write_bytes(bomb)


@kind
def error_log_for_a_terminal(path: Path) -> None:
    (path / DATA / "error_log.2023-11-15T22:13:20Z.data").write_bytes(b"\x1b[2J\x1b]0;owned\x07\n" * 1_000)


# What histfs itself keeps


def own(path: Path) -> Path:
    (path / DATA / "histfs").mkdir(exist_ok=True)
    return path / DATA / "histfs"


@kind
def catalog_of_garbage(path: Path) -> None:
    (own(path) / "catalog.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)


@kind
def catalog_with_a_trigger(path: Path) -> None:
    database = sqlite3.connect(own(path) / "catalog.sqlite")
    database.executescript(
        f"""pragma application_id = {0x68697374}; pragma user_version = 2;
        create table state (newest_list blob not null);
        create view version as select load_extension('{outside_of(path)}/evil.so');
        create trigger owned before update on state begin select load_extension('evil.so'); end;"""
    )
    database.close()


@kind
def catalog_that_leads_out(path: Path) -> None:
    (own(path) / "catalog.sqlite").symlink_to(outside_of(path) / "secret")


@kind
def catalog_that_is_a_fifo(path: Path) -> None:
    os.mkfifo(own(path) / "catalog.sqlite")


@kind
def journal_of_a_catalog(path: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        (own(path) / f"catalog.sqlite{end}").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 512)


@kind
def ledger_of_garbage(path: Path) -> None:
    (own(path) / "ledger").write_bytes(bytes(range(256)) * 64)


@kind
def ledger_that_leads_out(path: Path) -> None:
    (own(path) / "ledger").symlink_to(outside_of(path) / "secret")


@kind
def module_in_the_repository(path: Path) -> None:
    """What Python or a shell would run, if it looked for it where it is."""
    for place in (path, path / DATA, own(path)):
        for name in ("sitecustomize.py", "histfs.py", "os.py", "encodings.py", ".bashrc"):
            (place / name).write_bytes(b"open('/tmp/histfs-was-here', 'w')\n")


# Sources


@source
def names_for_terminals(path: Path) -> None:
    for name in NAMES_FOR_TERMINALS:
        (path / os.fsdecode(name)).write_bytes(b"x")
        (path / os.fsdecode(name + b".d")).mkdir()


@source
def odd_names(path: Path) -> None:
    for name in ODD_NAMES:
        (path / os.fsdecode(name)).write_bytes(b"x")


@source
def names_of_increments(path: Path) -> None:
    for name in ("q.2023-11-14T22:13:20Z.dir", "q.2023-11-14T22:13:20Z.missing", "rdiff-backup.tmp.1", "keep.1.gz"):
        (path / name).write_bytes(b"x")
    (path / "q.2023-11-14T22:13:20Z.dir2").mkdir()
    (path / "d" / "rdiff-backup-data").mkdir()


@source
def own_data(path: Path) -> None:
    (path / "rdiff-backup-data").symlink_to(outside_of(path))


@source
def links_everywhere(path: Path) -> None:
    for number, target in enumerate(
        (outside_of(path), "loop5", "/dev/zero", "/proc/self/mem", "..", "loop5", "x" * 4_000)
    ):
        (path / f"loop{number}").symlink_to(target)
    shutil.rmtree(path / "d")
    (path / "d").symlink_to(outside_of(path) / "d")


@source
def things_that_block(path: Path) -> None:
    os.mkfifo(path / "fifo")
    os.mknod(path / "socket", stat.S_IFSOCK | 0o600)
    if os.geteuid() == 0:
        os.mknod(path / "zeros", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(path / "memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))


@source
def deep_directories(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


@source
def many_links_of_one_file(path: Path) -> None:
    for number in range(2_000):
        os.link(path / "keep", path / f"link{number:04}")


@source
def large_attributes(path: Path) -> None:
    for number in range(4):
        try:
            os.setxattr(path / "keep", f"user.\x1b[2J{number}", bytes(range(256)) * 3)
        except OSError:
            return


@source
def modes_that_shut_out(path: Path) -> None:
    (path / "shut").mkdir()
    (path / "shut" / "inside").write_bytes(b"x")
    (path / "shut").chmod(0)
    (path / "keep").chmod(0o6777)


def names(kinds: Iterable[str]) -> list[str]:
    return sorted(kinds)
