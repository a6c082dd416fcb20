"""Builds histfs._tree: what is done for each file of a tree, with no Python between one and the next.

From Python each system call costs a fight for the interpreter's lock, which is more than the call itself. cffi gives
the lock away for the whole of each function here.

- `histfs_walk_*` goes through a tree in the order of the metadata files, for `histfs.store.walk`, and compares it with
  what an earlier session saw, record by record, until something is different.
- `histfs_copy_files` copies files from one directory to another, and hashes them, for `histfs.store.copying`.
- `histfs_noise_runs` tells what cannot be compressed, for `histfs.store.compression`.
- `histfs_differing` compares two contents page by page, for `histfs.store.delta`.
- `histfs_block_sums` makes sums of the blocks of a content, for `histfs.store.sums`.
- `histfs_moved_*` finds the records of a ledger that may be of a file under another name, for `histfs.store.moved`.
"""

from pathlib import Path

from cffi import FFI

C_SOURCES = Path(__file__).parent / "csrc"
HEADERS = ["walk.h", "copy.h", "moved.h", "noise.h", "pages.h"]
FILES = ["times.c", "look.c", "scouts.c", "walk.c", "sha1.c", "pages.c", "copy.c", "moved.c", "noise.c"]

SOURCE = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
"""


def read_source(name: str) -> str:
    """A file of csrc/, so that the compiler's messages name its lines."""
    return f'#line 1 "histfs/csrc/{name}"\n{(C_SOURCES / name).read_text()}'


ffibuilder = FFI()
for header in HEADERS:
    ffibuilder.cdef((C_SOURCES / header).read_text())
ffibuilder.set_source("histfs._tree", SOURCE + "".join(map(read_source, [*HEADERS, *FILES])))
