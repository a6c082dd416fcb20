/* Scouts: threads that look at what a list names next, while the comparison (walk.c) is still before it.

   What they find saves the comparison system calls, and on a cold disk has it wait for several at once. It uses of it only
   what is as the record says; for all else, and where it is old or missing, it looks itself. Nothing is asked for that
   an earlier session has not entered, nor anything on another file system than the root's. No link is followed.

   Of a file that has changed they have the kernel fetch the content, the new one and that in the mirror, as both will be
   read: one after the other a disk needs several times as long for many of them.

   The lock guards the queue and the states of tasks. What is in a task belongs to the scout that runs it, then to the
   comparison. All paths are copies, as the text belongs to the caller. */

enum { HISTFS_MOST_SCOUTS = 16, HISTFS_MOST_TASKS = 64, HISTFS_SCOUT_LEVELS = 8 };
enum { HISTFS_SCOUTED_NAMES_BYTES = 32 << 20, HISTFS_SCOUTED_FOR_S = 1 }; /* listings that wait; how long they are true */
enum { HISTFS_FETCHED_BYTES = 256 * 1024 }; /* of one content; what is longer is read by the kernel ahead by itself */
enum histfs_state { HISTFS_WAITS, HISTFS_RUNS, HISTFS_IS_DONE };

/* What was found of a path, and what was there before. */
struct scouted {
    struct histfs_seen then, now;
    int is_known, is_listed;
    struct names names; /* if it is listed: of the directory that is `now` */
};

/* Some records of the list, one after the other. */
struct task {
    struct task *following;
    enum histfs_state state;
    int is_dropped; /* nobody waits for it */
    time_t done_at;
    uint64_t first; /* number of its first record in the old list */
    size_t count;
    size_t *places; /* of their paths */
    char *paths;    /* with a NUL after each */
    struct scouted found[];
};

struct scouts {
    int root, mirror; /* the second: perhaps -1 */
    uint64_t device; /* of the root: scouts stay on its file system, as another one may be a network */
    size_t records_at_once, records_from;
    size_t wanted, count;
    pthread_t threads[HISTFS_MOST_SCOUTS];
    pthread_mutex_t lock;
    pthread_cond_t has_work, is_done;
    int must_end;
    struct task *first, *current; /* the queue; what the comparison is in */
    size_t waiting;               /* tasks in the queue */
    uint64_t sent_to;             /* the number of the first record that nobody was sent for */
    size_t names_bytes;           /* of listings that nobody has taken yet */
};

static size_t histfs_names_bytes(const struct names *names)
{
    return names->count ? names->bytes + names->count * sizeof *names->places : 0;
}

/* Nobody else uses it any more. */
static void histfs_free_task(struct scouts *scouts, struct task *task)
{
    if (!task)
        return;
    for (size_t i = 0; i < task->count; i++)
        if (task->found[i].is_listed) {
            __atomic_sub_fetch(&scouts->names_bytes, histfs_names_bytes(&task->found[i].names), __ATOMIC_RELAXED);
            histfs_forget(&task->found[i].names);
        }
    free(task->places);
    free(task->paths);
    free(task);
}

/* The descriptors of directories that a task is in; each lies in the one before, but not always directly. */
struct above {
    size_t depth;
    struct { const char *path; size_t bytes; int directory; } levels[HISTFS_SCOUT_LEVELS];
};

static void histfs_push_above(struct above *above, const char *path, size_t bytes, int directory)
{
    if (above->depth == HISTFS_SCOUT_LEVELS)
        close(above->levels[--above->depth].directory);
    above->levels[above->depth].path = path;
    above->levels[above->depth].bytes = bytes;
    above->levels[above->depth++].directory = directory;
}

/* A descriptor of the first `bytes` of `path`, which belongs to `above`; -1 if there is none. */
static int histfs_parent(const struct scouts *scouts, struct above *above, char *path, size_t bytes)
{
    struct open_how how = {
        .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
    };
    int directory;

    for (; above->depth; close(above->levels[--above->depth].directory)) {
        size_t known = above->levels[above->depth - 1].bytes;

        if (known <= bytes && path[known] == '/' && !memcmp(above->levels[above->depth - 1].path, path, known))
            break;
    }
    if (!bytes)
        return scouts->root;
    if (above->depth && above->levels[above->depth - 1].bytes == bytes)
        return above->levels[above->depth - 1].directory;
    path[bytes] = 0;
    directory = (int)syscall(SYS_openat2, scouts->root, path, &how, sizeof how);
    path[bytes] = '/';
    if (directory >= 0)
        histfs_push_above(above, path, bytes, directory);
    return directory;
}

/* List the directory `path`, of that name in `parent`, if it is still the one that was looked at. */
static void histfs_list_ahead(
    struct scouts *scouts, struct above *above, int parent, const char *name, const char *path, struct scouted *found)
{
    int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct histfs_seen opened;
    size_t bytes;

    if (directory < 0)
        return;
    if (!histfs_see(directory, "", AT_EMPTY_PATH, &opened) && opened.inode == found->now.inode &&
        opened.device == found->now.device && opened.mtime_ns == found->now.mtime_ns &&
        opened.ctime_ns == found->now.ctime_ns &&
        !histfs_list(directory, &found->names, HISTFS_SCOUTED_NAMES_BYTES / 16)) {
        bytes = histfs_names_bytes(&found->names);
        if (__atomic_add_fetch(&scouts->names_bytes, bytes, __ATOMIC_RELAXED) <= HISTFS_SCOUTED_NAMES_BYTES)
            found->is_listed = 1;
        else
            __atomic_sub_fetch(&scouts->names_bytes, bytes, __ATOMIC_RELAXED);
    }
    if (!found->is_listed)
        histfs_forget(&found->names);
    histfs_push_above(above, path, strlen(path), directory);
}

/* Have the kernel begin to read a regular file. */
static void histfs_fetch(int directory, const char *path)
{
    struct open_how how = {
        .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
    };
    struct stat status;
    int file = (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
    int is_regular = file >= 0 && !fstat(file, &status) && S_ISREG(status.st_mode);

    if (file >= 0)
        close(file);
    how.flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC; /* if it is no regular file any more */
    if (!is_regular || (file = (int)syscall(SYS_openat2, directory, path, &how, sizeof how)) < 0)
        return;
    (void)posix_fadvise(file, 0, HISTFS_FETCHED_BYTES, POSIX_FADV_WILLNEED);
    close(file);
}

/* Of a file that is not what it was fetch what the session will read. */
static void histfs_fetch_changed(const struct scouts *scouts, int parent, const char *name, const char *path,
    const struct scouted *found)
{
    const struct histfs_seen *then = &found->then, *now = &found->now;
    int is_there = found->is_known && S_ISREG(now->mode);
    int may_stay = is_there && then->mtime_ns == now->mtime_ns && then->size == now->size;

    if (!S_ISREG(then->mode) || (may_stay && then->ctime_ns == now->ctime_ns && then->inode == now->inode))
        return;
    if (is_there)
        histfs_fetch(parent, name);
    if (!may_stay && scouts->mirror >= 0)
        histfs_fetch(scouts->mirror, path); /* a name that is quoted there is not found, and read without this */
}

static void histfs_run_task(struct scouts *scouts, struct task *task)
{
    struct above above = {.depth = 0};
    struct scouted *found;
    char *path, *slash;
    const char *name;
    int parent;

    for (size_t i = 0; i < task->count && !__atomic_load_n(&scouts->must_end, __ATOMIC_RELAXED); i++) {
        path = task->paths + task->places[i];
        found = &task->found[i];
        slash = strrchr(path, '/');
        name = slash ? slash + 1 : path;
        if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        parent = histfs_parent(scouts, &above, path, slash ? (size_t)(slash - path) : 0);
        found->is_known = parent >= 0 && !histfs_see(parent, name, AT_SYMLINK_NOFOLLOW, &found->now);
        if (found->is_known && S_ISDIR(found->now.mode) && found->now.device == scouts->device)
            histfs_list_ahead(scouts, &above, parent, name, path, found);
        else if (parent < 0 || !found->is_known || found->now.device == scouts->device)
            histfs_fetch_changed(scouts, parent, name, path, found);
    }
    while (above.depth)
        close(above.levels[--above.depth].directory);
}

static time_t histfs_now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec;
}

static void *histfs_be_scout(void *argument)
{
    struct scouts *scouts = argument;
    struct task *task;

    pthread_mutex_lock(&scouts->lock);
    while (!scouts->must_end) {
        for (task = scouts->first; task && task->state != HISTFS_WAITS;)
            task = task->following;
        if (!task) {
            pthread_cond_wait(&scouts->has_work, &scouts->lock);
            continue;
        }
        task->state = HISTFS_RUNS;
        pthread_mutex_unlock(&scouts->lock);
        histfs_run_task(scouts, task);
        pthread_mutex_lock(&scouts->lock);
        task->state = HISTFS_IS_DONE;
        task->done_at = histfs_now_s();
        if (task->is_dropped)
            histfs_free_task(scouts, task);
        else
            pthread_cond_signal(&scouts->is_done);
    }
    pthread_mutex_unlock(&scouts->lock);
    return NULL;
}

/* In the tree with that root, with these numbers: of threads, of records that one of them gets, and of records from which
   on it is worth while. `mirror`: perhaps -1. NULL without memory or descriptors. Threads are made when they are needed. */
static struct scouts *histfs_scouts_new(
    int root, int mirror, size_t threads, size_t records_at_once, size_t records_from)
{
    struct scouts *scouts = calloc(1, sizeof *scouts);
    struct stat status;

    if (!scouts || fstat(root, &status) || (scouts->root = fcntl(root, F_DUPFD_CLOEXEC, 0)) < 0) {
        free(scouts);
        return NULL;
    }
    scouts->mirror = mirror < 0 ? -1 : fcntl(mirror, F_DUPFD_CLOEXEC, 0);
    scouts->device = status.st_dev;
    scouts->wanted = threads < HISTFS_MOST_SCOUTS ? threads : HISTFS_MOST_SCOUTS;
    scouts->records_at_once = records_at_once;
    scouts->records_from = records_from;
    pthread_mutex_init(&scouts->lock, NULL);
    pthread_cond_init(&scouts->has_work, NULL);
    pthread_cond_init(&scouts->is_done, NULL);
    return scouts;
}

/* Signals are for the threads of the program. */
static void histfs_begin_scouts(struct scouts *scouts)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (scouts->count < scouts->wanted &&
        !pthread_create(&scouts->threads[scouts->count], NULL, histfs_be_scout, scouts))
        scouts->count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    scouts->wanted = scouts->count;
}

/* Take the first task out of the queue, and drop it: the lock is held. */
static void histfs_drop_first(struct scouts *scouts)
{
    struct task *task = scouts->first;

    scouts->first = task->following;
    scouts->waiting--;
    if (task->state == HISTFS_RUNS)
        task->is_dropped = 1;
    else
        histfs_free_task(scouts, task);
}

static void histfs_scouts_free(struct scouts *scouts)
{
    if (!scouts)
        return;
    pthread_mutex_lock(&scouts->lock);
    __atomic_store_n(&scouts->must_end, 1, __ATOMIC_RELAXED);
    while (scouts->first)
        histfs_drop_first(scouts);
    pthread_cond_broadcast(&scouts->has_work);
    pthread_mutex_unlock(&scouts->lock);
    for (size_t i = 0; i < scouts->count; i++)
        pthread_join(scouts->threads[i], NULL);
    histfs_free_task(scouts, scouts->current);
    pthread_cond_destroy(&scouts->has_work);
    pthread_cond_destroy(&scouts->is_done);
    pthread_mutex_destroy(&scouts->lock);
    close(scouts->root);
    if (scouts->mirror >= 0)
        close(scouts->mirror);
    free(scouts);
}

/* The path in a whole record, which is not terminated; nothing if it has none that is written as it is. */
static const char *histfs_path_of(const char *record, size_t bytes, size_t *path_bytes)
{
    const char *path = record + HISTFS_START_BYTES, *end = NULL;

    if (bytes > HISTFS_START_BYTES && !memcmp(record, HISTFS_START, HISTFS_START_BYTES))
        end = memchr(path, '\n', bytes - HISTFS_START_BYTES);
    *path_bytes = end && !memchr(path, '\\', (size_t)(end - path)) ? (size_t)(end - path) : 0;
    return *path_bytes ? path : record;
}

/* The next records of `run` as a task; NULL if there are too few yet, or no memory. `*text_at` goes on behind them. */
static struct task *histfs_new_task(
    struct scouts *scouts, const struct histfs_run *run, size_t *text_at, size_t seen_at)
{
    size_t count = 0, end = *text_at, at = end, length, bytes;
    struct task *task;
    const char *path;

    for (; count < scouts->records_at_once && seen_at + count < run->seen_count; count++, end += bytes) {
        bytes = run->seen[seen_at + count].record_bytes;
        if (bytes > run->text_bytes - end)
            break;
    }
    if (!count || (count < scouts->records_at_once && !run->is_last))
        return NULL;
    task = calloc(1, sizeof *task + count * sizeof *task->found);
    if (!task || !(task->places = malloc(count * sizeof *task->places)) || !(task->paths = malloc(end - at + count))) {
        histfs_free_task(scouts, task);
        return NULL;
    }
    for (; task->count < count; task->count++, at += bytes) {
        bytes = run->seen[seen_at + task->count].record_bytes;
        task->found[task->count].then = run->seen[seen_at + task->count];
        path = histfs_path_of(run->text + at, bytes, &length);
        task->places[task->count] = at - *text_at + task->count;
        memcpy(task->paths + task->places[task->count], path, length);
        task->paths[task->places[task->count] + length] = 0;
    }
    *text_at = end;
    return task;
}

/* Have scouts look at the records of `run` that nobody was sent for yet. */
static void histfs_send(struct scouts *scouts, const struct histfs_run *run)
{
    size_t text_at = run->text_at, seen_at = run->seen_at;
    uint64_t number = run->number;
    struct task *task, **last;

    if (scouts->current && histfs_now_s() - scouts->current->done_at > HISTFS_SCOUTED_FOR_S) {
        histfs_free_task(scouts, scouts->current);
        scouts->current = NULL;
    }
    for (; number < scouts->sent_to && seen_at < run->seen_count; number++) {
        if (run->seen[seen_at].record_bytes > run->text_bytes - text_at)
            return;
        text_at += run->seen[seen_at++].record_bytes;
    }
    if (!scouts->count && (!scouts->wanted || run->seen_count - seen_at < scouts->records_from))
        return;
    if (!scouts->count)
        histfs_begin_scouts(scouts);
    while (scouts->count && scouts->waiting < HISTFS_MOST_TASKS &&
        (task = histfs_new_task(scouts, run, &text_at, seen_at))) {
        task->first = number;
        number += task->count;
        seen_at += task->count;
        pthread_mutex_lock(&scouts->lock);
        for (last = &scouts->first; *last;)
            last = &(*last)->following;
        *last = task;
        scouts->waiting++;
        scouts->sent_to = number;
        pthread_cond_signal(&scouts->has_work);
        pthread_mutex_unlock(&scouts->lock);
    }
}

/* The task of the record of that number, instead of the one that the comparison was in; NULL if nobody has done it. */
static struct task *histfs_next_task(struct scouts *scouts, uint64_t number)
{
    struct task *task;

    histfs_free_task(scouts, scouts->current);
    scouts->current = NULL;
    if (!scouts->count)
        return NULL;
    pthread_mutex_lock(&scouts->lock);
    while (scouts->first && scouts->first->first + scouts->first->count <= number)
        histfs_drop_first(scouts);
    task = scouts->first && scouts->first->first <= number ? scouts->first : NULL;
    if (task && task->state == HISTFS_WAITS) { /* who would have to wait for it does it instead */
        histfs_drop_first(scouts);
        task = NULL;
    }
    while (task && task->state == HISTFS_RUNS)
        pthread_cond_wait(&scouts->is_done, &scouts->lock);
    if (task) {
        scouts->first = task->following;
        scouts->waiting--;
    }
    pthread_mutex_unlock(&scouts->lock);
    if (task && histfs_now_s() - task->done_at > HISTFS_SCOUTED_FOR_S) {
        histfs_free_task(scouts, task);
        task = NULL;
    }
    return task;
}

/* What was found of the record of that number; NULL if the caller has to look. Good until the next call. */
static struct scouted *histfs_scouted(struct scouts *scouts, uint64_t number)
{
    struct task *task = scouts->current;

    if (!task || number >= task->first + task->count)
        task = scouts->current = histfs_next_task(scouts, number);
    if (!task || number < task->first || !task->found[number - task->first].is_known)
        return NULL;
    return &task->found[number - task->first];
}

/* Take over the names of a directory that is listed. */
static void histfs_take_names(struct scouts *scouts, struct scouted *scouted, struct names *names)
{
    *names = scouted->names;
    scouted->is_listed = 0;
    __atomic_sub_fetch(&scouts->names_bytes, histfs_names_bytes(names), __ATOMIC_RELAXED);
}
