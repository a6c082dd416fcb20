/* Reads of large files, answered without Python (see _fuse_build.py).

   A version that is served was opened by Python, and stays open until it is withdrawn. Small reads are answered by the
   thread that receives them, as long as the disk is quick; all others by a few threads of our own, in any order. Replies
   go straight to the device, as the requests never came to libfuse. Rules:
   - Python serves and withdraws in the session's thread, which receives as well. The threads here only take jobs.
   - Where a read fails the reader hears of an error of the disk, and Python is told, so that it finds out the reason.
   - What is read in full is compared with its SHA1 (see checked.c). A thread sums when it has replied, but for the reply
     that has to wait for the sum. The session's thread never does: it leaves to the others what that would take.
   - A thread that waits for a disk cannot be stopped: what it reads is not withdrawn, and it is left behind at the end. */

#define HISTFS_SERVED 32            /* as many as are kept open (_fs_open_files.py) */
#define HISTFS_JOBS 64
#define HISTFS_THREADS 4
#define HISTFS_FAILURES 16
#define HISTFS_END_S 1
#define HISTFS_SMALL_READ (64u << 10)
#define HISTFS_LARGEST_READ (4u << 20)
#define HISTFS_SLOW_NS 5000000      /* a small read that took so long has met a slow disk; */
#define HISTFS_SLOW_FOR_NS 100000000  /* for so long no other one is made to wait for it */

typedef struct {
    uint64_t inode, size;           /* inode 0: nothing is served here */
    histfs_calls_t const *calls;
    void const *version;
    unsigned users;                 /* jobs */
    uint64_t reads;
} histfs_served_t;

typedef struct {
    histfs_served_t *served;
    uint64_t unique, offset;
    size_t size;
} histfs_job_t;

typedef struct {
    uint64_t inode, offset;
} histfs_failure_t;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t is_more, is_over;
    histfs_served_t served[HISTFS_SERVED];
    histfs_job_t jobs[HISTFS_JOBS];  /* a ring */
    unsigned first, count;
    histfs_failure_t failures[HISTFS_FAILURES];
    unsigned failed;
    unsigned threads;
    int device, is_ending;
} histfs_pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .is_more = PTHREAD_COND_INITIALIZER,
                  .is_over = PTHREAD_COND_INITIALIZER, .device = -1 };

static uint64_t histfs_slow_until_ns;  /* of the session's thread, as is this: */
static char histfs_small_buffer[HISTFS_SMALL_READ];

static uint64_t histfs_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The reply to the request `unique`. If that is not wanted any more, there is nothing to be done about it. */
static void histfs_reply(int device, uint64_t unique, int error, char *data, size_t size)
{
    struct histfs_reply { uint32_t length; int32_t error; uint64_t unique; } header;
    struct iovec parts[2] = { { &header, sizeof header }, { data, error ? 0 : size } };

    header.length = (uint32_t)(sizeof header + parts[1].iov_len);
    header.error = -error;
    header.unique = unique;
    if (writev(device, parts, parts[1].iov_len ? 2 : 1) < 0)
        return;
}

/* How many of `size` bytes at `offset` there are. */
static size_t histfs_clipped(uint64_t file_size, uint64_t offset, size_t size)
{
    uint64_t left = offset < file_size ? file_size - offset : 0;

    return left < size ? (size_t)left : size;
}

static void histfs_note_failure(uint64_t inode, uint64_t offset)
{
    histfs_failure_t *failure = &histfs_pool.failures[histfs_pool.failed % HISTFS_FAILURES];

    failure->inode = inode;
    failure->offset = offset;
    histfs_pool.failed++;
}

/* Read, and reply; whether it was an error. */
static int histfs_do_job(histfs_job_t const *job, int device, char *buffer, size_t size)
{
    histfs_calls_t const *calls = job->served->calls;
    void const *version = job->served->version;
    int next = calls->read(version, buffer, job->offset, size) ? HISTFS_OTHER_CONTENT
        : calls->give(version, job->offset, size, 0), is_settled = next == HISTFS_SETTLE_FIRST;

    if (is_settled && !calls->settle(version, buffer, job->offset, size, &histfs_pool.is_ending))
        next = HISTFS_GIVE;
    histfs_reply(device, job->unique, next == HISTFS_GIVE ? 0 : EIO, buffer, size);
    if (next == HISTFS_GIVE && !is_settled)
        calls->settle(version, buffer, job->offset, size, &histfs_pool.is_ending);
    return next != HISTFS_GIVE;
}

static void *histfs_work(void *unused)
{
    char *buffer = NULL;
    size_t room = 0;

    (void)unused;
    pthread_mutex_lock(&histfs_pool.lock);
    for (;;) {
        histfs_job_t job;
        size_t size;
        int is_error, device;

        while (!histfs_pool.count && !histfs_pool.is_ending)
            pthread_cond_wait(&histfs_pool.is_more, &histfs_pool.lock);
        if (!histfs_pool.count)
            break;
        job = histfs_pool.jobs[histfs_pool.first];
        histfs_pool.first = (histfs_pool.first + 1) % HISTFS_JOBS;
        histfs_pool.count--;
        device = histfs_pool.device;
        pthread_mutex_unlock(&histfs_pool.lock);
        size = histfs_clipped(job.served->size, job.offset, job.size);
        if (size > room) {
            free(buffer);
            buffer = malloc(size);
            room = buffer ? size : 0;
        }
        is_error = size > room;
        if (is_error)
            histfs_reply(device, job.unique, ENOMEM, NULL, 0);
        else
            is_error = histfs_do_job(&job, device, buffer, size);
        pthread_mutex_lock(&histfs_pool.lock);
        if (is_error)
            histfs_note_failure(job.served->inode, job.offset);
        job.served->users--;
    }
    if (!--histfs_pool.threads) {
        close(histfs_pool.device);
        histfs_pool.device = -1;
        pthread_cond_broadcast(&histfs_pool.is_over);
    }
    pthread_mutex_unlock(&histfs_pool.lock);
    free(buffer);
    return NULL;
}

/* With the lock. Signals are for the threads of Python. */
static void histfs_start_threads(int device)
{
    sigset_t all, before;

    if (histfs_pool.threads || histfs_pool.is_ending)
        return;
    histfs_pool.device = fcntl(device, F_DUPFD_CLOEXEC, 0);
    if (histfs_pool.device < 0)
        return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (histfs_pool.threads < HISTFS_THREADS) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, histfs_work, NULL))
            break;
        pthread_detach(thread);
        histfs_pool.threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!histfs_pool.threads) {
        close(histfs_pool.device);
        histfs_pool.device = -1;
    }
}

static histfs_served_t *histfs_find_served(uint64_t inode)
{
    for (histfs_served_t *served = histfs_pool.served; inode && served < histfs_pool.served + HISTFS_SERVED; served++)
        if (served->inode == inode)
            return served;
    return NULL;
}

/* Serve a version with what reads it, a `histfs_calls_t`; whether that is done. */
static int histfs_fuse_serve(uint64_t inode, uint64_t size, uintptr_t calls, uintptr_t version)
{
    histfs_served_t *served = histfs_pool.served;
    int is_done;

    if (!inode || !histfs_is_by_inode || histfs_find_served(inode))
        return 0;
    pthread_mutex_lock(&histfs_pool.lock);
    while (served < histfs_pool.served + HISTFS_SERVED && served->inode)
        served++;
    is_done = served < histfs_pool.served + HISTFS_SERVED;
    if (is_done) {
        served->inode = inode;
        served->size = size;
        served->calls = (histfs_calls_t const *)calls;
        served->version = (void const *)version;
        served->users = 0;
        served->reads = 0;
    }
    pthread_mutex_unlock(&histfs_pool.lock);
    return is_done;
}

/* Whether nobody reads what was served, so that it may be closed: then it is not served any more. */
static int histfs_fuse_withdraw(uint64_t inode)
{
    histfs_served_t *served = histfs_find_served(inode);
    int is_idle = 1;

    pthread_mutex_lock(&histfs_pool.lock);
    if (served && served->users)
        is_idle = 0;
    else if (served)
        served->inode = 0;
    pthread_mutex_unlock(&histfs_pool.lock);
    return is_idle;
}

/* How often a version was read since it was last asked. */
static uint64_t histfs_fuse_reads(uint64_t inode)
{
    histfs_served_t *served = histfs_find_served(inode);
    uint64_t reads = served ? served->reads : 0;

    if (served)
        served->reads = 0;
    return reads;
}

/* One of the reads that failed: 1, its inode and its offset; 0 if there is none. */
static int histfs_fuse_failure(uint64_t *inode, uint64_t *offset)
{
    int is_one;

    pthread_mutex_lock(&histfs_pool.lock);
    if (histfs_pool.failed > HISTFS_FAILURES)
        histfs_pool.failed = HISTFS_FAILURES;
    is_one = histfs_pool.failed > 0;
    if (is_one) {
        histfs_failure_t *failure = &histfs_pool.failures[--histfs_pool.failed];

        *inode = failure->inode;
        *offset = failure->offset;
    }
    pthread_mutex_unlock(&histfs_pool.lock);
    return is_one;
}

/* Let the threads end when they have done what is to be done, and wait a moment for that. */
static void histfs_fuse_end(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += HISTFS_END_S;
    pthread_mutex_lock(&histfs_pool.lock);
    __atomic_store_n(&histfs_pool.is_ending, 1, __ATOMIC_RELAXED);  /* who sums reads it without the lock */
    pthread_cond_broadcast(&histfs_pool.is_more);
    while (histfs_pool.threads && !pthread_cond_timedwait(&histfs_pool.is_over, &histfs_pool.lock, &until))
        continue;
    pthread_mutex_unlock(&histfs_pool.lock);
}

/* For the next session. If threads of the last one are still there, it does without any. */
static void histfs_pool_begin(void)
{
    pthread_mutex_lock(&histfs_pool.lock);
    if (!histfs_pool.threads) {
        memset(histfs_pool.served, 0, sizeof histfs_pool.served);
        histfs_pool.failed = 0;
        histfs_pool.is_ending = 0;
    }
    pthread_mutex_unlock(&histfs_pool.lock);
}

/* Whether a read is answered here, now or by another thread. */
static int histfs_answer(int device, uint64_t unique, uint64_t inode, uint64_t offset, size_t size)
{
    histfs_served_t *served = histfs_find_served(inode);
    uint64_t began_ns;
    int is_taken = 0, is_busy;

    if (!served || size > HISTFS_LARGEST_READ)
        return 0;
    served->reads++;
    began_ns = histfs_now_ns();
    if (size <= HISTFS_SMALL_READ && began_ns >= histfs_slow_until_ns) {
        size_t count = histfs_clipped(served->size, offset, size);

        if (served->calls->read(served->version, histfs_small_buffer, offset, count))
            return 0;  /* Python says what is wrong */
        if (histfs_now_ns() - began_ns > HISTFS_SLOW_NS)
            histfs_slow_until_ns = histfs_now_ns() + HISTFS_SLOW_FOR_NS;
        if (served->calls->give(served->version, offset, count, 1) == HISTFS_GIVE) {
            histfs_reply(device, unique, 0, histfs_small_buffer, count);
            return 1;
        }
    }
    pthread_mutex_lock(&histfs_pool.lock);
    histfs_start_threads(device);
    is_busy = !histfs_pool.threads || histfs_pool.is_ending || histfs_pool.count == HISTFS_JOBS;
    if (!is_busy) {
        histfs_job_t *job = &histfs_pool.jobs[(histfs_pool.first + histfs_pool.count++) % HISTFS_JOBS];

        served->users++;
        job->served = served;
        job->unique = unique;
        job->offset = offset;
        job->size = size;
        is_taken = 1;
        pthread_cond_signal(&histfs_pool.is_more);
    }
    pthread_mutex_unlock(&histfs_pool.lock);
    return is_taken;
}
