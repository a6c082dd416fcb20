"""Builds histfs._fuse, which stands between pyfuse3 and libfuse where a session is made, and where it receives.

The kernel need not tell us when files and directories are opened and closed: if it hears once that there is no handler
(ENOSYS), it sends neither any more, and keeps what it was given. That is right for a tree that never changes, and
spares two of three requests for a small file, and all of them for what was read before. But pyfuse3 hands only the
handle of what is open to `read` and `readdir`, and without `open` there is none. So the structure of handlers that
pyfuse3 registers is copied, and in the copy these two take the inode number for the handle. `init` asks for the
caching of symbolic links as well, which pyfuse3 has no option for.

And it can keep answers that were made before somebody asks: the contents of small files, and where listings end; and
it reads large files that Python has opened, by itself (csrc/serving.c). A
request that is answered from them never becomes a task of Python; and as the next one comes soon, it is waited for
before the event loop is entered again, which takes as long. (Giving contents to the kernel itself, unasked, would
spare the request as well. But the kernel would wait, uninterruptibly, for a page that somebody is just asking us for,
and so keep a killed process from ever ending.) Of contents up to HISTFS_KEPT_BYTES are kept, each until it has
been asked for, or its place is needed.

How: loaded into the global scope before pyfuse3, the two symbols below are found first when the dynamic linker binds
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
void histfs_fuse_keep_end(uint64_t inode, uint64_t offset);
int histfs_fuse_serve(uint64_t inode, uint64_t size, uintptr_t reader, uintptr_t version);
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
typedef int histfs_receive_t(struct fuse_session *, struct fuse_buf *);
typedef void histfs_process_t(struct fuse_session *, const struct fuse_buf *);

/* Of the one session that pyfuse3 has at a time. */
static void (*histfs_their_init)(void *, struct fuse_conn_info *);
static void (*histfs_their_read)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static void (*histfs_their_readdirplus)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static int (*histfs_reply_buf)(fuse_req_t, const char *, size_t);
static histfs_receive_t *histfs_receive;
static histfs_process_t *histfs_process;
static int (*histfs_descriptor)(struct fuse_session *);
static int histfs_is_by_inode;

/* Answers that were made before they were asked for. Whatever is in a place makes room for what is to go there. */
#define HISTFS_PLACES 4096
#define HISTFS_KEPT_BYTES (8u << 20)

static pthread_mutex_t histfs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct histfs_content { uint64_t inode; char *data; size_t size; } histfs_contents[HISTFS_PLACES];
static struct histfs_content histfs_claimed;  /* by the session's thread */
static struct { uint64_t inode, offset; } histfs_ends[HISTFS_PLACES];
static size_t histfs_kept_bytes, histfs_hand;

static size_t histfs_place(uint64_t inode)
{
    return (inode * UINT64_C(0x9E3779B97F4A7C15)) >> 52;  /* the upper 12 bits: 4096 places */
}

static void histfs_drop_content(size_t place)
{
    histfs_kept_bytes -= histfs_contents[place].size;
    free(histfs_contents[place].data);
    memset(&histfs_contents[place], 0, sizeof histfs_contents[place]);
}

static void histfs_drop_all(void)
{
    pthread_mutex_lock(&histfs_lock);
    for (size_t place = 0; place < HISTFS_PLACES; place++)
        histfs_drop_content(place);
    free(histfs_claimed.data);
    memset(&histfs_claimed, 0, sizeof histfs_claimed);
    memset(histfs_ends, 0, sizeof histfs_ends);
    pthread_mutex_unlock(&histfs_lock);
}

/* Whether it is kept. From any thread. */
static int histfs_fuse_keep_content(uint64_t inode, const char *data, size_t size)
{
    size_t place = histfs_place(inode);
    char *copy;

    if (!histfs_is_by_inode || size > HISTFS_KEPT_BYTES || !(copy = malloc(size ? size : 1)))
        return 0;
    memcpy(copy, data, size);
    pthread_mutex_lock(&histfs_lock);
    histfs_drop_content(place);
    while (histfs_kept_bytes + size > HISTFS_KEPT_BYTES)
        histfs_drop_content(histfs_hand++ % HISTFS_PLACES);
    histfs_contents[place].inode = inode;
    histfs_contents[place].data = copy;
    histfs_contents[place].size = size;
    histfs_kept_bytes += size;
    pthread_mutex_unlock(&histfs_lock);
    return 1;
}

/* From the session's thread. */
static void histfs_fuse_keep_end(uint64_t inode, uint64_t offset)
{
    size_t place = histfs_place(inode);

    histfs_ends[place].inode = inode;
    histfs_ends[place].offset = offset;
}

static int histfs_is_end(uint64_t inode, uint64_t offset)
{
    size_t place = histfs_place(inode);

    return offset && histfs_ends[place].inode == inode && histfs_ends[place].offset == offset;
}

/* Take a content out of its place, to be read by the session's thread alone; whether there is one. */
static int histfs_claim(uint64_t inode)
{
    size_t place = histfs_place(inode);

    if (histfs_claimed.data && histfs_claimed.inode == inode)
        return 1;
    pthread_mutex_lock(&histfs_lock);
    if (!histfs_contents[place].data || histfs_contents[place].inode != inode) {
        pthread_mutex_unlock(&histfs_lock);
        return 0;
    }
    free(histfs_claimed.data);
    histfs_claimed = histfs_contents[place];
    histfs_contents[place].data = NULL;
    histfs_drop_content(place);
    pthread_mutex_unlock(&histfs_lock);
    return 1;
}

static void histfs_read_claimed(fuse_req_t req, size_t size, off_t offset)
{
    size_t left = 0 <= offset && (size_t)offset < histfs_claimed.size ? histfs_claimed.size - offset : 0;

    histfs_reply_buf(req, left ? histfs_claimed.data + offset : NULL, left < size ? left : size);
}

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
    if (histfs_is_end(inode, offset)) {
        histfs_reply_buf(req, NULL, 0);
        return;
    }
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
#define HISTFS_READ 15
#define HISTFS_INTERRUPT 36
#define HISTFS_READDIRPLUS 44
#define HISTFS_LOOKS 200

/* Who answers a request. */
enum histfs_who { HISTFS_PYTHON, HISTFS_NOBODY, HISTFS_KEPT_ANSWERS, HISTFS_POOL };

static enum histfs_who histfs_who_answers(const struct fuse_buf *buffer, int size)
{
    const struct histfs_request *request = buffer->mem;

    if (size < (int)offsetof(struct histfs_request, handle) || buffer->flags || !histfs_is_by_inode)
        return HISTFS_PYTHON;
    if (request->opcode == HISTFS_INTERRUPT)
        return HISTFS_NOBODY;  /* pyfuse3 has no use for it, and libfuse may keep it for ever */
    if (size < (int)sizeof *request)
        return HISTFS_PYTHON;
    if (request->opcode == HISTFS_READDIRPLUS)
        return histfs_is_end(request->inode, request->offset) ? HISTFS_KEPT_ANSWERS : HISTFS_PYTHON;
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
        if (!histfs_next_comes(session)) {
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

/* Look up what we call; whether all is as expected. */
static int histfs_is_known(void *caller, histfs_ops_t const *ops, size_t size)
{
    Dl_info info;
    size_t needed = offsetof(histfs_ops_t, readdirplus) + sizeof ops->readdirplus;

    histfs_reply_buf = (int (*)(fuse_req_t, const char *, size_t))histfs_real(caller, "fuse_reply_buf");
    histfs_process = (histfs_process_t *)histfs_real(caller, "fuse_session_process_buf");
    histfs_descriptor = (int (*)(struct fuse_session *))histfs_real(caller, "fuse_session_fd");
    return histfs_reply_buf && histfs_process && histfs_descriptor && dladdr((void *)histfs_reply_buf, &info)
        && strstr(info.dli_fname, "libfuse3") && strstr(info.dli_fname, ".so.3")
        && size >= needed && ops->init && ops->read && ops->readdirplus;
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
    histfs_pool_begin();
    histfs_receive = (histfs_receive_t *)histfs_real(caller, "fuse_session_receive_buf");
    if (!session_new || !histfs_receive)
        return NULL;
    if (!histfs_is_known(caller, ops, size) || !(copy = malloc(size)))
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

SERVING = Path(__file__).parent / "csrc" / "serving.c"

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source("histfs._fuse", f'{SOURCE}\n#line 1 "histfs/csrc/serving.c"\n{SERVING.read_text()}\n{RECEIVING}')
