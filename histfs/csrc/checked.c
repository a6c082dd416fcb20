/* Comparing a version with its SHA1 while it is read, so that nobody gets all bytes of one that is not what was recorded.

   A check knows which ranges of the version were given out. The bytes from its beginning to the first gap are summed, by
   whoever has just read some of them; but for these, which are in the buffer, the version is read once more, which is
   quick, as it was read a moment ago. So nobody waits for the turn of others, and it does not matter in which order
   several threads and several readers come, nor what the kernel keeps of earlier reads and does not ask for again. Reads
   here and there cost no sum. The read that fills the last gap is given out when the sum of all is there, and is right; it
   is an error if not, and so is every read from then on. Rules:
   - The lock guards everything but `sha1`, which belongs to the one thread that has set `is_summing`. Who sums holds no
     lock, and waits for nobody but the disk. So who waits for a sum (while another thread sums, and only then) does not
     wait for ever.
   - `given` is noted before the bytes are given out, and may say too much. It says too little where reads have left too
     many gaps: then what was read is forgotten, and a version may be read in full without anybody noticing. A
     gap no longer than the read that follows it is taken for one of these, which the kernel may have kept.
   - A check may be shared by several openings of a version, and outlives them. What was found wrong stays wrong. */

#define HISTFS_MOST_GIVEN 256          /* ranges */
#define HISTFS_SUMMED_AT_ONCE (64u << 10)
#define HISTFS_LAG (1u << 20)          /* bytes that may wait to be summed where nobody does it; */
#define HISTFS_LONGEST_LAG (8u << 20)  /* and where somebody does */

enum histfs_verdict { HISTFS_OPEN, HISTFS_RIGHT, HISTFS_WRONG };

struct histfs_check {
    pthread_mutex_t lock;
    pthread_cond_t is_further;
    uint64_t size, next;           /* all bytes before `next` were summed */
    histfs_range_t *given;         /* in order, with gaps between them */
    size_t count, room;
    enum histfs_verdict verdict;
    int is_summing, has_forgotten;
    struct histfs_sha1 sha1;
    unsigned char recorded[20];
};

/* `is_again`: of a version that was read before, so that the kernel may keep some of it. NULL without memory. */
histfs_check_t *histfs_check_new(uint64_t size, unsigned char const *sha1, int is_again)
{
    histfs_check_t *self = calloc(1, sizeof *self);

    if (!self)
        return NULL;
    if (pthread_mutex_init(&self->lock, NULL)) {
        free(self);
        return NULL;
    }
    if (pthread_cond_init(&self->is_further, NULL)) {
        pthread_mutex_destroy(&self->lock);
        free(self);
        return NULL;
    }
    self->size = size;
    self->has_forgotten = is_again;
    histfs_sha1_begin(&self->sha1);
    memcpy(self->recorded, sha1, sizeof self->recorded);
    return self;
}

void histfs_check_free(histfs_check_t *self)
{
    pthread_cond_destroy(&self->is_further);
    pthread_mutex_destroy(&self->lock);
    free(self->given);
    free(self);
}

/* 0: not known yet; 1: it is what was recorded; 2: it is not. */
int histfs_check_verdict(histfs_check_t *self)
{
    int verdict;

    pthread_mutex_lock(&self->lock);
    verdict = self->verdict;
    pthread_mutex_unlock(&self->lock);
    return verdict;
}

/* How many bytes from the beginning were given out. With the lock, as the next two. */
static uint64_t histfs_given_in_order(histfs_check_t const *self)
{
    return self->count && !self->given[0].start ? self->given[0].end : 0;
}

/* Make room for one more range; 0 if there is to be none. */
static int histfs_has_room(histfs_check_t *self)
{
    size_t room = self->room ? 2 * self->room : 4;
    histfs_range_t *given;

    if (self->count < self->room)
        return 1;
    if (self->room == HISTFS_MOST_GIVEN || !(given = realloc(self->given, room * sizeof *given)))
        return 0;
    self->given = given;
    self->room = room;
    return 1;
}

static void histfs_note_given(histfs_check_t *self, uint64_t start, uint64_t end)
{
    uint64_t in_order = histfs_given_in_order(self);
    size_t first = 0, high = self->count, behind;

    if (self->has_forgotten && in_order && start > in_order && start - in_order <= end - start)
        start = in_order;
    while (first < high) {  /* the first range that does not end before `start` */
        size_t middle = first + (high - first) / 2;

        if (self->given[middle].end < start)
            first = middle + 1;
        else
            high = middle;
    }
    for (behind = first; behind < self->count && self->given[behind].start <= end; behind++)
        continue;
    if (behind > first) {
        if (self->given[first].start < start)
            start = self->given[first].start;
        if (self->given[behind - 1].end > end)
            end = self->given[behind - 1].end;
        memmove(self->given + first + 1, self->given + behind, (self->count - behind) * sizeof *self->given);
        self->count -= behind - first - 1;
    } else if (histfs_has_room(self)) {
        memmove(self->given + first + 1, self->given + first, (self->count - first) * sizeof *self->given);
        self->count++;
    } else {
        self->has_forgotten = 1;
        if ((start && end < self->size) || !self->count)
            return;
        first -= first == self->count;  /* both ends matter to who will read all: another range goes */
    }
    self->given[first].start = start;
    self->given[first].end = end;
}

/* What to do with bytes that were read for somebody, see calls.h. With `nowait` this waits for nobody, and leaves the sum
   to others as long as they will have it done soon. */
int histfs_version_give(histfs_version_t const *self, uint64_t offset, size_t size, int nowait)
{
    histfs_check_t *check = self->check;
    uint64_t before, in_order;
    int result = HISTFS_GIVE;

    if (!check || !size)
        return HISTFS_GIVE;
    pthread_mutex_lock(&check->lock);
    if (check->verdict == HISTFS_OPEN) {
        before = histfs_given_in_order(check);
        histfs_note_given(check, offset, offset + size);
        in_order = histfs_given_in_order(check);
        if (in_order >= check->size)
            result = nowait ? HISTFS_IN_A_THREAD : HISTFS_SETTLE_FIRST;
        else if (in_order > before && nowait)
            result = !check->is_summing && in_order - check->next > HISTFS_LAG ? HISTFS_IN_A_THREAD : HISTFS_GIVE;
        else if (in_order > before)
            while (check->is_summing && offset + size > check->next + HISTFS_LONGEST_LAG)
                pthread_cond_wait(&check->is_further, &check->lock);
    }
    if (check->verdict == HISTFS_WRONG)
        result = HISTFS_OTHER_CONTENT;
    pthread_mutex_unlock(&check->lock);
    return result;
}

/* Sum some of the bytes in [from, until), and set `length` to how many. By the thread that sums. */
static int histfs_sum_some(histfs_version_t const *self, char const *buffer, uint64_t offset, size_t size,
                           uint64_t from, uint64_t until, char **own, size_t *length, histfs_reading_t *reading)
{
    uint64_t left = until - from;
    int result;

    if (offset <= from && from - offset < size) {
        *length = size - (size_t)(from - offset);
        if (*length > left)
            *length = (size_t)left;
        histfs_sha1_add(&self->check->sha1, (unsigned char const *)buffer + (from - offset), *length);
        return RS_DONE;
    }
    if (from < offset && left > offset - from)
        left = offset - from;
    *length = left < HISTFS_SUMMED_AT_ONCE ? (size_t)left : HISTFS_SUMMED_AT_ONCE;
    if (!*own && !(*own = malloc(HISTFS_SUMMED_AT_ONCE)))
        return RS_MEM_ERROR;
    reading->done = 0;
    result = histfs_version_read(self, *own, from, *length, 0, reading);
    if (result == RS_DONE)
        histfs_sha1_add(&self->check->sha1, (unsigned char const *)*own, *length);
    return result;
}

/* With the lock. */
static void histfs_advance_sum(histfs_check_t *self, size_t length)
{
    unsigned char digest[20];

    self->next += length;
    if (self->next == self->size) {
        histfs_sha1_end(&self->sha1, digest);
        self->verdict = memcmp(digest, self->recorded, sizeof digest) ? HISTFS_WRONG : HISTFS_RIGHT;
    }
}

/* Sum what was given out in order and is not summed yet, unless another thread does; `buffer` has `size` bytes from `offset`
   on. If all was given out, this returns when the sum is there. 0, HISTFS_OTHER_CONTENT, or why the version cannot be read
   (see histfs_version_read); RS_BLOCKED if `is_ending` is set meanwhile. */
int histfs_version_settle(histfs_version_t const *self, char const *buffer, uint64_t offset, size_t size,
                          int const *is_ending, histfs_reading_t *reading)
{
    histfs_check_t *check = self->check;
    char *own = NULL;
    int result = RS_DONE;

    if (!check)
        return RS_DONE;
    pthread_mutex_lock(&check->lock);
    while (check->verdict == HISTFS_OPEN && result == RS_DONE) {
        uint64_t from = check->next, until = histfs_given_in_order(check);
        size_t length = 0;

        if (check->is_summing) {
            if (until < check->size)
                break;
            pthread_cond_wait(&check->is_further, &check->lock);
            continue;
        }
        if (from >= until)
            break;
        check->is_summing = 1;
        pthread_mutex_unlock(&check->lock);
        result = histfs_sum_some(self, buffer, offset, size, from, until, &own, &length, reading);
        pthread_mutex_lock(&check->lock);
        check->is_summing = 0;
        if (result == RS_DONE)
            histfs_advance_sum(check, length);
        if (check->verdict == HISTFS_OPEN && is_ending && __atomic_load_n(is_ending, __ATOMIC_RELAXED))
            result = RS_BLOCKED;
        pthread_cond_broadcast(&check->is_further);
    }
    if (check->verdict == HISTFS_WRONG)
        result = HISTFS_OTHER_CONTENT;
    pthread_mutex_unlock(&check->lock);
    free(own);
    return result;
}

/* For those who have a version and know nothing of it: */

static int histfs_call_read(void const *version, char *buffer, uint64_t offset, size_t size)
{
    histfs_reading_t reading = { 0, 0, 0 };

    return histfs_version_read(version, buffer, offset, size, 0, &reading);
}

static int histfs_call_give(void const *version, uint64_t offset, size_t size, int nowait)
{
    return histfs_version_give(version, offset, size, nowait);
}

static int histfs_call_settle(void const *version, char const *buffer, uint64_t offset, size_t size,
                              int const *is_ending)
{
    histfs_reading_t reading = { 0, 0, 0 };

    return histfs_version_settle(version, buffer, offset, size, is_ending, &reading);
}

/* The address of a `histfs_calls_t`. */
uintptr_t histfs_version_calls(void)
{
    static histfs_calls_t const calls = { histfs_call_read, histfs_call_give, histfs_call_settle };

    return (uintptr_t)&calls;
}
