"""Builds histfs._rsync, the compiled half of `histfs.rsync`: librsync through cffi in API mode.

The C below does only what Python cannot do safely:
- it catches librsync's trace messages. The trace function is one for the whole process, so it files each message
  under the job that the calling thread is running, and drops what belongs to none of ours;
- it reads the basis of a patch job. librsync loops for ever on a read of 0 bytes and aborts on one that is too long,
  so `histfs_basis` turns both into a result code;
- it copies the statistics out of the job after each call, so that they can be read at any time, by any thread;
- it counts who uses a signature. Python's garbage collector runs finalizers in any order, so references from Python
  do not keep alive what C points to: structures that Python can reach outlive their closing, and are empty then.
And it does, in csrc/, what would be too slow in Python: extent maps, reading through them, comparing what
is read with its SHA1, and small versions.
Everything else (arguments, buffers, order of calls, errors) is checked by the only callers, `histfs.rsync` and
`histfs._rsync_maps`.

Declare only what is called, and let the compiler fill in sizes and values ("..."). librsync ships no .pc file:
`libraries` in pyproject.toml names it and libdeflate, CFLAGS and LDFLAGS serve unusual prefixes.
"""

import runpy
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext as _build_ext

C_SOURCES = Path(__file__).parent / "csrc"
HEADERS = ("maps.h", "reader.h", "calls.h", "checked.h", "small.h")
BODIES = ("maps.c", "parser.c", "reader.c", "sha1.c", "times.c", "checked.c", "small.c")

# The constants are here for the test that compares them with the numbers in `_rsync_types`.
DECLARATIONS = """
#define RS_DONE ...
#define RS_BLOCKED ...
#define RS_IO_ERROR ...
#define RS_SYNTAX_ERROR ...
#define RS_MEM_ERROR ...
#define RS_INPUT_ENDED ...
#define RS_BAD_MAGIC ...
#define RS_UNIMPLEMENTED ...
#define RS_CORRUPT ...
#define RS_INTERNAL_ERROR ...
#define RS_PARAM_ERROR ...

#define RS_MD4_SIG_MAGIC ...
#define RS_BLAKE2_SIG_MAGIC ...
#define RS_RK_MD4_SIG_MAGIC ...
#define RS_RK_BLAKE2_SIG_MAGIC ...

typedef enum { ... } rs_loglevel;
typedef enum { ... } rs_result;
typedef enum { ... } rs_magic_number;
typedef int... rs_long_t;
typedef int... time_t;
typedef struct {
    int lit_cmds, false_matches;
    rs_long_t lit_bytes, lit_cmdbytes, copy_cmds, copy_bytes, copy_cmdbytes, sig_blocks;
    size_t block_len;
    time_t start, end;
    ...;
} rs_stats_t;

extern char const rs_librsync_version[];
char const *rs_strerror(int result);
void rs_trace_set_level(rs_loglevel level);
rs_result rs_sig_args(rs_long_t size, rs_magic_number *magic, size_t *block_len, size_t *strong_len);

typedef struct {
    size_t consumed, produced;
    int basis_errno, basis_ended;
    size_t trace_used;
    char trace[...];
    rs_stats_t stats;
    ...;
} histfs_job_t;

typedef struct { ...; } histfs_signature_t;

void histfs_trace_install(void);
void histfs_signature_begin(histfs_job_t *, size_t block_len, size_t strong_len, int magic);
void histfs_loadsig_begin(histfs_job_t *);
int histfs_delta_begin(histfs_job_t *, histfs_signature_t *);
int histfs_patch_begin(histfs_job_t *, int fd, char const *memory, size_t size, void *handle);
rs_result histfs_job_iter(histfs_job_t *, char const *in, size_t in_size, int ending, char *out, size_t out_size);
int histfs_job_signature(histfs_job_t *, histfs_signature_t *);
void histfs_job_close(histfs_job_t *);
void histfs_signature_close(histfs_signature_t *);
ssize_t histfs_small_delta(char const *basis, size_t basis_size, char const *content, size_t content_size,
                           size_t block_len, size_t strong_len, int magic, char *out, size_t room);

extern "Python" long long histfs_basis_read(void *handle, long long position, size_t size, void *target);
"""

SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <librsync.h>

typedef struct {
    rs_signature_t *signature;
    int users;
} histfs_shared_t;

typedef struct {
    histfs_shared_t *shared;       /* NULL when closed */
} histfs_signature_t;

typedef struct {
    size_t consumed, produced;     /* by the last histfs_job_iter */
    int basis_errno, basis_ended;  /* why the last read of the basis failed */
    size_t trace_used;
    char trace[2200];              /* lines: a digit, the level, then the text; two of librsync's longest fit */
    rs_stats_t stats;
    rs_job_t *job;                 /* NULL when closed */
    rs_signature_t *loading;       /* of a load job; librsync leaves it to the caller, also after an error */
    histfs_shared_t *shared;       /* of a delta job */
    int basis_fd;                  /* ours, or -1 */
    char const *basis;
    size_t basis_size;
    void *basis_handle;
} histfs_job_t;

static long long histfs_basis_read(void *handle, long long position, size_t size, void *target);

static __thread histfs_job_t *histfs_running;

static void histfs_trace(rs_loglevel level, char const *message)
{
    histfs_job_t *self = histfs_running;
    size_t size = strlen(message);

    if (!self || size + 1 > sizeof self->trace)
        return;
    if (self->trace_used + size + 1 > sizeof self->trace)
        self->trace_used = 0;      /* the newest says most */
    self->trace[self->trace_used++] = (char)('0' + level);
    memcpy(self->trace + self->trace_used, message, size);
    self->trace_used += size;
}

static void histfs_trace_install(void)
{
    rs_trace_to(histfs_trace);
}

static rs_result histfs_basis(void *opaque, rs_long_t position, size_t *size, void **target)
{
    histfs_job_t *self = opaque;
    long long got;

    if (position > LLONG_MAX - (rs_long_t)*size) {
        got = 0;
    } else if (self->basis_handle) {
        got = histfs_basis_read(self->basis_handle, position, *size, *target);
    } else if (self->basis_fd >= 0) {
        do
            got = pread(self->basis_fd, *target, *size, position);
        while (got < 0 && errno == EINTR);
    } else if ((uintmax_t)position >= self->basis_size) {
        got = 0;
    } else {
        size_t left = self->basis_size - (size_t)position;

        got = (long long)(*size < left ? *size : left);
        *target = (void *)(self->basis + position);
    }
    if (got < 0 || (size_t)got > *size) {
        self->basis_errno = self->basis_handle ? 0 : errno;
        return RS_IO_ERROR;
    }
    *size = (size_t)got;
    self->basis_ended = got == 0;
    return got ? RS_DONE : RS_INPUT_ENDED;
}

/* librsync's own _begin functions never return NULL: without memory they abort. */
static void histfs_begun(histfs_job_t *self, rs_job_t *job, int basis_fd)
{
    self->job = job;
    self->basis_fd = basis_fd;
    self->stats = *rs_job_statistics(job);
}

static void histfs_signature_begin(histfs_job_t *self, size_t block_len, size_t strong_len, int magic)
{
    histfs_begun(self, rs_sig_begin(block_len, strong_len, (rs_magic_number)magic), -1);
}

static void histfs_loadsig_begin(histfs_job_t *self)
{
    histfs_begun(self, rs_loadsig_begin(&self->loading), -1);
}

static int histfs_delta_begin(histfs_job_t *self, histfs_signature_t *signature)
{
    if (!signature->shared)
        return -1;
    self->shared = signature->shared;
    __atomic_add_fetch(&self->shared->users, 1, __ATOMIC_RELAXED);
    histfs_begun(self, rs_delta_begin(self->shared->signature), -1);
    return 0;
}

/* The basis is one of: fd >= 0, handle, memory. A descriptor is duplicated, because its number may come to mean
   another file while the job runs. -1 and errno if that fails. */
static int histfs_patch_begin(histfs_job_t *self, int fd, char const *memory, size_t size, void *handle)
{
    if (fd >= 0 && (fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)
        return -1;
    self->basis = memory;
    self->basis_size = size;
    self->basis_handle = handle;
    histfs_begun(self, rs_patch_begin(histfs_basis, self), fd);
    return 0;
}

static rs_result histfs_job_iter(histfs_job_t *self, char const *in, size_t in_size, int ending, char *out,
                                 size_t out_size)
{
    rs_buffers_t buffers = { (char *)in, in_size, ending, out, out_size };
    histfs_job_t *outer = histfs_running;  /* a basis written in Python may run a job of its own */
    rs_result result;

    if (!self->job)
        return RS_PARAM_ERROR;
    self->trace_used = 0;
    histfs_running = self;
    result = rs_job_iter(self->job, &buffers);
    histfs_running = outer;
    self->consumed = in_size - buffers.avail_in;
    self->produced = out_size - buffers.avail_out;
    self->stats = *rs_job_statistics(self->job);
    return result;
}

/* Hands the signature of a load job that is done over to `signature`, indexed; -1 if there is none. */
static int histfs_job_signature(histfs_job_t *self, histfs_signature_t *signature)
{
    histfs_shared_t *shared = self->loading ? malloc(sizeof *shared) : NULL;

    if (!shared || rs_build_hash_table(self->loading) != RS_DONE) {
        free(shared);
        return -1;
    }
    shared->signature = self->loading;
    shared->users = 1;
    signature->shared = shared;
    self->loading = NULL;
    return 0;
}

static void histfs_drop(histfs_shared_t *shared)
{
    if (shared && !__atomic_sub_fetch(&shared->users, 1, __ATOMIC_ACQ_REL)) {
        rs_free_sumset(shared->signature);
        free(shared);
    }
}

static void histfs_signature_close(histfs_signature_t *self)
{
    histfs_drop(self->shared);
    self->shared = NULL;
}

/* Does all of a job at once; how much it has put out, or -1 if it has not come to its end. */
static ssize_t histfs_at_once(rs_job_t *job, char const *in, size_t in_size, char *out, size_t room)
{
    rs_buffers_t buffers = { (char *)in, in_size, 1, out, room };
    rs_result result = rs_job_iter(job, &buffers);

    rs_job_free(job);
    return result == RS_DONE ? (ssize_t)(room - buffers.avail_out) : -1;
}

/* The delta that leads from `basis` to `content`, which are small; its size, or -1 if it needs more room, or fails. */
static ssize_t histfs_small_delta(char const *basis, size_t basis_size, char const *content, size_t content_size,
                                  size_t block_len, size_t strong_len, int magic, char *out, size_t room)
{
    size_t signature_room = 12 + (basis_size / block_len + 1) * (4 + strong_len);
    char *signature = malloc(signature_room);
    rs_signature_t *sums = NULL;
    ssize_t size = -1;

    if (signature)
        size = histfs_at_once(rs_sig_begin(block_len, strong_len, (rs_magic_number)magic), basis, basis_size, signature,
                              signature_room);
    if (size >= 0)
        size = histfs_at_once(rs_loadsig_begin(&sums), signature, (size_t)size, NULL, 0);
    if (size >= 0)
        size = sums && rs_build_hash_table(sums) == RS_DONE
            ? histfs_at_once(rs_delta_begin(sums), content, content_size, out, room) : -1;
    if (sums)
        rs_free_sumset(sums);
    free(signature);
    return size;
}

static void histfs_job_close(histfs_job_t *self)
{
    if (!self->job)
        return;
    rs_job_free(self->job);
    if (self->loading)
        rs_free_sumset(self->loading);
    if (self->basis_fd >= 0)
        close(self->basis_fd);
    histfs_drop(self->shared);
    self->job = NULL;
    self->loading = NULL;
    self->shared = NULL;
}
"""


def read_source(name: str) -> str:
    """A file of csrc/, so that the compiler's messages name its lines."""
    return f'#line 1 "histfs/csrc/{name}"\n{(C_SOURCES / name).read_text()}'


ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
for header in HEADERS:
    ffibuilder.cdef((C_SOURCES / header).read_text())
ffibuilder.set_source("histfs._rsync", SOURCE + "".join(map(read_source, [*HEADERS, *BODIES])))


class build_ext(_build_ext):  # noqa: N801 (distutils names commands so)
    """Writes the C files, then compiles what pyproject.toml lists."""

    def build_extension(self, ext: Extension) -> None:
        """Called once per extension module: `histfs._x` is described in `histfs/_x_build.py`."""
        Path("build").mkdir(exist_ok=True)
        [source] = ext.sources
        script = Path(__file__).with_name(f"{ext.name.rpartition('.')[2]}_build.py")  # nothing is installed yet
        runpy.run_path(str(script))["ffibuilder"].emit_c_code(source)
        super().build_extension(ext)
