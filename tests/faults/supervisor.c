/* A process whose calls that change something are told to a supervisor, who lets one of them fail.
 *
 * fault_enter(), in a child that was just forked, has the kernel stop at each such call (seccomp(2) finds them, ptrace(2)
 * stops) and tells fault_supervise(), in its parent, of it before it is made. Only calls on paths below the watched places
 * count. All threads and children of the process are followed, whatever library makes the call. What is not such a call
 * runs at full speed.
 *
 * Python loads this as a library, see supervise.py. Linux on x86-64 only: registers are changed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "only for x86-64"
#endif
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#define SYS_removexattrat 466
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/* Where a call says what it changes: a descriptor, a path, a directory and a path, two of these, or nowhere. */
enum where { FD, PATH, AT, PATH_PATH, AT_AT };

struct call {
    int number;
    enum where where;
    int first, second; /* which arguments; for two places each */
    const char *name;
};

static const struct call changing[] = {
    {SYS_write, FD, 0, 0, "write"},
    {SYS_pwrite64, FD, 0, 0, "pwrite64"},
    {SYS_writev, FD, 0, 0, "writev"},
    {SYS_pwritev, FD, 0, 0, "pwritev"},
    {SYS_pwritev2, FD, 0, 0, "pwritev2"},
    {SYS_ftruncate, FD, 0, 0, "ftruncate"},
    {SYS_fallocate, FD, 0, 0, "fallocate"},
    {SYS_fchmod, FD, 0, 0, "fchmod"},
    {SYS_fchown, FD, 0, 0, "fchown"},
    {SYS_fsetxattr, FD, 0, 0, "fsetxattr"},
    {SYS_fremovexattr, FD, 0, 0, "fremovexattr"},
    {SYS_sendfile, FD, 0, 0, "sendfile"},
    {SYS_copy_file_range, FD, 2, 0, "copy_file_range"},
    {SYS_splice, FD, 2, 0, "splice"},
    {SYS_fsync, FD, 0, 0, "fsync"},
    {SYS_fdatasync, FD, 0, 0, "fdatasync"},
    {SYS_sync_file_range, FD, 0, 0, "sync_file_range"},
    {SYS_syncfs, FD, 0, 0, "syncfs"},
    {SYS_ioctl, FD, 0, 0, "ioctl"}, /* that make one file of another's blocks, or set flags */
    {SYS_mmap, FD, 4, 0, "mmap"},   /* shared and to be written: stores in it cannot be seen */
    {SYS_open, PATH, 0, 0, "open"}, /* with O_CREAT or O_TRUNC, as the next ones */
    {SYS_creat, PATH, 0, 0, "creat"},
    {SYS_openat, AT, 0, 1, "openat"},
    {SYS_openat2, AT, 0, 1, "openat2"},
    {SYS_truncate, PATH, 0, 0, "truncate"},
    {SYS_rename, PATH_PATH, 0, 1, "rename"},
    {SYS_renameat, AT_AT, 0, 2, "renameat"},
    {SYS_renameat2, AT_AT, 0, 2, "renameat2"},
    {SYS_link, PATH_PATH, 1, 1, "link"},
    {SYS_linkat, AT_AT, 2, 2, "linkat"},
    {SYS_symlink, PATH, 1, 0, "symlink"},
    {SYS_symlinkat, AT, 1, 2, "symlinkat"},
    {SYS_unlink, PATH, 0, 0, "unlink"},
    {SYS_unlinkat, AT, 0, 1, "unlinkat"},
    {SYS_mkdir, PATH, 0, 0, "mkdir"},
    {SYS_mkdirat, AT, 0, 1, "mkdirat"},
    {SYS_rmdir, PATH, 0, 0, "rmdir"},
    {SYS_mknod, PATH, 0, 0, "mknod"},
    {SYS_mknodat, AT, 0, 1, "mknodat"},
    {SYS_chmod, PATH, 0, 0, "chmod"},
    {SYS_fchmodat, AT, 0, 1, "fchmodat"},
    {SYS_fchmodat2, AT, 0, 1, "fchmodat2"},
    {SYS_chown, PATH, 0, 0, "chown"},
    {SYS_lchown, PATH, 0, 0, "lchown"},
    {SYS_fchownat, AT, 0, 1, "fchownat"},
    {SYS_utime, PATH, 0, 0, "utime"},
    {SYS_utimes, PATH, 0, 0, "utimes"},
    {SYS_futimesat, AT, 0, 1, "futimesat"},
    {SYS_utimensat, AT, 0, 1, "utimensat"},
    {SYS_setxattr, PATH, 0, 0, "setxattr"},
    {SYS_lsetxattr, PATH, 0, 0, "lsetxattr"},
    {SYS_removexattr, PATH, 0, 0, "removexattr"},
    {SYS_lremovexattr, PATH, 0, 0, "lremovexattr"},
    {SYS_setxattrat, AT, 0, 1, "setxattrat"},
    {SYS_removexattrat, AT, 0, 1, "removexattrat"},
};

/* Only where they are asked for. */
static const struct call reading[] = {
    {SYS_read, FD, 0, 0, "read"},
    {SYS_pread64, FD, 0, 0, "pread64"},
    {SYS_readv, FD, 0, 0, "readv"},
    {SYS_preadv, FD, 0, 0, "preadv"},
    {SYS_preadv2, FD, 0, 0, "preadv2"},
};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define MAKES (O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY))

enum sees { READS = 1, OPENS = 2 }; /* transfers from files; opening what is there */

enum action { WATCH, KILL, SIGNAL, FAIL, CUT_POWER, SHORTEN };

struct fault_plan {
    int32_t action;
    int32_t at;           /* the number of the call, from 1; for SHORTEN a seed */
    int32_t from_then_on; /* FAIL: every later call fails as well */
    int32_t number;       /* FAIL: errno; SIGNAL: the signal; CUT_POWER: what the file system is told */
    int32_t fd;           /* CUT_POWER: the file system */
    int32_t log_fd;       /* WATCH: gets each call, and a NUL; -1: none */
    int32_t sees;         /* which calls are points beside those that change something */
    const char *watched[4]; /* places, without a slash at the end; NULL: no more */
};

struct fault_report {
    int32_t status; /* wait(2)'s, of the process */
    int32_t calls;  /* that were counted */
    int32_t hits;   /* that something was done to */
    int32_t blind;  /* maps and rings through which things may change unseen */
    int32_t is_hung;
    char text[400]; /* the call that was hit first */
};

/* --- in the child ------------------------------------------------------------------------------------------------ */

static void trace_call(struct sock_filter *filter, int *length, int number)
{
    filter[(*length)++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1);
    filter[(*length)++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
}

/* Only if argument `argument` has one of `bits`. */
static void trace_flagged(struct sock_filter *filter, int *length, int number, int argument, unsigned bits)
{
    unsigned offset = offsetof(struct seccomp_data, args) + 8u * (unsigned)argument;
    filter[(*length)++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 4);
    filter[(*length)++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset);
    filter[(*length)++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
    filter[(*length)++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    filter[(*length)++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

/* Returns 0, or -1 with errno. The process stops until fault_supervise goes on with it. */
int fault_enter(int sees)
{
    struct sock_filter filter[400];
    int length = 0;
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) || raise(SIGSTOP))
        return -1;
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    if (!(sees & OPENS)) {
        trace_flagged(filter, &length, SYS_open, 1, MAKES);
        trace_flagged(filter, &length, SYS_openat, 2, MAKES);
    }
    trace_flagged(filter, &length, SYS_mmap, 3, MAP_SHARED);
    for (size_t i = 0; i < LENGTH(changing); i++)
        trace_call(filter, &length, changing[i].number);
    trace_call(filter, &length, SYS_io_uring_setup);
    for (size_t i = 0; sees & READS && i < LENGTH(reading); i++)
        trace_call(filter, &length, reading[i].number);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = (unsigned short)length, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* --- in the parent ----------------------------------------------------------------------------------------------- */

static const struct call *find_call(int number)
{
    for (size_t i = 0; i < LENGTH(changing); i++)
        if (changing[i].number == number)
            return &changing[i];
    for (size_t i = 0; i < LENGTH(reading); i++)
        if (reading[i].number == number)
            return &reading[i];
    return NULL;
}

static int read_memory(pid_t thread, uint64_t address, void *to, size_t length)
{
    struct iovec local = {to, length}, remote = {(void *)(uintptr_t)address, length};
    return process_vm_readv(thread, &local, 1, &remote, 1, 0) == (ssize_t)length;
}

/* The string at `address`; empty where it cannot be read. */
static void read_string(pid_t thread, uint64_t address, char *to, size_t limit)
{
    size_t length = 0;
    while (length + 1 < limit) {
        size_t step = 256 - (address + length) % 256; /* never over the end of a page */
        if (step > limit - 1 - length)
            step = limit - 1 - length;
        if (!read_memory(thread, address + length, to + length, step))
            break;
        char *end = memchr(to + length, 0, step);
        if (end)
            return;
        length += step;
    }
    to[length] = 0;
}

static void read_link(const char *format, pid_t thread, long fd, char *to, size_t limit)
{
    char place[64];
    snprintf(place, sizeof place, format, (int)thread, fd);
    ssize_t length = readlink(place, to, limit - 1);
    to[length < 0 ? 0 : length] = 0;
}

static void path_of_fd(pid_t thread, long fd, char *to, size_t limit)
{
    if ((int)fd == AT_FDCWD)
        read_link("/proc/%d/cwd", thread, 0, to, limit);
    else
        read_link("/proc/%d/fd/%ld", thread, (int)fd, to, limit);
}

static void path_at(pid_t thread, long directory, uint64_t name_address, char *to, size_t limit)
{
    static const char magic[] = "/proc/self/fd/";
    char name[4096];
    read_string(thread, name_address, name, sizeof name);
    if (!strncmp(name, magic, sizeof magic - 1)) {
        path_of_fd(thread, atol(name + sizeof magic - 1), to, limit);
        return;
    }
    if (name[0] == '/') {
        snprintf(to, limit, "%s", name);
        return;
    }
    path_of_fd(thread, directory, to, limit);
    size_t length = strlen(to);
    if (name[0])
        snprintf(to + length, limit - length, "/%s", name);
}

static int is_watched(const struct fault_plan *plan, const char *path)
{
    for (int i = 0; i < 4 && plan->watched[i]; i++) {
        size_t length = strlen(plan->watched[i]);
        if (!strncmp(path, plan->watched[i], length) && (path[length] == '/' || !path[length] || path[length] == ' '))
            return 1;
    }
    return 0;
}

/* Whether what the call changes is watched; its first place goes to `path`. */
static int concerns_us(pid_t thread, const struct fault_plan *plan, const struct call *call, const uint64_t *arguments,
                       char *path, size_t limit)
{
    switch (call->where) {
    case FD:
        path_of_fd(thread, (long)arguments[call->first], path, limit);
        return is_watched(plan, path);
    case PATH:
        path_at(thread, AT_FDCWD, arguments[call->first], path, limit);
        return is_watched(plan, path);
    case AT:
        path_at(thread, (long)arguments[call->first], arguments[call->second], path, limit);
        return is_watched(plan, path);
    case PATH_PATH:
        path_at(thread, AT_FDCWD, arguments[call->second], path, limit);
        if (is_watched(plan, path))
            return 1;
        path_at(thread, AT_FDCWD, arguments[call->first], path, limit);
        return is_watched(plan, path);
    case AT_AT:
        path_at(thread, (long)arguments[call->second], arguments[call->second + 1], path, limit);
        if (is_watched(plan, path))
            return 1;
        path_at(thread, (long)arguments[call->first], arguments[call->first + 1], path, limit);
        return is_watched(plan, path);
    }
    return 0;
}

static int is_point(pid_t thread, int sees, const struct call *call, const uint64_t *arguments)
{
    uint64_t flags;
    switch (call->number) {
    case SYS_openat2:
        return sees & OPENS || (read_memory(thread, arguments[2], &flags, sizeof flags) && flags & MAKES);
    case SYS_ioctl:
        return arguments[1] == FICLONE || arguments[1] == FICLONERANGE || arguments[1] == FS_IOC_SETFLAGS;
    default:
        return 1;
    }
}

static void set_result(pid_t thread, long result)
{
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, thread, 0, &registers))
        return;
    registers.orig_rax = (unsigned long long)-1; /* the call is not made */
    registers.rax = (unsigned long long)result;
    ptrace(PTRACE_SETREGS, thread, 0, &registers);
}

/* Let a transfer be shorter than it was asked to be: the same for the same seed and the same run. */
static int shorten(pid_t thread, const struct call *call, uint64_t *state)
{
    struct user_regs_struct registers;
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint64_t chance = *state >> 33;
    if (chance % 10 >= 4 || ptrace(PTRACE_GETREGS, thread, 0, &registers))
        return 0;
    switch (call->number) {
    case SYS_read:
    case SYS_pread64:
    case SYS_write:
    case SYS_pwrite64:
        if (registers.rdx < 2)
            return 0;
        registers.rdx = 1 + chance / 10 % (registers.rdx - 1);
        break;
    case SYS_copy_file_range:
        if (registers.r8 < 2)
            return 0;
        registers.r8 = 1 + chance / 10 % (registers.r8 - 1);
        break;
    case SYS_sendfile:
        if (registers.r10 < 2)
            return 0;
        registers.r10 = 1 + chance / 10 % (registers.r10 - 1);
        break;
    case SYS_readv:
    case SYS_writev:
    case SYS_preadv:
    case SYS_pwritev:
    case SYS_preadv2:
    case SYS_pwritev2:
        if (registers.rdx < 2)
            return 0;
        registers.rdx = 1 + chance / 10 % (registers.rdx - 1); /* buffers */
        break;
    default:
        return 0;
    }
    return !ptrace(PTRACE_SETREGS, thread, 0, &registers);
}

/* A thread is about to make a call. */
static void at_call(pid_t child, pid_t thread, const struct fault_plan *plan, struct fault_report *report, uint64_t *state)
{
    struct user_regs_struct r;
    char path[8192];
    if (ptrace(PTRACE_GETREGS, thread, 0, &r))
        return;
    uint64_t arguments[6] = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9};
    if ((int)r.orig_rax == SYS_io_uring_setup) {
        report->blind++;
        return;
    }
    const struct call *call = find_call((int)r.orig_rax);
    if (!call || !is_point(thread, plan->sees, call, arguments) || !concerns_us(thread, plan, call, arguments, path, sizeof path))
        return;
    if (call->number == SYS_mmap) {
        size_t length = strlen(path);
        int is_index = length > 4 && !strcmp(path + length - 4, "-shm"); /* SQLite's, in memory only: made anew */
        report->blind += arguments[2] & PROT_WRITE && !is_index;
        return;
    }
    report->calls++;
    if (plan->action == WATCH && plan->log_fd >= 0)
        dprintf(plan->log_fd, "%s %s%c", call->name, path, 0);
    if (plan->action == SHORTEN) {
        report->hits += shorten(thread, call, state);
        return;
    }
    if (plan->action == WATCH || report->calls < plan->at)
        return;
    if (report->calls > plan->at && !(plan->action == FAIL && plan->from_then_on))
        return;
    if (!report->hits++)
        snprintf(report->text, sizeof report->text, "%s %.300s", call->name, path);
    switch (plan->action) {
    case CUT_POWER:
        ioctl(plan->fd, _IOR('X', 125, uint32_t), &plan->number);
        /* fall through */
    case KILL:
        kill(child, SIGKILL);
        break;
    case SIGNAL:
        kill(child, plan->number);
        break;
    case FAIL:
        set_result(thread, -(long)plan->number);
        break;
    }
}

/* Run the process that has called fault_enter, and leads a process group of its own, to its end: 0, or -1 with errno.
 * A signal to the caller that interrupts wait(2) has it killed, and is_hung. */
int fault_supervise(int child, const struct fault_plan *plan, struct fault_report *report)
{
    int status;
    uint64_t state = (uint64_t)plan->at * 2654435761u + 12345;
    memset(report, 0, sizeof *report);
    if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status)) {
        report->status = status;
        errno = ECHILD;
        return -1;
    }
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options) || ptrace(PTRACE_CONT, child, 0, 0))
        return -1;
    int has_ended = 0;
    for (;;) {
        pid_t thread = waitpid(-child, &status, __WALL);
        if (thread < 0 && errno == EINTR) {
            report->is_hung = 1;
            kill(-child, SIGKILL);
            continue;
        }
        if (thread < 0) /* nobody is left */
            return has_ended ? 0 : -1;
        if (!WIFSTOPPED(status)) {
            if (thread == child) {
                report->status = status;
                has_ended = 1;
                if (plan->action == KILL || plan->action == CUT_POWER)
                    kill(-child, SIGKILL); /* its children, too */
            }
            continue;
        }
        int event = status >> 16, signal = WSTOPSIG(status);
        if (event == PTRACE_EVENT_SECCOMP)
            at_call(child, thread, plan, report, &state);
        if (event || signal == SIGTRAP)
            signal = 0;
        else if (signal == SIGSTOP) /* a new thread or child begins so */
            signal = 0;
        ptrace(PTRACE_CONT, thread, 0, signal);
    }
}
