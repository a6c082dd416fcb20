"""What would abort, hang or corrupt a C program that uses librsync must be an exception in a Python program.

Each piece of misuse runs in a process of its own, which must end by itself, with exit code 0, and must not print
anything to stderr. The list is that of docs/librsync.md ("What cannot happen"). MALLOC_PERTURB_ has the C library
overwrite memory that is freed, so that a use after free does not go unnoticed.
"""

import os
import subprocess
import sys

import pytest

PREAMBLE = """
import copy, gc, io, logging, os, pickle, signal, sys, threading, time
from histfs import rsync
from histfs._rsync import ffi, lib
MAGIC = bytes.fromhex("72730236")
OLD = bytes(range(256)) * 400
IDENTICAL = b"".join(rsync.delta(rsync.Signature.of(OLD), OLD))

def raises(kind, call, *args):
    try:
        result = call(*args)
    except kind as error:
        return error
    raise AssertionError(f"{result!r} instead of {kind}")
"""

MISUSE = {
    "closing twice, using what is closed": """
        delta = rsync.DeltaJob(rsync.Signature.of(OLD))
        for job in (rsync.SignatureJob(), rsync.LoadSignatureJob(), delta, rsync.PatchJob(OLD)):
            with job:
                job.close()
            job.close()
            raises(ValueError, job.feed, b"x")
            raises(ValueError, job.finish)
            raises(ValueError, job.drive, io.BytesIO().read, len)
            job.statistics, job.eof, job.unused_data, job.needs_input
        """,
    "closing in the middle": """
        for size in range(len(IDENTICAL)):
            job = rsync.PatchJob(OLD)
            job.feed(IDENTICAL[:size], 10)
            job.close()
        """,
    "a signature that is not loaded": """
        job = rsync.LoadSignatureJob()
        raises(ValueError, lambda: job.signature)
        job.feed(bytes.fromhex("72730147 00000100 00000008"))
        raises(ValueError, lambda: job.signature)
        raises(rsync.InputEndedError, job.feed(b"abc") or job.finish)
        raises(ValueError, lambda: job.signature)
        raises(TypeError, rsync.DeltaJob, None)
        raises(TypeError, rsync.DeltaJob, job)
        raises(TypeError, rsync.DeltaJob, b"".join(rsync.signature(OLD)))
        """,
    "a signature that is made by hand": """
        good = rsync.Signature.of(OLD)
        raises(TypeError, rsync.Signature)
        raises(TypeError, rsync.DeltaJob, rsync.Signature(good.parameters, 1, None, None))
        empty = rsync.Signature(good.parameters, 1, ffi.new("histfs_signature_t *"), None)
        raises(rsync.ParameterError, rsync.DeltaJob, empty)
        raises(TypeError, pickle.dumps, good)
        raises(AttributeError, setattr, good, "block_count", 7)
        again = copy.copy(good)
        del good
        gc.collect()
        assert b"".join(rsync.delta(again, OLD)) == IDENTICAL
        """,
    "a signature that goes before its delta job": """
        signature = rsync.Signature.of(OLD)
        job = rsync.DeltaJob(signature)
        del signature
        gc.collect()
        assert job.feed(OLD) + job.finish() == IDENTICAL
        """,
    "lengths out of range": """
        for block_len in (0, -1, 2**26 + 1, 2**31, 2**32 + 7, 2**64, 2**80):
            raises(rsync.ParameterError, rsync.SignatureParameters, block_len, 8)
        for strong_len in (0, -1, -2, 33, 2**31, 2**64):
            raises(rsync.ParameterError, rsync.SignatureParameters, 2048, strong_len)
        raises(rsync.ParameterError, rsync.SignatureParameters, 2048, 17, rsync.Magic.MD4)
        raises(ValueError, rsync.SignatureParameters, 2048, 8, 0)
        for names in ({"block_len": -1}, {"block_len": 2**31}, {"strong_len": -2}, {"strong_len": 33}):
            raises(rsync.ParameterError, lambda: rsync.recommend(1000, **names))
        raises(rsync.ParameterError, rsync.recommend, -1)
        raises(TypeError, rsync.SignatureJob, rsync.SignatureParameters(2048.5, 8))
        """,
    "a loaded signature that asks for gigabytes": """
        for block_len in (2**31 - 1, 2**32 - 1, 2**26 + 1):
            data = bytes.fromhex("72730147") + block_len.to_bytes(4, "big") + bytes.fromhex("00000008")
            raises(rsync.CorruptError, rsync.Signature.load, data)
            raises(rsync.CorruptError, rsync.Signature.load, [data[i : i + 1] for i in range(12)])
        """,
    "a basis that returns too much": """
        error = raises(ValueError, list, rsync.patch(lambda size, offset: bytes(size + 1), IDENTICAL))
        assert "were asked for" in str(error)
        """,
    "a basis that returns nothing": """
        raises(rsync.InputEndedError, list, rsync.patch(lambda size, offset: b"", IDENTICAL))
        raises(rsync.InputEndedError, list, rsync.patch(b"", IDENTICAL))
        """,
    "a basis that returns nonsense": """
        for nonsense in (None, 2, "text", [1], object()):
            raises(TypeError, list, rsync.patch(lambda size, offset: nonsense, IDENTICAL))
        for basis in (None, [OLD], 1.5, object(), {}):
            raises(TypeError, rsync.PatchJob, basis)
        """,
    "a basis that raises": """
        def bad(size, offset):
            raise SystemExit(5)
        raises(SystemExit, list, rsync.patch(bad, IDENTICAL))
        job = rsync.PatchJob(bad)
        raises(SystemExit, job.feed, IDENTICAL)
        raises(rsync.RsyncError, job.feed, b"")
        """,
    "a basis that uses its job": """
        def bad(size, offset):
            for call in (lambda: job.feed(b""), job.finish, job.close, lambda: job.drive(io.BytesIO().read, len)):
                raises(RuntimeError, call)
            job.statistics, job.eof, job.needs_input, job.unused_data
            return OLD[offset : offset + size]
        job = rsync.PatchJob(bad)
        assert job.feed(IDENTICAL) == OLD
        job.close()
        """,
    "a reader and a writer that use their job": """
        def read(size):
            raises(RuntimeError, job.feed, b"")
            raises(RuntimeError, job.close)
            return left.read(size)
        def write(data):
            raises(RuntimeError, job.finish)
            return len(data)
        left = io.BytesIO(IDENTICAL)
        job = rsync.PatchJob(OLD)
        assert job.drive(read, write) is rsync.Result.DONE
        """,
    "a basis that is released or resized": """
        data = bytearray(OLD)
        view = memoryview(data)
        job = rsync.PatchJob(view)
        raises(BufferError, view.release)
        raises(BufferError, data.clear)
        assert job.feed(IDENTICAL) == OLD
        """,
    "files that are not there": """
        raises(FileNotFoundError, rsync.Signature.of, "/nonexistent")
        raises(FileNotFoundError, rsync.PatchJob, "/nonexistent")
        raises(FileNotFoundError, rsync.signature_file, OLD, "/nonexistent/x")
        raises(IsADirectoryError, rsync.Signature.of, "/")
        raises(OSError, rsync.Signature.of, 99)
        raises(OSError, rsync.PatchJob, 99)
        raises(OSError, rsync.PatchJob, -1)
        raises(OverflowError, rsync.PatchJob, 2**40)
        """,
    "data that is not bytes": """
        job = rsync.SignatureJob()
        for nonsense in (None, 3, "text", [b"x"], memoryview(b"abcd")[::2], object()):
            raises(TypeError, job.feed, nonsense)
        raises(TypeError, job.feed, b"x", "1")
        raises(TypeError, list, rsync.signature(3.5))
        raises(TypeError, list, rsync.signature([b"x", "text"]))
        raises(TypeError, list, rsync.signature(io.StringIO("text")))
        """,
    "a buffer of more than 2 GiB": """
        import mmap
        size = 2**31 + 5
        zeros = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
        blocks = iter([zeros])
        job = rsync.DeltaJob(rsync.Signature.of(b""))  # without blocks to look for, librsync copies all it is given
        assert job.drive(lambda _: next(blocks, b""), len) is rsync.Result.DONE
        assert job.statistics.literal_bytes == size
        """,
    "a bomb": """
        bomb = MAGIC + b"\\x47\\0\\0\\x01\\0\\0" * 100_000
        raises(rsync.CorruptError, list, rsync.patch(bytes(65536), bomb, 10_000_000))
        """,
    "failures, without a word": """
        for data in (b"", b"abcd", MAGIC + b"\\xff", MAGIC + b"\\x41\\0", MAGIC + b"\\x45\\0\\x09\\0"):
            raises(rsync.RsyncError, list, rsync.patch(b"", data))
            raises(rsync.RsyncError, rsync.Signature.load, data)
        rsync.recommend(1 << 30, strong_len=2)  # librsync warns
        """,
    "trace levels out of range": """
        for level in (-1, 8, 2**40):
            raises(ValueError, rsync.set_trace_level, level)
        for level in rsync.TraceLevel:
            rsync.set_trace_level(level)
            raises(rsync.CorruptError, list, rsync.patch(b"", MAGIC + b"\\xff"))
        """,
    "Control-C while C works": """
        def interrupt():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        block = os.urandom(1 << 20)
        def was_at_work():
            job = rsync.DeltaJob(rsync.Signature.of(b"nothing like it" * 1000))
            def forever():
                threading.Thread(target=interrupt).start()
                while True:
                    job.feed(block)
            raises(KeyboardInterrupt, forever)
            with job:
                try:
                    job.feed(b"")
                except rsync.InternalError:
                    raises(rsync.InternalError, job.feed, b"")
                    return True
                job.finish()  # it came between two calls, which harms nothing
                return False
        assert any(was_at_work() for _ in range(20))
        """,
    "Control-C while a basis works": """
        def slow(size, offset):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raises(KeyboardInterrupt, list, rsync.patch(slow, IDENTICAL))
        """,
    "two threads in one job": """
        job = rsync.PatchJob(OLD)
        job.feed(MAGIC)
        copy_all = IDENTICAL[4:-1]
        made = []
        def run():
            made.extend(job.feed(copy_all) for _ in range(50))
        threads = [threading.Thread(target=run) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert made == [OLD] * 400
        """,
    "closing under a thread": """
        for _ in range(20):
            job = rsync.DeltaJob(rsync.Signature.of(b"nothing like it"))
            entered = threading.Event()
            def run(job=job, entered=entered):
                entered.set()
                raises(ValueError, lambda: [job.feed(OLD) for _ in range(10**6)])
            thread = threading.Thread(target=run)
            thread.start()
            entered.wait()
            job.close()
            thread.join()
        """,
    "the end of the process under a thread": """
        job = rsync.DeltaJob(rsync.Signature.of(b"nothing like it"))
        entered = threading.Event()
        def run():
            entered.set()
            while True:
                job.feed(OLD)
        threading.Thread(target=run, daemon=True).start()
        entered.wait()
        """,
    "methods that outlive their object's name": """
        feed = rsync.PatchJob(OLD).feed
        gc.collect()
        assert feed(IDENTICAL) == OLD
        blocks = rsync.patch(bytes(OLD), bytes(IDENTICAL))
        gc.collect()
        assert b"".join(blocks) == OLD
        """,
    "garbage that is finalized in any order": """
        def run(*jobs):  # a generator runs on to its end when it is collected
            try:
                yield
            finally:
                bytes(1) * 10**6
                for job in jobs:
                    try:
                        job.feed(IDENTICAL)
                    except (ValueError, EOFError, rsync.RsyncError):
                        pass
                    job.statistics
                    job.close()
        for turn in range(100):
            signature = rsync.Signature.of(OLD)
            jobs = [rsync.PatchJob(OLD), rsync.DeltaJob(signature), rsync.SignatureJob(), rsync.LoadSignatureJob()]
            cycle = [run(*jobs), signature, jobs]
            if turn % 2:
                next(cycle[0])
            cycle.append(cycle)
            for job in jobs:
                job.cycle = cycle
            late = [run(*jobs)]
            late.append(late)
            next(late[0])
            del signature, jobs, job, cycle, late
            gc.collect()
        """,
    "errors that are kept": """
        kept = []
        for _ in range(50):
            job = rsync.PatchJob(b"")
            kept.append(raises(rsync.RsyncError, job.feed, IDENTICAL))
            kept.append(raises(rsync.RsyncError, list, rsync.patch(b"", IDENTICAL)))
            kept[-1].job = job
        del job
        gc.collect()
        kept.clear()
        gc.collect()
        """,
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_an_exception(case: str) -> None:
    lines = MISUSE[case].strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    program = PREAMBLE + "\n".join(line[indent:] for line in lines) + "\nprint('reached the end')\n"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"MALLOC_PERTURB_": "165"},
    )
    assert (run.stderr, run.returncode, run.stdout) == ("", 0, "reached the end\n")


def test_functions_that_cannot_be_used_safely_are_not_bound() -> None:
    """They exit, write past a buffer, print, or read what may not be there."""
    from histfs._rsync import lib

    unsafe = {
        *("rs_file_open", "rs_file_close", "rs_file_size", "rs_file_copy_cb", "rs_format_stats", "rs_log_stats"),
        *(
            "rs_signature_log_stats",
            "rs_sumset_dump",
            "rs_trace_stderr",
            "rs_trace_to",
            "rs_job_free",
            "rs_delta_begin",
        ),
        *("rs_build_hash_table", "rs_free_sumset", "rs_job_iter", "rs_job_drive", "rs_unbase64"),
    }
    assert not unsafe & set(dir(lib))
