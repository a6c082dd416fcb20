/* Loaded before libfuse (LD_PRELOAD): counts what the kernel was told of each inode, and what it has forgotten.
 *
 * The kernel keeps a count for each inode: one for each answer to LOOKUP and each name of READDIRPLUS that shows it. It
 * gives them back with FORGET. Both are seen in what the process reads from and writes to /dev/fuse. The counts are in
 * the file that HISTFS_TAP names, so that others can read them: five sums, and a hash table of inodes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define NODES (1 << 18)
#define PENDING (1 << 12)
#define MESSAGE_MAX (2 << 20)

struct node {
    uint64_t inode;
    int64_t count;
};

static struct {
    uint64_t lookups, listed, forgotten, below_zero, lost;
    struct node nodes[NODES];
} *tap;

static struct {
    uint64_t unique;
    uint32_t opcode;
} pending[PENDING];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int device = -1;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("HISTFS_TAP");
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    void *place = MAP_FAILED;

    real_read = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_writev = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    if (fd >= 0 && ftruncate(fd, sizeof *tap) == 0)
        place = mmap(NULL, sizeof *tap, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (place != MAP_FAILED)
        tap = place;
}

/* There is one such descriptor as long as something is mounted. */
static int is_fuse(int fd)
{
    struct stat shown;

    if (tap == NULL)
        return 0;
    if (device < 0 && fstat(fd, &shown) == 0 && S_ISCHR(shown.st_mode) && shown.st_rdev == makedev(10, 229))
        device = fd;
    return device == fd;
}

static void add(uint64_t inode, int64_t change)
{
    uint64_t at = inode * 0x9E3779B97F4A7C15u >> 46;

    for (int tries = 0; tries < NODES; tries++, at++) {
        struct node *node = &tap->nodes[at % NODES];
        if (node->inode != inode && node->inode != 0)
            continue;
        node->inode = inode;
        node->count += change;
        if (node->count < 0)
            tap->below_zero++;
        return;
    }
    tap->lost++;
}

static void forget(uint64_t inode, uint64_t times)
{
    tap->forgotten += times;
    add(inode, -(int64_t)times);
}

static void asked(const char *data, size_t size)
{
    const struct fuse_in_header *in = (const void *)data;
    const char *rest = data + sizeof *in;

    if (size < sizeof *in)
        return;
    if (in->opcode == FUSE_FORGET) {
        forget(in->nodeid, ((const struct fuse_forget_in *)rest)->nlookup);
    } else if (in->opcode == FUSE_BATCH_FORGET) {
        const struct fuse_batch_forget_in *batch = (const void *)rest;
        const struct fuse_forget_one *each = (const void *)(batch + 1);
        for (uint32_t i = 0; i < batch->count; i++)
            forget(each[i].nodeid, each[i].nlookup);
    } else if (in->opcode == FUSE_LOOKUP || in->opcode == FUSE_READDIRPLUS) {
        pending[in->unique / 2 % PENDING].unique = in->unique;
        pending[in->unique / 2 % PENDING].opcode = in->opcode;
    }
}

static void answered(const char *data, size_t size)
{
    const struct fuse_out_header *out = (const void *)data;
    uint64_t slot;
    uint32_t opcode;

    if (size < sizeof *out)
        return;
    slot = out->unique / 2 % PENDING;
    if (out->unique == 0 || out->error != 0 || pending[slot].unique != out->unique)
        return;
    opcode = pending[slot].opcode;
    pending[slot].unique = 0;
    if (opcode == FUSE_LOOKUP) {
        const struct fuse_entry_out *entry = (const void *)(out + 1);
        if (entry->nodeid != 0) {
            tap->lookups++;
            add(entry->nodeid, 1);
        }
        return;
    }
    for (size_t at = sizeof *out; at + FUSE_NAME_OFFSET_DIRENTPLUS <= size;) {
        const struct fuse_direntplus *entry = (const void *)(data + at);
        const char *name = entry->dirent.name;
        uint32_t length = entry->dirent.namelen;
        int is_dots = (length == 1 && name[0] == '.') || (length == 2 && name[0] == '.' && name[1] == '.');
        if (entry->entry_out.nodeid != 0 && !is_dots) {
            tap->listed++;
            add(entry->entry_out.nodeid, 1);
        }
        at += FUSE_DIRENTPLUS_SIZE(entry);
    }
}

ssize_t read(int fd, void *data, size_t size)
{
    ssize_t got = real_read(fd, data, size);

    if (got > 0 && is_fuse(fd)) {
        pthread_mutex_lock(&lock);
        asked(data, (size_t)got);
        pthread_mutex_unlock(&lock);
    }
    return got;
}

/* Counted before the kernel hears of it: what it forgets at once must not come first. */
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    static char message[MESSAGE_MAX];
    size_t size = 0;

    if (is_fuse(fd)) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < count && size + parts[i].iov_len <= sizeof message; i++) {
            memcpy(message + size, parts[i].iov_base, parts[i].iov_len);
            size += parts[i].iov_len;
        }
        answered(message, size);
        pthread_mutex_unlock(&lock);
    }
    return real_writev(fd, parts, count);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (is_fuse(fd)) {
        pthread_mutex_lock(&lock);
        answered(data, size);
        pthread_mutex_unlock(&lock);
    }
    return real_write(fd, data, size);
}
