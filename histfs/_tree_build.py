"""Builds histfs._tree: what is done for each file of a tree, with no Python between one and the next.

From Python each system call costs a fight for the interpreter's lock, which is more than the call itself. cffi gives
the lock away for the whole of each function here.

- `histfs_read_files` reads many small files of one directory, for `histfs.store.tree`. What is no regular file is not
  opened, as opening a fifo or a device has effects of its own; its descriptor is looked at again, as the name may have
  got another file in between.
- `histfs_walk_*` goes through a tree in the order of the metadata files, for `histfs.store.walk`, and compares it with
  what an earlier session saw, record by record, until something is different.
- `histfs_copy_files` copies files from one directory to another, and hashes them, for `histfs.store.copying`.
- `histfs_moved_*` finds the records of a ledger that may be of a file under another name, for `histfs.store.moved`.
"""

from pathlib import Path

from cffi import FFI

C_SOURCES = Path(__file__).parent / "csrc"
HEADERS = ["walk.h", "copy.h", "moved.h"]
FILES = ["walk.c", "sha1.c", "copy.c", "moved.c"]

DECLARATIONS = """
void histfs_read_files(
    int directory, size_t count, const char *names, const size_t *sizes, char *data, unsigned char *is_read);
"""


SOURCE = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

static int histfs_is_as_expected(const struct stat *status, size_t size)
{
    return S_ISREG(status->st_mode) && status->st_size >= 0 && (size_t)status->st_size == size;
}

static int histfs_read_file(int directory, const char *name, char *data, size_t size)
{
    struct stat status;
    ssize_t got;
    size_t have = 0;
    int file;

    if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) || !histfs_is_as_expected(&status, size))
        return 0;
    file = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file < 0)
        return 0;
    if (!fstat(file, &status) && histfs_is_as_expected(&status, size))
        while (have < size && (got = read(file, data + have, size - have)) > 0)
            have += got;
    close(file);
    return have == size;
}

/* `names` end with a NUL each; each file has its size of places in `data`, one behind the other. */
static void histfs_read_files(
    int directory, size_t count, const char *names, const size_t *sizes, char *data, unsigned char *is_read)
{
    for (size_t file = 0; file < count; file++) {
        is_read[file] = histfs_read_file(directory, names, data, sizes[file]);
        names += strlen(names) + 1;
        data += sizes[file];
    }
}
"""


def read_source(name: str) -> str:
    """A file of csrc/, so that the compiler's messages name its lines."""
    return f'#line 1 "histfs/csrc/{name}"\n{(C_SOURCES / name).read_text()}'


ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
for header in HEADERS:
    ffibuilder.cdef((C_SOURCES / header).read_text())
ffibuilder.set_source("histfs._tree", SOURCE + "".join(map(read_source, [*HEADERS, *FILES])))
