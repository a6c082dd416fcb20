"""librsync from Python: whole files, streams of any chunking, every kind of source, basis and target, and damage."""

import ast
import gc
import gzip
import io
import logging
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs._rsync import lib
from tests import rsync_reference as reference
from tests.rsync_reference import Copy, Literal

MiB = 1 << 20
RANDOM = random.Random(20240501).randbytes(5 * MiB)
OLD = RANDOM[: 300 * 1024]
NEW = OLD[:100_000] + b"something else" + OLD[100_500:200_000] + OLD[50_000:90_000] + OLD[200_000:]
SMALL = rsync.SignatureParameters(16, 8)  # makes much delta from little data


def make_delta(old: bytes, new: bytes, parameters: rsync.SignatureParameters | None = None) -> bytes:
    return b"".join(rsync.delta(rsync.Signature.of(old, parameters), new))


def apply(basis: rsync.Basis, delta: rsync.Source, max_size: int | None = None) -> bytes:
    return b"".join(rsync.patch(basis, delta, max_size))


def push(job: rsync.Job, data: bytes, sizes: Iterator[int], max_length: int = -1) -> bytes:
    """All output of `job`, which is fed chunks of these sizes, and drained before it is fed again."""
    made = []
    at = 0
    while at < len(data) and not job.eof:
        if job.needs_input:
            size = next(sizes)
            made.append(job.feed(data[at : at + size], max_length))
            at += size
        else:
            made.append(job.feed(b"", max_length))
        assert max_length < 0 or len(made[-1]) <= max_length
    while not job.eof:
        made.append(job.finish(max_length))
        assert max_length < 0 or len(made[-1]) <= max_length
    return b"".join(made)


def always(size: int) -> Iterator[int]:
    while True:
        yield size


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(data: bytes) -> Path:
        path = tmp_path / f"file{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data)
        return path

    return make


# --- the compiled module -----------------------------------------------------------------------------------------


def test_the_stub_declares_what_there_is() -> None:
    stub = ast.parse((Path(rsync.__file__).parent / "_rsync.pyi").read_text())
    names = set()
    for node in next(node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "_Lib").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    assert names == set(dir(lib))


def test_the_numbers_are_librsyncs() -> None:
    assert {result: getattr(lib, f"RS_{result.name}") for result in rsync.Result} == {r: r.value for r in rsync.Result}
    assert {kind: getattr(lib, f"RS_{kind.name}_SIG_MAGIC") for kind in rsync.Magic} == {
        k: k.value for k in rsync.Magic
    }
    assert rsync.LIBRSYNC_VERSION[0].isdigit()


def test_every_result_has_a_text() -> None:
    texts = [rsync.strerror(result) for result in rsync.Result]
    assert len(set(texts)) == len(texts)
    assert "unexplained problem" not in texts  # what librsync says of PARAM_ERROR


# --- whole files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OLD, NEW),
        (OLD, OLD),
        (OLD, b""),
        (b"", NEW),
        (b"", b""),
        (OLD, OLD[1:]),
        (OLD, OLD[:-1]),
        (OLD, OLD * 3),
        (bytes(MiB), bytes(3 * MiB) + b"x"),
        (RANDOM[: 2 * MiB], RANDOM[3 * MiB :]),
    ],
)
def test_round_trip(old: bytes, new: bytes) -> None:
    delta = make_delta(old, new)
    assert apply(old, delta) == new
    assert reference.apply(old, delta, len(new)) == new


@given(st.data())
def test_round_trip_of_edits(data: st.DataObject) -> None:
    old = data.draw(st.binary(max_size=600))
    new = old
    for _ in range(data.draw(st.integers(0, 4))):
        start, end, to = sorted(data.draw(st.integers(0, len(new))) for _ in range(3))
        moved = new[start:end]
        rest = new[:start] + new[end:]
        new = data.draw(
            st.sampled_from(
                [rest, new[:start] + data.draw(st.binary(max_size=40)) + new[end:], new[:to] + moved + new[to:]]
            )
        )
    parameters = rsync.SignatureParameters(
        data.draw(st.integers(1, 64)), data.draw(st.integers(4, 16)), data.draw(st.sampled_from(list(rsync.Magic)))
    )
    delta = make_delta(old, new, parameters)
    assert apply(old, delta, len(new)) == new
    assert reference.apply(old, delta, len(new)) == new


commands = st.lists(
    st.builds(Literal, st.binary(min_size=1, max_size=100)) | st.builds(Copy, st.integers(0, 999), st.integers(1, 1000))
)


@given(commands, st.integers(0, 3), st.integers(0, 99))
def test_every_form_of_command(commands: list[Literal | Copy], widen: int, seed: int) -> None:
    chance = random.Random(seed)
    basis = RANDOM[:2000]
    delta = reference.encode(commands, widen)
    expected = reference.apply(basis, delta, MiB)
    assert apply(basis, delta) == expected
    assert push(rsync.PatchJob(basis), delta, iter(lambda: chance.randint(1, 9), 0)) == expected


@given(st.data())
def test_damaged_deltas_are_judged_alike(data: st.DataObject) -> None:
    basis = RANDOM[:1000]
    delta = bytearray(reference.encode(data.draw(commands), data.draw(st.integers(0, 3))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(delta)))
        delta[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        expected = reference.apply(basis, bytes(delta), MiB)
    except reference.DeltaError:
        with pytest.raises(rsync.RsyncError):
            apply(basis, delta, MiB)
    else:
        assert apply(basis, delta, MiB) == expected


@given(st.binary(max_size=100))
def test_any_bytes_are_a_signature_or_an_error(data: bytes) -> None:
    for prefix in (b"", b"rs\x01", bytes.fromhex("72730147 00000010 00000008")):
        try:
            signature = rsync.Signature.load(prefix + data)
        except rsync.RsyncError:
            continue
        delta = b"".join(rsync.delta(signature, data))
        assert b"".join(c.data for c in reference.parse(delta) if isinstance(c, Literal)) in data


# --- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [-1, 1, 7, 100_000])
@pytest.mark.parametrize("size", [1, 2, 3, 17, 4096, 10**9])
def test_chunks_of_any_size(size: int, max_length: int) -> None:
    old, new = OLD[:5000], OLD[:2000] + b"in between" + OLD[1000:4900]
    whole = b"".join(rsync.signature(old, SMALL))
    assert push(rsync.SignatureJob(SMALL), old, always(size), max_length) == whole
    load = rsync.LoadSignatureJob()
    assert push(load, whole, always(size), max_length) == b""
    assert (load.signature.parameters, load.signature.block_count) == (SMALL, 313)
    delta = push(rsync.DeltaJob(load.signature), new, always(size), max_length)
    assert delta == make_delta(old, new, SMALL)
    assert push(rsync.PatchJob(old), delta, always(size), max_length) == new


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_length", [-1, 1, 1000, 300_000])
def test_chunks_of_random_sizes(seed: int, max_length: int) -> None:
    chance = random.Random(seed)
    old = OLD if max_length != 1 else OLD[:3000]
    new = old[1000:] + old[:500] + b"?" + old[700:]
    sizes = iter(lambda: chance.choice([1, 2, 100, 5000, 300_000]), 0)
    signature = rsync.Signature.load([push(rsync.SignatureJob(), old, sizes, max_length)])
    delta = push(rsync.DeltaJob(signature), new, sizes, max_length)
    assert push(rsync.PatchJob(old), delta, sizes, max_length) == new


def test_input_may_be_fed_before_output_is_taken() -> None:
    delta = make_delta(OLD, NEW)
    job = rsync.PatchJob(OLD)
    made = [job.feed(delta[at : at + 1], 0) for at in range(len(delta))]
    assert set(made) == {b""}
    assert not job.needs_input
    assert job.feed(b"", -1) == NEW


def test_fed_buffers_are_free_after_the_call() -> None:
    delta = make_delta(OLD, NEW)
    job = rsync.PatchJob(OLD)
    buffer = bytearray(delta)
    made = job.feed(buffer, 10)
    buffer[:] = b"x" * len(buffer)
    buffer.clear()  # a bytearray that is still in use cannot be resized
    assert made + job.finish() == NEW


def test_the_end_of_a_delta() -> None:
    delta = reference.encode([Copy(0, 5), Literal(b"!")])
    job = rsync.PatchJob(b"hello")
    assert job.needs_input
    assert not job.eof
    assert job.feed(delta + b"and more") == b"hello!"
    assert (job.eof, job.needs_input, job.unused_data) == (True, False, b"and more")
    with pytest.raises(EOFError):
        job.feed(b"x")
    assert job.finish() == b""
    job.close()
    assert (job.eof, job.unused_data) == (True, b"and more")


def test_unused_data_comes_with_the_end() -> None:
    job = rsync.PatchJob(b"hello")
    assert job.feed(reference.encode([Copy(0, 5)]) + b"rest", 4) == b"hell"
    assert (job.eof, job.unused_data) == (False, b"")
    assert job.feed(b"", 4) == b"o"
    assert job.feed(b"", 4) == b"" if not job.eof else True
    assert (job.eof, job.unused_data) == (True, b"rest")


def test_nothing_can_be_fed_after_finish() -> None:
    job = rsync.SignatureJob()
    job.feed(b"abc")
    while not job.eof:
        job.finish(5)
    with pytest.raises(EOFError):
        job.feed(b"def")
    assert job.finish() == b""


def test_patch_reads_its_input_to_the_end() -> None:
    rest = iter([reference.encode([Literal(b"x")]), b"ignored", bytes(2 * MiB)])
    assert apply(b"", rest) == b"x"
    assert list(rest) == []
    stream = gzip.compress(reference.encode([Literal(b"x")]))
    damaged = stream[:-8] + bytes(4) + stream[-4:]  # the CRC
    with gzip.open(io.BytesIO(damaged)) as file, pytest.raises(gzip.BadGzipFile):
        apply(b"", file)
    with gzip.open(io.BytesIO(damaged)) as file, pytest.raises(gzip.BadGzipFile):
        rsync.patch_file(b"", file, io.BytesIO())


@pytest.mark.parametrize("block_len", [100, 2000, 20_000])
def test_memory_stays_bounded(block_len: int) -> None:
    """librsync 2.3 takes in all input while its output is full; a job that lets it keeps the whole file in memory."""
    program = f"""
from histfs import rsync
block = bytes(range(256)) * 1024
signature = rsync.Signature.of(b"nothing like it" * 1000, rsync.SignatureParameters({block_len}, 8))
def much(): yield from (bytes([i]) + block for i in range(200))
def memory(line): return int(open("/proc/self/status").read().split(line)[1].split()[0])
large = b"".join(much())
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
before = memory("VmRSS:")
out = sum(map(len, rsync.delta(signature, much())))
job = rsync.DeltaJob(signature)
for data in much():
    out += len(job.feed(data, 1000))
    while not job.needs_input:
        out += len(job.feed(b"", 65536))
job = rsync.DeltaJob(signature)
out += len(job.feed(large, 65536))
while not job.needs_input:
    out += len(job.feed(b"", 65536))
assert out > 140 << 20, out
bomb = bytes.fromhex("72730236") + bytes.fromhex("470000100000") * 200  # copies the whole basis 200 times
print(sum(map(len, rsync.patch(bytes(1 << 20), [bomb, b"\\0"]))))
print(memory("VmHWM:") - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    made, kilobytes = map(int, run.stdout.split())
    assert made == 200 * MiB
    assert kilobytes < 6 * 1024


# --- what comes in, what goes out --------------------------------------------------------------------------------


def test_every_kind_of_source(file_of: Callable[[bytes], Path]) -> None:
    expected = b"".join(rsync.signature(OLD, SMALL))
    path = file_of(OLD)
    with open(path, "rb") as file, open(path, "rb", buffering=0) as raw:
        os.lseek(raw.fileno(), 1000, os.SEEK_SET)
        sources = [
            *(path, str(path), raw.fileno(), file, io.BytesIO(OLD), bytearray(OLD), memoryview(OLD).cast("I")),
            *([OLD[:7], b"", OLD[7:]], iter([OLD]), gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(OLD)))),
        ]
        for source in sources:
            assert b"".join(rsync.signature(source, SMALL)) == expected
        assert os.lseek(raw.fileno(), 0, os.SEEK_CUR) == 1000
    reader, writer = os.pipe()
    with open(reader, "rb") as from_pipe, open(writer, "wb") as to_pipe:
        to_pipe.write(OLD[:60_000])
        to_pipe.close()
        made = b"".join(rsync.signature(from_pipe.fileno(), SMALL))
    assert made == b"".join(rsync.signature(OLD[:60_000], SMALL))


def test_a_source_of_known_size_chooses_the_block_length(file_of: Callable[[bytes], Path]) -> None:
    path = file_of(RANDOM)
    with open(path, "rb") as file:
        lengths = [
            rsync.Signature.of(source).parameters.block_len
            for source in (RANDOM, path, file.fileno(), file, [RANDOM], Path("/dev/null"))
        ]
    assert lengths == [2176, 2176, 2176, 2048, 2048, 2048]


def test_every_kind_of_basis(file_of: Callable[[bytes], Path]) -> None:
    delta = make_delta(OLD, NEW)
    path = file_of(OLD)
    with (
        open(path, "rb") as file,
        tempfile.NamedTemporaryFile() as written,
        gzip.open(io.BytesIO(gzip.compress(OLD))) as z,
    ):
        os.lseek(file.fileno(), 77, os.SEEK_SET)
        written.write(OLD[:-5])
        written.write(OLD[-5:])  # not flushed
        bases = [
            *(path, str(path), file.fileno(), file, file.raw, io.BytesIO(OLD), written, z),
            *(OLD, bytearray(OLD), memoryview(OLD), lambda size, offset: OLD[offset : offset + size]),
            lambda size, offset: memoryview(OLD)[offset : offset + min(size, 1000)],
        ]
        for basis in bases:
            assert apply(basis, delta) == NEW
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 77


def test_a_descriptor_may_be_closed_while_its_job_runs(file_of: Callable[[bytes], Path]) -> None:
    fd = os.open(file_of(OLD), os.O_RDONLY)
    made = rsync.patch(fd, make_delta(OLD, NEW))
    job = rsync.PatchJob(fd)
    os.close(fd)
    other = os.open("/dev/zero", os.O_RDONLY)
    assert other == fd  # its number means something else now
    assert b"".join(made) == NEW
    job.close()
    job.close()
    os.close(other)


def test_jobs_give_back_their_descriptors(file_of: Callable[[bytes], Path]) -> None:
    path = file_of(OLD)
    before = os.listdir("/proc/self/fd")
    with rsync.PatchJob(path):
        pass
    rsync.PatchJob(path)
    next(rsync.patch(path, make_delta(OLD, NEW)))
    rsync.patch(path, b"")
    with pytest.raises(rsync.RsyncError):
        apply(path, b"")
    assert os.listdir("/proc/self/fd") == before


def test_every_kind_of_target(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "fd", os.O_RDWR | os.O_CREAT)
    memory = io.BytesIO()
    with open(tmp_path / "buffered", "wb") as buffered, open(tmp_path / "raw", "wb", buffering=0) as raw:
        for target in (fd, memory, buffered, raw, tmp_path / "path", str(tmp_path / "string")):
            statistics = rsync.patch_file(OLD, make_delta(OLD, NEW), target)
            assert (statistics.operation, statistics.out_bytes) == ("patch", len(NEW))
    os.close(fd)
    assert memory.getvalue() == NEW
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
        ["fd", "buffered", "raw", "path", "string"], NEW
    )


def test_files_from_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(NEW)
    assert rsync.signature_file(tmp_path / "old", tmp_path / "signature").signature_blocks == 600
    signature = rsync.Signature.load(tmp_path / "signature")
    statistics = rsync.delta_file(signature, tmp_path / "new", tmp_path / "delta")
    assert (statistics.in_bytes, statistics.out_bytes) == (len(NEW), (tmp_path / "delta").stat().st_size)
    assert statistics.copy_bytes + statistics.literal_bytes == len(NEW)
    rsync.patch_file(tmp_path / "old", tmp_path / "delta", tmp_path / "again", len(NEW))
    assert (tmp_path / "again").read_bytes() == NEW


def test_a_path_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        rsync.signature_file(OLD, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"precious"


def test_a_failed_target_is_removed(tmp_path: Path) -> None:
    with pytest.raises(rsync.InputEndedError):
        rsync.patch_file(OLD, make_delta(OLD, NEW)[:-1], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_files_that_block_are_refused() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    with open(reader, "rb", buffering=0) as source, open(writer, "wb", buffering=0) as target:
        for call in (
            lambda: list(rsync.signature(source)),
            lambda: list(rsync.signature(source.fileno())),
            lambda: rsync.patch_file(RANDOM, make_delta(RANDOM, RANDOM), target),
        ):
            with pytest.raises(BlockingIOError):
                call()


# --- pull style --------------------------------------------------------------------------------------------------


def test_drive_through_things_that_block() -> None:
    delta = make_delta(OLD, NEW)
    chance = random.Random(7)
    left = io.BytesIO(delta)
    made = bytearray()

    def read(size: int) -> bytes | None:
        how = chance.randrange(4)
        if how == 0:
            return None
        if how == 1:
            raise BlockingIOError
        return left.read(min(size, 100))

    def write(data: bytes) -> int | None:
        how = chance.randrange(6)
        if how == 0:
            return None
        count = chance.randint(0, len(data))
        made.extend(data[:count])
        if how == 1:
            raise BlockingIOError(11, "partly", count)
        return count

    job = rsync.PatchJob(OLD)
    results = [job.drive(read, write)]
    while results[-1] is rsync.Result.BLOCKED:
        results.append(job.drive(read, write))
    assert len(results) > 10
    assert made == NEW
    assert job.eof
    assert job.drive(read, write) is rsync.Result.DONE


def test_drive_between_sockets_that_do_not_block() -> None:
    """One thread plays both far ends, so that how often the job blocks does not hang on a scheduler."""
    delta = make_delta(RANDOM, RANDOM[1:])
    far_source, source = socket.socketpair()
    target, far_target = socket.socketpair()
    for end in (source, target, far_target):
        end.setblocking(False)
    made = bytearray()
    sent = blocked = 0
    job = rsync.PatchJob(RANDOM)
    while job.drive(source.recv, target.send) is rsync.Result.BLOCKED:
        blocked += 1
        if not job.needs_input:
            made += far_target.recv(10_000)
        elif sent < len(delta):
            sent += far_source.send(delta[sent : sent + 1000])
        else:
            far_source.shutdown(socket.SHUT_WR)
    target.close()
    while data := far_target.recv(10_000):
        made += data
    for end in (far_source, source, far_target):
        end.close()
    assert blocked >= len(delta) / 1000
    assert made == RANDOM[1:]


def test_drive_passes_on_what_its_callbacks_raise_and_goes_on_after_it() -> None:
    delta = io.BytesIO(make_delta(OLD, NEW))
    made: list[bytes] = []
    errors: list[Exception] = [KeyError(), ZeroDivisionError()]

    def read(size: int) -> bytes:
        if made and len(errors) == 1:
            raise errors.pop()
        return delta.read(min(size, 50))

    def write(data: bytes) -> int:
        if len(errors) == 2:
            raise errors.pop()
        made.append(data)
        return len(data)

    job = rsync.PatchJob(OLD)
    with pytest.raises(ZeroDivisionError):
        job.drive(read, write)
    with pytest.raises(KeyError):
        job.drive(read, write)
    assert job.drive(read, write) is rsync.Result.DONE
    assert b"".join(made) == NEW


def test_output_that_drive_could_not_write_comes_from_feed() -> None:
    job = rsync.PatchJob(OLD)
    delta = io.BytesIO(make_delta(OLD, OLD))
    assert job.drive(delta.read, lambda data: None) is rsync.Result.BLOCKED
    assert not job.needs_input
    made = [job.feed(b"", 1000)]
    while not job.eof:
        made.append(job.finish(5000))
    assert b"".join(made) == OLD


def test_a_writer_that_lies_is_noticed() -> None:
    with pytest.raises(ValueError, match="bytes written"):
        rsync.PatchJob(OLD).drive(io.BytesIO(make_delta(OLD, NEW)).read, lambda data: len(data) + 1)


# --- damage ------------------------------------------------------------------------------------------------------

MAGIC = reference.MAGIC
MALFORMED = {
    "empty": (b"", rsync.InputEndedError),
    "part of the magic": (MAGIC[:3], rsync.InputEndedError),
    "only the magic": (MAGIC, rsync.InputEndedError),
    "no end": (MAGIC + b"\x01x", rsync.InputEndedError),
    "half a number": (MAGIC + b"\x54" + bytes(9), rsync.InputEndedError),
    "half a literal": (MAGIC + b"\x05abc", rsync.InputEndedError),
    "literal of 4 EiB": (MAGIC + b"\x44" + (1 << 62).to_bytes(8, "big") + b"abc", rsync.InputEndedError),
    "wrong magic": (b"rs\x01\x36" + bytes(20), rsync.BadMagicError),
    "signature": (b"".join(rsync.signature(OLD)), rsync.BadMagicError),
    "reserved 55": (MAGIC + b"\x55" + bytes(20), rsync.CorruptError),
    "reserved ff": (MAGIC + b"\xff" + bytes(20), rsync.CorruptError),
    "literal of nothing": (MAGIC + b"\x41\0\0", rsync.CorruptError),
    "copy of nothing": (MAGIC + b"\x45\0\0\0", rsync.CorruptError),
    "literal of 2^63": (MAGIC + b"\x44" + (1 << 63).to_bytes(8, "big"), rsync.CorruptError),
    "copy from 2^63": (MAGIC + b"\x51" + (1 << 63).to_bytes(8, "big") + b"\x01\0", rsync.CorruptError),
    "copy of 2^64-1": (MAGIC + b"\x48\0" + b"\xff" * 8 + b"\0", rsync.CorruptError),
    "copy beyond the basis": (reference.encode([Copy(1000, 1)]), rsync.InputEndedError),
    "copy over the end of the basis": (reference.encode([Copy(999, 2)]), rsync.InputEndedError),
    "copy of 4 EiB": (reference.encode([Copy(0, 1 << 62)]), rsync.InputEndedError),
    "copy from 4 EiB": (reference.encode([Copy(1 << 62, 1)]), rsync.InputEndedError),
    "copy from the last byte there can be": (reference.encode([Copy(reference.LARGEST, 1)]), rsync.InputEndedError),
    "copy of the most there can be": (reference.encode([Copy(999, reference.LARGEST)]), rsync.InputEndedError),
}
BASIS = OLD[:1000]


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("kind", ["memory", "descriptor", "file", "callable"])
def test_malformed_deltas(case: str, kind: str, file_of: Callable[[bytes], Path], capfd: pytest.CaptureFixture) -> None:
    delta, error = MALFORMED[case]
    basis: rsync.Basis = {
        "memory": BASIS,
        "descriptor": file_of(BASIS),
        "file": io.BytesIO(BASIS),
        "callable": lambda size, offset: BASIS[offset : offset + size],
    }[kind]
    with pytest.raises(error):
        apply(basis, delta)
    with pytest.raises(error) as first:
        push(rsync.PatchJob(basis), delta, always(1), 1)
    with pytest.raises(error):
        rsync.patch_file(basis, delta, io.BytesIO())
    assert str(first.value).startswith("patch: " + rsync.strerror(first.value.result))
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_stopped() -> None:
    bomb = MAGIC + b"\x46\0\x04\0" * 1000 + b"\0"  # 4 KB that make 1 MB
    assert len(apply(BASIS + bytes(24), bomb)) == 1_024_000
    assert len(apply(BASIS + bytes(24), bomb, 1_024_000)) == 1_024_000
    for limit in (0, 1, 1_023_999):
        made: list[bytes] = []
        with pytest.raises(rsync.CorruptError, match=f"more than {limit} bytes"):
            made.extend(rsync.patch(BASIS + bytes(24), bomb, limit))
        assert sum(map(len, made)) <= limit
    with pytest.raises(rsync.CorruptError):
        rsync.PatchJob(BASIS, 3).feed(reference.encode([Literal(b"four")]))


def header(magic: int = 0x72730147, block_len: int = 16, strong_len: int = 8) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in (magic, block_len, strong_len))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", rsync.InputEndedError),
        (header()[:11], rsync.InputEndedError),
        (header() + bytes(3), rsync.InputEndedError),  # librsync takes this
        (header() + bytes(11), rsync.InputEndedError),
        (header() + bytes(13), rsync.InputEndedError),
        (header(magic=0), rsync.BadMagicError),  # and this
        (header(magic=0x72730236), rsync.BadMagicError),
        (header(magic=0xFFFFFFFF), rsync.BadMagicError),
        (header(block_len=0), rsync.CorruptError),
        (header(block_len=64 * MiB + 1), rsync.CorruptError),  # and this, until it needs the memory
        (header(block_len=0xFFFFFFFF), rsync.CorruptError),
        (header(strong_len=0), rsync.CorruptError),
        (header(strong_len=33), rsync.CorruptError),
        (header(magic=0x72730136, strong_len=17), rsync.CorruptError),
    ],
)
def test_malformed_signatures(data: bytes, error: type[rsync.RsyncError], capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(error):
        rsync.Signature.load(data)
    job = rsync.LoadSignatureJob()
    with pytest.raises(error):
        push(job, data, always(1))
    with pytest.raises(ValueError, match="not complete"):
        _ = job.signature
    assert capfd.readouterr() == ("", "")


def test_the_smallest_signatures() -> None:
    for data, count in [(header(), 0), (header() + bytes(12), 1), (header() + bytes(24), 2)]:
        signature = rsync.Signature.load(data)
        assert signature.block_count == count
        assert reference.apply(b"", b"".join(rsync.delta(signature, OLD)), len(OLD)) == OLD
    assert "pointer" not in repr(rsync.Signature.of(b""))


def test_signatures_of_too_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "MAX_BLOCKS", 2)
    assert rsync.Signature.load(header() + bytes(24)).block_count == 2
    with pytest.raises(rsync.CorruptError, match="3 blocks"):
        rsync.Signature.load(header() + bytes(36))


def test_an_error_stays() -> None:
    job = rsync.PatchJob(b"")
    for _ in range(3):
        with pytest.raises(rsync.CorruptError, match="bogus command 0xff"):
            job.feed(MAGIC + b"\xff")
    with pytest.raises(rsync.CorruptError):
        job.finish()
    with pytest.raises(rsync.CorruptError):
        job.drive(io.BytesIO().read, len)
    assert not job.eof


class SpecialError(Exception):
    pass


@pytest.mark.parametrize("error", [SpecialError("x"), OSError(5, "disk"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_of_a_basis_pass_through(error: BaseException, capfd: pytest.CaptureFixture) -> None:
    def read(size: int, offset: int) -> bytes:
        if offset > 50_000:
            raise error
        return OLD[offset : offset + size]

    job = rsync.PatchJob(read)
    with pytest.raises(type(error)) as raised:
        job.feed(make_delta(OLD, OLD))
    assert raised.value is error
    assert raised.value.__cause__ is None
    assert raised.traceback[-1].name == "read"
    with pytest.raises(rsync.RsyncError, match="IO error"):
        job.finish()
    with pytest.raises(type(error)) as raised:
        apply(read, make_delta(OLD, OLD))
    assert raised.value is error
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"too much" * 100_000, ValueError),
        (None, TypeError),
        ("text", TypeError),
        (7, TypeError),
        (memoryview(b"abcd")[::2], TypeError),
        (b"", rsync.InputEndedError),
    ],
)
def test_bad_answers_of_a_basis(answer: object, error: type[Exception], capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(error):
        apply(lambda size, offset: answer, make_delta(OLD, OLD))  # type: ignore[arg-type, return-value]  # on purpose
    assert capfd.readouterr() == ("", "")


def test_errors_of_a_basis_descriptor_keep_their_number(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        apply(fd, make_delta(OLD, OLD))
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        rsync.PatchJob(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        rsync.PatchJob(-1)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        apply(reader, make_delta(OLD, OLD))
    os.close(reader)
    os.close(writer)


def test_a_shrinking_basis(file_of: Callable[[bytes], Path]) -> None:
    path = file_of(OLD)
    made = rsync.patch(path, make_delta(OLD, OLD))
    os.truncate(path, 1000)
    with pytest.raises(rsync.InputEndedError, match="the basis is shorter"):
        list(made)


def test_a_basis_may_run_jobs() -> None:
    """A chain of deltas, each the basis of the next."""
    step = make_delta(OLD, NEW)

    def read(size: int, offset: int) -> bytes:
        with pytest.raises(rsync.CorruptError):  # its messages do not end up in the outer job's
            apply(b"", MAGIC + b"\xff")
        return apply(OLD, step)[offset : offset + size]

    assert apply(read, make_delta(NEW, OLD)) == OLD


def test_errors_are_values() -> None:
    for number, kind in [(106, rsync.CorruptError), (103, rsync.InputEndedError), (100, rsync.RsyncError)]:
        error = kind("patch", rsync.Result(number), "what was wrong")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args, str(again)) == (kind, error.args, "patch: what was wrong")
        assert again.result is rsync.Result(number)
    assert issubclass(rsync.CorruptError, ValueError)
    assert issubclass(rsync.InputEndedError, EOFError)


# --- messages ----------------------------------------------------------------------------------------------------


def test_messages_go_to_the_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "histfs.rsync"), pytest.raises(rsync.CorruptError, match="bogus command 0xfe"):
        apply(b"", MAGIC + b"\xfe")
    assert caplog.record_tuples == [
        ("histfs.rsync", logging.DEBUG, "patch: bogus command 0xfe"),
        ("histfs.rsync", logging.DEBUG, "patch: patch job failed: stream corrupt"),
    ]
    assert capfd.readouterr() == ("", "")


def test_the_trace_level(caplog: pytest.LogCaptureFixture) -> None:
    rsync.set_trace_level(rsync.TraceLevel.CRITICAL)
    try:
        with caplog.at_level(logging.DEBUG, "histfs.rsync"), pytest.raises(rsync.CorruptError) as raised:
            apply(b"", MAGIC + b"\xfe")
    finally:
        rsync.set_trace_level(rsync.TraceLevel.INFO)
    assert str(raised.value) == "patch: stream corrupt"
    assert caplog.record_tuples == []


def test_messages_stay_with_their_thread() -> None:
    errors: list[tuple[int, str]] = []

    def fail(command: int) -> None:
        for _ in range(300):
            try:
                apply(b"", MAGIC + bytes([command]))
            except rsync.CorruptError as error:
                errors.append((command, str(error)))

    threads = [threading.Thread(target=fail, args=(command,)) for command in (0x60, 0x70, 0x80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 900
    assert all(f"{command:#x}" in text for command, text in errors)


# --- parameters and statistics -----------------------------------------------------------------------------------


def test_recommended_parameters() -> None:
    assert rsync.recommend() == rsync.SignatureParameters(2048, 32, rsync.Magic.RK_BLAKE2)
    assert rsync.recommend(0).block_len == 256
    assert rsync.recommend(1 << 30).block_len == 32768
    assert rsync.recommend(1 << 30, strong_len=-1) == rsync.SignatureParameters(32768, 8)
    assert rsync.recommend(4096, strong_len=-1) == rsync.SignatureParameters(256, 6)
    assert rsync.recommend(1 << 62).block_len == 64 * MiB
    assert rsync.recommend(10, magic=rsync.Magic.MD4).strong_len == 16
    assert rsync.recommend(10, block_len=7, strong_len=2) == rsync.SignatureParameters(7, 2)


@given(st.integers(0, 2**62), st.sampled_from(list(rsync.Magic)), st.integers(-1, 16))
def test_recommended_parameters_are_valid(size: int, magic: rsync.Magic, strong_len: int) -> None:
    parameters = rsync.recommend(size, magic=magic, strong_len=strong_len)
    assert 256 <= parameters.block_len <= max(256, size**0.5 + 1)
    assert parameters.magic is magic


@pytest.mark.parametrize("magic", list(rsync.Magic))
def test_every_kind_of_signature(magic: rsync.Magic) -> None:
    parameters = rsync.recommend(len(OLD), magic=magic)
    data = b"".join(rsync.signature(OLD, parameters))
    assert data[:12] == header(magic, 512, 32 if "BLAKE2" in magic.name else 16)
    assert rsync.Signature.load(data).parameters == parameters
    assert apply(OLD, make_delta(OLD, NEW, parameters)) == NEW


def test_statistics_while_a_job_runs_and_after() -> None:
    job = rsync.PatchJob(OLD)
    assert str(job.statistics) == "patch: nothing yet"
    delta = reference.encode([Copy(0, 1000), Literal(b"ab"), Copy(5, 6)])
    job.feed(delta[:12])
    assert (job.statistics.copy_commands, job.statistics.ended) == (1, 0)
    assert job.statistics.started > 1_600_000_000
    job.feed(delta[12:])
    job.close()
    assert job.statistics.in_bytes == len(delta)
    assert (job.statistics.literal_bytes, job.statistics.copy_bytes, job.statistics.out_bytes) == (2, 1006, 1008)
    assert job.statistics.ended >= job.statistics.started
    assert "copy bytes 1006" in str(job.statistics)


# --- threads -----------------------------------------------------------------------------------------------------


def test_threads_share_a_signature() -> None:
    signature = rsync.Signature.of(RANDOM)
    expected = b"".join(rsync.delta(signature, RANDOM[1:]))
    made: list[bytes] = []

    def run(signature: rsync.Signature) -> None:
        made.append(b"".join(rsync.delta(signature, RANDOM[1:])))

    threads = [threading.Thread(target=run, args=(signature,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    del signature
    for thread in threads:
        thread.join()
    assert made == [expected] * 4


def test_a_job_can_be_closed_by_another_thread() -> None:
    started = threading.Event()
    stopped: list[BaseException] = []
    job = rsync.DeltaJob(rsync.Signature.of(b"nothing like it"))

    def run() -> None:
        def much() -> Iterator[bytes]:
            while True:
                started.set()
                yield RANDOM

        blocks = much()
        try:
            job.drive(lambda size: next(blocks), len)
        except ValueError as error:
            stopped.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    job.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(stopped[0])
    with pytest.raises(ValueError, match="closed"):
        job.feed(b"x")


def test_a_job_outlives_its_last_name() -> None:
    entered, leave = threading.Event(), threading.Event()
    made: list[bytes] = []

    def read(size: int, offset: int) -> bytes:
        entered.set()
        leave.wait(10)
        return OLD[offset : offset + size]

    job = rsync.PatchJob(read)
    delta = make_delta(OLD, NEW)
    feed = job.feed
    thread = threading.Thread(target=lambda feed: made.append(feed(delta)), args=(feed,))
    thread.start()
    entered.wait(10)
    del job, feed, read
    gc.collect()
    leave.set()
    thread.join(10)
    assert made == [NEW]


def test_a_job_leaves_no_garbage() -> None:
    """What a failed job holds goes with its last reference; no traceback leads back to it."""
    gone: list[object] = []

    def read(size: int, offset: int) -> bytes:
        raise SpecialError

    gc.collect()
    gc.disable()
    try:
        for basis in (b"", read):
            job = rsync.PatchJob(basis)
            weakref.finalize(job, gone.append, basis)
            with pytest.raises((rsync.RsyncError, SpecialError)):
                job.feed(make_delta(OLD, OLD))
            del job
        assert gone == [b"", read]
    finally:
        gc.enable()


def test_a_job_serves_one_thread_at_a_time() -> None:
    """Threads that feed the same job wait for each other: each block is copied whole."""
    job = rsync.PatchJob(OLD)
    job.feed(MAGIC)
    made: list[bytes] = []
    command = reference.encode([Copy(0, 200_000)])[4:-1]
    threads = [threading.Thread(target=lambda: made.append(job.feed(command))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [OLD[:200_000]] * 20


def test_an_interrupted_job_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    job = rsync.PatchJob(OLD)
    monkeypatch.setattr(job, "_complete", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.feed(make_delta(OLD, NEW))
    with pytest.raises(rsync.InternalError, match="interrupted"):
        job.feed(b"")


# --- the original ------------------------------------------------------------------------------------------------


@pytest.fixture
def rdiff() -> Callable[..., None]:
    if not shutil.which("rdiff"):
        pytest.skip("the rdiff program is not installed")

    def run(*arguments: str | Path) -> None:
        subprocess.run(["rdiff", *arguments], check=True, capture_output=True)

    return run


@pytest.mark.parametrize("old", [b"", b"x", OLD, RANDOM])
@pytest.mark.parametrize("new", [b"", NEW])
def test_rdiff_and_we_understand_each_other(
    old: bytes, new: bytes, rdiff: Callable[..., None], file_of: Callable[[bytes], Path], tmp_path: Path
) -> None:
    old_path, new_path = file_of(old), file_of(new)
    rdiff("signature", old_path, tmp_path / "their.signature")
    ours = file_of(b"".join(rsync.signature(old_path)))
    assert rsync.Signature.load(tmp_path / "their.signature").parameters == rsync.Signature.load(ours).parameters
    assert ours.read_bytes() == (tmp_path / "their.signature").read_bytes()
    rdiff("delta", ours, new_path, tmp_path / "their.delta")
    assert apply(old_path, tmp_path / "their.delta") == new
    signature = rsync.Signature.load(tmp_path / "their.signature")
    rsync.delta_file(signature, new_path, tmp_path / "our.delta")
    rdiff("patch", old_path, tmp_path / "our.delta", tmp_path / "their.new")
    assert (tmp_path / "their.new").read_bytes() == new


@pytest.mark.parametrize("hash_", ["md4", "blake2"])
@pytest.mark.parametrize("sum_", ["rollsum", "rabinkarp"])
def test_rdiff_with_other_parameters(hash_: str, sum_: str, rdiff: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(OLD)
    rdiff("-H", hash_, "-R", sum_, "-b", "1000", "-S", "9", "signature", tmp_path / "old", tmp_path / "signature")
    signature = rsync.Signature.load(tmp_path / "signature")
    magic = rsync.Magic[f"{'RK_' * (sum_ == 'rabinkarp')}{hash_.upper()}"]
    assert signature.parameters == rsync.SignatureParameters(1000, 9, magic)
    assert b"".join(rsync.signature(OLD, signature.parameters)) == (tmp_path / "signature").read_bytes()
    assert apply(OLD, rsync.delta(signature, NEW)) == NEW
