"""Builds histfs._fuse, which stands between pyfuse3 and libfuse for one call: `fuse_session_new`.

The kernel need not tell us when files and directories are opened and closed: if it hears once that there is no handler
(ENOSYS), it sends neither any more, and keeps what it was given. That is right for a tree that never changes, and
spares two of three requests for a small file, and all of them for what was read before. But pyfuse3 hands only the
handle of what is open to `read` and `readdir`, and without `open` there is none. So the structure of handlers that
pyfuse3 registers is copied, and in the copy these two take the inode number for the handle. `init` asks for the
caching of symbolic links as well, which pyfuse3 has no option for.

How: loaded into the global scope before pyfuse3, the symbol below is found first when the dynamic linker binds
pyfuse3's call. The real function is looked up in the caller's own libraries, so it is always that of the libfuse which
pyfuse3 uses. Nothing is linked, and nothing but members of public structures is known of libfuse, which have kept
their places in all of libfuse3.so.3. Where anything is not as expected, the call goes on as it came, and
`histfs_fuse_is_by_inode` says so.
"""

from cffi import FFI

DECLARATIONS = """
int histfs_fuse_is_by_inode(void);
"""

SOURCE = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define FUSE_USE_VERSION 31
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <fuse3/fuse_lowlevel.h>

typedef struct fuse_lowlevel_ops histfs_ops_t;
typedef struct fuse_session *histfs_session_new_t(struct fuse_args *, histfs_ops_t const *, size_t, void *);

/* Of the one session that pyfuse3 has at a time. */
static void (*histfs_their_init)(void *, struct fuse_conn_info *);
static void (*histfs_their_read)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static void (*histfs_their_readdirplus)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static int histfs_is_by_inode;

/* The handles of libfuse are 64 bits wide, as inode numbers are. */
static void histfs_read(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    file->fh = inode;
    histfs_their_read(req, inode, size, offset, file);
}

static void histfs_readdirplus(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    file->fh = inode;
    histfs_their_readdirplus(req, inode, size, offset, file);
}

static void histfs_init(void *userdata, struct fuse_conn_info *connection)
{
    unsigned needed = FUSE_CAP_NO_OPEN_SUPPORT | FUSE_CAP_NO_OPENDIR_SUPPORT;

    histfs_is_by_inode = (connection->capable & needed) == needed;
    connection->want |= connection->capable & FUSE_CAP_CACHE_SYMLINKS;
    histfs_their_init(userdata, connection);
}

static int histfs_fuse_is_by_inode(void)
{
    return histfs_is_by_inode;
}

/* The function of the caller's libfuse; NULL where there is none. */
static histfs_session_new_t *histfs_real_session_new(void *caller)
{
    Dl_info info;
    void *library, *symbol;

    if (!dladdr(caller, &info) || !(library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD)))
        return NULL;
    symbol = dlsym(library, "fuse_session_new");
    dlclose(library);
    return (histfs_session_new_t *)symbol;
}

static int histfs_is_known(histfs_session_new_t *session_new, histfs_ops_t const *ops, size_t size)
{
    Dl_info info;
    size_t needed = offsetof(histfs_ops_t, readdirplus) + sizeof ops->readdirplus;

    return dladdr((void *)session_new, &info) && strstr(info.dli_fname, "libfuse3") && strstr(info.dli_fname, ".so.3")
        && size >= needed && ops->init && ops->read && ops->readdirplus;
}

/* The label gives the name, as newer headers have a macro of it. */
struct fuse_session *histfs_session_new(struct fuse_args *, histfs_ops_t const *, size_t, void *)
    __asm__("fuse_session_new") __attribute__((visibility("default"), noinline));

struct fuse_session *histfs_session_new(struct fuse_args *args, histfs_ops_t const *ops, size_t size, void *userdata)
{
    histfs_session_new_t *session_new = histfs_real_session_new(__builtin_return_address(0));
    histfs_ops_t *copy;
    struct fuse_session *session;

    histfs_is_by_inode = 0;
    if (!session_new)
        return NULL;
    if (!histfs_is_known(session_new, ops, size) || !(copy = malloc(size)))
        return session_new(args, ops, size, userdata);
    memcpy(copy, ops, size);  /* it may be longer than ours: members are only ever added */
    histfs_their_init = ops->init;
    histfs_their_read = ops->read;
    histfs_their_readdirplus = ops->readdirplus;
    copy->init = histfs_init;
    copy->read = histfs_read;
    copy->readdirplus = histfs_readdirplus;
    session = session_new(args, copy, size, userdata);  /* which makes a copy of its own */
    free(copy);
    return session;
}
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source("histfs._fuse", SOURCE)
