"""Builds histfs._fuse, which stands between pyfuse3 and libfuse where a session is made, and where it receives.

The kernel need not tell us when files and directories are opened and closed: if it hears once that there is no handler
(ENOSYS), it sends neither any more, and keeps what it was given. That is right for a tree that never changes, and
spares two of three requests for a small file, and all of them for what was read before. But pyfuse3 hands only the
handle of what is open to `read` and `readdir`, and without `open` there is none. So the structure of handlers that
pyfuse3 registers is copied, and in the copy these two take the inode number for the handle. `init` asks for the
caching of symbolic links as well, which pyfuse3 has no option for.

And it can keep answers that were made before somebody asks: the contents of small files and the listings of directories
(csrc/kept.c); and it reads large files that Python has opened (csrc/serving.c). A request that is answered so never
becomes a task of Python; and as the next one comes soon, it is waited for before the event loop is entered again, which
takes as long. (Giving contents to the kernel itself, unasked, would spare the request as well. But the kernel would
wait, uninterruptibly, for a page that somebody is just asking us for, and so keep a killed process from ever ending.)
What is kept is bounded: contents until they have been asked for, or their place is needed.

How: loaded into the global scope before pyfuse3, the three symbols below are found first when the dynamic linker binds
pyfuse3's calls. The real functions are looked up in the caller's own libraries, so they are always those of the libfuse
which pyfuse3 uses. Nothing is linked, and nothing but members of public structures is known of libfuse, which have kept
their places in all of libfuse3.so.3. Where anything is not as expected, the calls go on as they came, and
`histfs_fuse_is_by_inode` says so.
"""

from pathlib import Path

from cffi import FFI

DECLARATIONS = """
int histfs_fuse_is_by_inode(void);
int histfs_fuse_keep_content(uint64_t inode, const char *data, size_t size);
int histfs_fuse_keep_listing(uint64_t inode, uint64_t offset, const char *data, size_t size, int is_last);
int histfs_fuse_reply_listing(uint64_t inode, uint64_t offset);
void histfs_fuse_forget_listings(void);
int histfs_fuse_serve(uint64_t inode, uint64_t size, uintptr_t calls, uintptr_t version);
int histfs_fuse_withdraw(uint64_t inode);
uint64_t histfs_fuse_reads(uint64_t inode);
int histfs_fuse_failure(uint64_t *inode, uint64_t *offset);
void histfs_fuse_end(void);
"""

SOURCE = r"""
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define FUSE_USE_VERSION 31
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <fuse3/fuse_lowlevel.h>

typedef struct fuse_lowlevel_ops histfs_ops_t;
typedef struct fuse_session *histfs_session_new_t(struct fuse_args *, histfs_ops_t const *, size_t, void *);
typedef int histfs_reply_t(fuse_req_t, const char *, size_t);
typedef int histfs_receive_t(struct fuse_session *, struct fuse_buf *);
typedef void histfs_process_t(struct fuse_session *, const struct fuse_buf *);

/* Of the one session that pyfuse3 has at a time. */
static void (*histfs_their_init)(void *, struct fuse_conn_info *);
static void (*histfs_their_read)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static void (*histfs_their_readdirplus)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static void (*histfs_their_readlink)(fuse_req_t, fuse_ino_t);
static histfs_reply_t *histfs_reply_buf;
static histfs_receive_t *histfs_receive;
static histfs_process_t *histfs_process;
static int (*histfs_descriptor)(struct fuse_session *);
static int histfs_is_by_inode;

"""

HANDLERS = r"""
/* The handles of libfuse are 64 bits wide, as inode numbers are. */
static void histfs_read(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    if (histfs_claim(inode)) {
        histfs_read_claimed(req, size, offset);
        return;
    }
    file->fh = inode;
    histfs_their_read(req, inode, size, offset, file);
}

static void histfs_readdirplus(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    if (size < histfs_listing_room)
        histfs_listing_room = size;
    if (histfs_reply_from_listing(req, inode, (uint64_t)offset, size))
        return;
    file->fh = inode;
    histfs_their_readdirplus(req, inode, size, offset, file);
}

static void histfs_readlink(fuse_req_t req, fuse_ino_t inode)
{
    if (histfs_claim(inode))
        histfs_reply_buf(req, histfs_claimed.data, histfs_claimed.size);
    else
        histfs_their_readlink(req, inode);
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

"""

RECEIVING = r"""
/* How the requests begin (linux/fuse.h, which has kept this since its first versions). */
struct histfs_request {
    uint32_t length, opcode;
    uint64_t unique, inode;
    uint32_t uid, gid, pid, padding;
    uint64_t handle, offset;  /* of those that read */
    uint32_t size;
};
#define HISTFS_READLINK 5
#define HISTFS_READ 15
#define HISTFS_INTERRUPT 36
#define HISTFS_READDIRPLUS 44
#define HISTFS_LOOKS 200
#define HISTFS_TURN_NS 5000000  /* after which the caller's other tasks have theirs, whoever asks without a pause */

/* Who answers a request. */
enum histfs_who { HISTFS_PYTHON, HISTFS_NOBODY, HISTFS_KEPT_ANSWERS, HISTFS_POOL };

static enum histfs_who histfs_who_answers(const struct fuse_buf *buffer, int size)
{
    const struct histfs_request *request = buffer->mem;

    if (size < (int)offsetof(struct histfs_request, handle) || buffer->flags || !histfs_is_by_inode)
        return HISTFS_PYTHON;
    if (request->opcode == HISTFS_INTERRUPT)
        return HISTFS_NOBODY;  /* pyfuse3 has no use for it, and libfuse may keep it for ever */
    if (request->opcode == HISTFS_READLINK)
        return histfs_claim(request->inode) ? HISTFS_KEPT_ANSWERS : HISTFS_PYTHON;
    if (size < (int)sizeof *request)
        return HISTFS_PYTHON;
    if (request->opcode == HISTFS_READDIRPLUS)
        return histfs_has_listing(request->inode, request->offset) ? HISTFS_KEPT_ANSWERS : HISTFS_PYTHON;
    if (request->opcode != HISTFS_READ)
        return HISTFS_PYTHON;
    return histfs_claim(request->inode) ? HISTFS_KEPT_ANSWERS
        : histfs_find_served(request->inode) ? HISTFS_POOL : HISTFS_PYTHON;
}

/* Whether the next request comes within some ten microseconds. To sleep and to be woken takes longer than that, here
   and for who asks. */
static int histfs_next_comes(struct fuse_session *session)
{
    struct pollfd device = { histfs_descriptor(session), POLLIN, 0 };

    for (int look = 0; look < HISTFS_LOOKS; look++) {
        if (poll(&device, 1, 0) == 1)
            return device.revents == POLLIN;
        sched_yield();
    }
    return 0;
}

/* In place of fuse_session_receive_buf: the same, but that requests which need no Python are answered here, while other
   threads run. */
int histfs_session_receive(struct fuse_session *, struct fuse_buf *)
    __asm__("fuse_session_receive_buf") __attribute__((visibility("default"), noinline));

int histfs_session_receive(struct fuse_session *session, struct fuse_buf *buffer)
{
    PyThreadState *state = NULL;
    uint64_t began_ns = histfs_now_ns();
    int size;

    for (;;) {
        const struct histfs_request *request;
        enum histfs_who who;

        size = histfs_receive(session, buffer);
        who = histfs_who_answers(buffer, size);
        if (who == HISTFS_PYTHON)
            break;
        if (!state)
            state = PyEval_SaveThread();
        request = buffer->mem;
        if (who == HISTFS_KEPT_ANSWERS)
            histfs_process(session, buffer);
        else if (who == HISTFS_POOL && !histfs_answer(histfs_descriptor(session), request->unique, request->inode,
                                                      request->offset, request->size))
            break;
        if (histfs_now_ns() - began_ns > HISTFS_TURN_NS || !histfs_next_comes(session)) {
            size = -EINTR;  /* and the caller waits in its own way */
            break;
        }
    }
    if (state)
        PyEval_RestoreThread(state);
    return size;
}

/* A function of the caller's libfuse; NULL where there is none. */
static void *histfs_real(void *caller, const char *name)
{
    Dl_info info;
    void *library, *symbol;

    if (!dladdr(caller, &info) || !(library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD)))
        return NULL;
    symbol = dlsym(library, name);
    dlclose(library);
    return symbol;
}

/* In place of fuse_reply_buf: the same, but for the reply that was promised to be a listing. */
int histfs_listing_reply(fuse_req_t, const char *, size_t)
    __asm__("fuse_reply_buf") __attribute__((visibility("default"), noinline));

int histfs_listing_reply(fuse_req_t req, const char *data, size_t size)
{
    int is_replied = 0;

    if (!histfs_reply_buf)
        histfs_reply_buf = (histfs_reply_t *)histfs_real(__builtin_return_address(0), "fuse_reply_buf");
    if (!histfs_reply_buf)
        return -ENOSYS;
    if (histfs_promised.inode && !size)
        is_replied = histfs_reply_from_listing(req, histfs_promised.inode, histfs_promised.offset, histfs_listing_room);
    histfs_promised.inode = 0;
    return is_replied ? 0 : histfs_reply_buf(req, data, size);
}

/* Look up what we call; whether all is as expected. */
static int histfs_is_known(void *caller, histfs_ops_t const *ops, size_t size)
{
    Dl_info info;
    size_t needed = offsetof(histfs_ops_t, readdirplus) + sizeof ops->readdirplus;

    histfs_reply_buf = (histfs_reply_t *)histfs_real(caller, "fuse_reply_buf");
    histfs_process = (histfs_process_t *)histfs_real(caller, "fuse_session_process_buf");
    histfs_descriptor = (int (*)(struct fuse_session *))histfs_real(caller, "fuse_session_fd");
    return histfs_reply_buf && histfs_process && histfs_descriptor && dladdr((void *)histfs_reply_buf, &info)
        && strstr(info.dli_fname, "libfuse3") && strstr(info.dli_fname, ".so.3")
        && size >= needed && ops->init && ops->read && ops->readlink && ops->readdirplus;
}

/* The label gives the name, as newer headers have a macro of it. */
struct fuse_session *histfs_session_new(struct fuse_args *, histfs_ops_t const *, size_t, void *)
    __asm__("fuse_session_new") __attribute__((visibility("default"), noinline));

struct fuse_session *histfs_session_new(struct fuse_args *args, histfs_ops_t const *ops, size_t size, void *userdata)
{
    void *caller = __builtin_return_address(0);
    histfs_session_new_t *session_new = (histfs_session_new_t *)histfs_real(caller, "fuse_session_new");
    histfs_ops_t *copy;
    struct fuse_session *session;

    histfs_is_by_inode = 0;
    histfs_drop_all();
    histfs_drop_listings();
    histfs_pool_begin();
    histfs_receive = (histfs_receive_t *)histfs_real(caller, "fuse_session_receive_buf");
    if (!session_new || !histfs_receive)
        return NULL;
    if (!histfs_is_known(caller, ops, size) || !(copy = malloc(size)))
        return session_new(args, ops, size, userdata);
    memcpy(copy, ops, size);  /* it may be longer than ours: members are only ever added */
    histfs_their_init = ops->init;
    histfs_their_read = ops->read;
    histfs_their_readlink = ops->readlink;
    histfs_their_readdirplus = ops->readdirplus;
    copy->init = histfs_init;
    copy->read = histfs_read;
    copy->readlink = histfs_readlink;
    copy->readdirplus = histfs_readdirplus;
    session = session_new(args, copy, size, userdata);  /* which makes a copy of its own */
    free(copy);
    return session;
}
"""


C_SOURCES = Path(__file__).parent / "csrc"


def read_source(name: str) -> str:
    """A file of csrc/, so that the compiler's messages name its lines."""
    return f'#line 1 "histfs/csrc/{name}"\n{(C_SOURCES / name).read_text()}'


ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "histfs._fuse",
    "\n".join([SOURCE, read_source("kept.c"), HANDLERS, read_source("calls.h"), read_source("serving.c"), RECEIVING]),
)
