/* Reading versions through their maps: from files, from memory, and from gzip members, which are inflated when they are
   needed and then kept for a while.

   Rules: any number of threads may read the same version. One lock guards the kept members and who uses which descriptor;
   nobody waits for a disk, or inflates, while holding it. What a member holds is given out when its sums are right. */

#include <libdeflate.h>
#include <pthread.h>

#define HISTFS_BUCKETS 4096
#define HISTFS_NOWAIT_READS 64     /* system calls that may be made where nothing may take long, */
#define HISTFS_NOWAIT_MEMBERS 2    /* and members that may be inflated */
#define HISTFS_LARGE (128u << 10)      /* bytes of a read from which on the version is taken to be read in order; */
#define HISTFS_AHEAD (512u << 10)      /* of each file so much is read ahead then */
#define HISTFS_GZIP_HEADER 10      /* bytes; without any of the parts that a header may have */
#define HISTFS_GZIP_SUMS 8

typedef struct histfs_member {
    struct histfs_member *newer, *older;   /* by last use */
    struct histfs_member *next;            /* in the same bucket */
    uint64_t source, number;
    size_t size;
    char data[];
} histfs_member_t;

struct histfs_members {
    pthread_mutex_t lock;
    size_t capacity, size;                 /* bytes */
    uint64_t next_id;
    histfs_member_t *newest, *oldest, *buckets[HISTFS_BUCKETS];
};

/* The state of one call. */
typedef struct {
    histfs_version_t const *version;
    histfs_reading_t *reading;
    struct libdeflate_decompressor *inflater;
    int nowait, is_large;
    unsigned reads, inflated;
} histfs_call_t;

histfs_members_t *histfs_members_new(size_t capacity)
{
    histfs_members_t *self = calloc(1, sizeof *self);

    if (self && pthread_mutex_init(&self->lock, NULL)) {
        free(self);
        self = NULL;
    }
    if (self)
        self->capacity = capacity;
    return self;
}

static histfs_member_t **histfs_bucket(histfs_members_t *self, uint64_t source, uint64_t number)
{
    return &self->buckets[(source * UINT64_C(0x9E3779B97F4A7C15) + number) % HISTFS_BUCKETS];
}

static void histfs_members_unlink(histfs_members_t *self, histfs_member_t *member)
{
    *(member->newer ? &member->newer->older : &self->newest) = member->older;
    *(member->older ? &member->older->newer : &self->oldest) = member->newer;
}

static void histfs_members_link(histfs_members_t *self, histfs_member_t *member)
{
    member->newer = NULL;
    member->older = self->newest;
    *(self->newest ? &self->newest->newer : &self->oldest) = member;
    self->newest = member;
}

static void histfs_members_drop_oldest(histfs_members_t *self)
{
    histfs_member_t *member = self->oldest, **place = histfs_bucket(self, member->source, member->number);

    while (*place != member)
        place = &(*place)->next;
    *place = member->next;
    histfs_members_unlink(self, member);
    self->size -= member->size;
    free(member);
}

void histfs_members_clear(histfs_members_t *self)
{
    pthread_mutex_lock(&self->lock);
    while (self->oldest)
        histfs_members_drop_oldest(self);
    pthread_mutex_unlock(&self->lock);
}

void histfs_members_free(histfs_members_t *self)
{
    histfs_members_clear(self);
    pthread_mutex_destroy(&self->lock);
    free(self);
}

size_t histfs_members_size(histfs_members_t *self)
{
    size_t size;

    pthread_mutex_lock(&self->lock);
    size = self->size;
    pthread_mutex_unlock(&self->lock);
    return size;
}

/* The kept member, which is the newest now, or NULL. With the lock. */
static histfs_member_t *histfs_members_find(histfs_members_t *self, uint64_t source, uint64_t number)
{
    histfs_member_t *member = *histfs_bucket(self, source, number);

    while (member && (member->source != source || member->number != number))
        member = member->next;
    if (member && member != self->newest) {
        histfs_members_unlink(self, member);
        histfs_members_link(self, member);
    }
    return member;
}

/* Takes over a member that is complete. */
static void histfs_members_keep(histfs_members_t *self, histfs_member_t *member)
{
    histfs_member_t **place = histfs_bucket(self, member->source, member->number);

    pthread_mutex_lock(&self->lock);
    if (histfs_members_find(self, member->source, member->number)) {
        free(member);  /* another thread was faster */
    } else {
        member->next = *place;
        *place = member;
        histfs_members_link(self, member);
        self->size += member->size;
        while (self->size > self->capacity)
            histfs_members_drop_oldest(self);
    }
    pthread_mutex_unlock(&self->lock);
}

/* Gives the source a descriptor, which it then owns; 0 if it has one already. */
int histfs_source_lend(histfs_members_t *members, histfs_source_t *source, int fd)
{
    int is_taken;

    pthread_mutex_lock(&members->lock);
    is_taken = source->fd < 0;
    if (is_taken)
        source->fd = fd;
    if (source->member_count && !source->id)
        source->id = ++members->next_id;
    pthread_mutex_unlock(&members->lock);
    return is_taken;
}

/* Closes the descriptor unless somebody reads from it; whether there is none now. */
int histfs_source_close_idle(histfs_members_t *members, histfs_source_t *source)
{
    int fd = -1, is_closed;

    pthread_mutex_lock(&members->lock);
    if (!source->users) {
        fd = source->fd;
        source->fd = -1;
    }
    is_closed = source->fd < 0;
    pthread_mutex_unlock(&members->lock);
    if (fd >= 0)
        close(fd);
    return is_closed;
}

/* See that no source of a version is closed until it is released; 0, and nothing is held, if one is not open. */
int histfs_version_hold(histfs_version_t const *self)
{
    size_t count = 0;

    pthread_mutex_lock(&self->members->lock);
    while (count < self->source_count
           && (!self->sources[count] || self->sources[count]->memory || self->sources[count]->fd >= 0))
        count++;
    if (count == self->source_count)
        for (size_t number = 0; number < count; number++)
            if (self->sources[number])
                self->sources[number]->users++;
    pthread_mutex_unlock(&self->members->lock);
    return count == self->source_count;
}

void histfs_version_release(histfs_version_t const *self)
{
    pthread_mutex_lock(&self->members->lock);
    for (size_t number = 0; number < self->source_count; number++)
        if (self->sources[number])
            self->sources[number]->users--;
    pthread_mutex_unlock(&self->members->lock);
}

/* What of a file is to be read ahead, where somebody reads at `offset`: how much from `start` on. With the lock. The kernel
   would not do it: several threads read a file through one descriptor, in no order that it could see. */
static size_t histfs_ahead(histfs_source_t *source, uint64_t offset, size_t size, uint64_t *start)
{
    if (offset < source->ahead_from || offset > source->ahead_to)
        source->ahead_from = source->ahead_to = offset;
    if (offset + size + HISTFS_AHEAD / 2 <= source->ahead_to)
        return 0;
    *start = source->ahead_to;
    source->ahead_to += size + HISTFS_AHEAD;
    return size + HISTFS_AHEAD;
}

/* Reads `size` bytes of the file of a source. */
static int histfs_file_read(histfs_call_t *call, histfs_source_t *source, char *buffer, uint64_t offset, size_t size)
{
    pthread_mutex_t *lock = &call->version->members->lock;
    uint64_t ahead_from = 0;
    size_t ahead = 0;
    int fd, result = RS_DONE;

    if (call->nowait && ++call->reads > HISTFS_NOWAIT_READS)
        return HISTFS_WOULD_WAIT;
    pthread_mutex_lock(lock);
    fd = source->fd;
    source->users += fd >= 0;
    if (call->is_large && fd >= 0)
        ahead = histfs_ahead(source, offset, size, &ahead_from);
    pthread_mutex_unlock(lock);
    if (fd < 0)
        return HISTFS_NOT_OPEN;
    if (ahead)
        posix_fadvise(fd, (off_t)ahead_from, (off_t)ahead, POSIX_FADV_WILLNEED);
    while (size && result == RS_DONE) {
        struct iovec part = { buffer, size };
        ssize_t got = call->nowait ? preadv2(fd, &part, 1, (off_t)offset, RWF_NOWAIT)
            : pread(fd, buffer, size, (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (call->nowait && got != (ssize_t)size) {
            result = HISTFS_WOULD_WAIT;  /* or what the waiting call will report */
        } else if (got < 0) {
            call->reading->error = errno;
            result = RS_IO_ERROR;
        } else if (!got) {
            result = RS_INPUT_ENDED;
        } else {
            buffer += got;
            offset += (size_t)got;
            size -= (size_t)got;
        }
    }
    pthread_mutex_lock(lock);
    source->users--;
    pthread_mutex_unlock(lock);
    return result;
}

static int histfs_is_plain_header(unsigned char const *header)
{
    return header[0] == 0x1f && header[1] == 0x8b && header[2] == 8 && header[3] == 0;
}

static uint32_t histfs_little_endian(unsigned char const *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Inflates all of a member into `raw`. */
static int histfs_inflate(histfs_call_t *call, unsigned char const *packed, size_t packed_size, char *raw, size_t size)
{
    size_t body_size = packed_size - HISTFS_GZIP_HEADER - HISTFS_GZIP_SUMS, consumed;
    unsigned char const *sums = packed + packed_size - HISTFS_GZIP_SUMS;

    if (!histfs_is_plain_header(packed))
        return RS_CORRUPT;
    if (!call->inflater && !(call->inflater = libdeflate_alloc_decompressor()))
        return RS_MEM_ERROR;
    if (libdeflate_deflate_decompress_ex(call->inflater, packed + HISTFS_GZIP_HEADER, body_size, raw, size, &consumed,
                                         NULL) != LIBDEFLATE_SUCCESS || consumed != body_size)
        return RS_CORRUPT;
    if (histfs_little_endian(sums) != libdeflate_crc32(0, raw, size) || histfs_little_endian(sums + 4) != size)
        return RS_CORRUPT;
    return RS_DONE;
}

/* Makes a member of a source. */
static int histfs_member_load(histfs_call_t *call, histfs_source_t *source, size_t number, histfs_member_t **made)
{
    uint64_t packed_size = source->offsets[number + 1] - source->offsets[number];
    uint64_t size = source->raw_offsets[number + 1] - source->raw_offsets[number];
    histfs_member_t *member;
    unsigned char *packed;
    int result;

    if (call->nowait && ++call->inflated > HISTFS_NOWAIT_MEMBERS)
        return HISTFS_WOULD_WAIT;
    if (packed_size < HISTFS_GZIP_HEADER + HISTFS_GZIP_SUMS)
        return RS_CORRUPT;
    packed = malloc(packed_size);
    member = malloc(sizeof *member + size);
    if (!packed || !member) {
        result = RS_MEM_ERROR;
    } else {
        result = histfs_file_read(call, source, (char *)packed, source->offsets[number], packed_size);
        if (result == RS_DONE)
            result = histfs_inflate(call, packed, packed_size, member->data, size);
    }
    free(packed);
    if (result != RS_DONE) {
        free(member);
        return result;
    }
    member->source = source->id;
    member->number = number;
    member->size = size;
    *made = member;
    return RS_DONE;
}

/* The member that holds `offset`, which is below the size. */
static size_t histfs_source_find(histfs_source_t const *source, uint64_t offset)
{
    size_t low = 0, high = source->member_count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (source->raw_offsets[middle] <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int histfs_members_read(histfs_call_t *call, histfs_source_t *source, char *buffer, uint64_t offset, size_t size)
{
    histfs_members_t *members = call->version->members;

    for (size_t number = histfs_source_find(source, offset); size; number++) {
        uint64_t start = offset - source->raw_offsets[number], left = source->raw_offsets[number + 1] - offset;
        size_t length = left < size ? (size_t)left : size;
        histfs_member_t *member;
        int result;

        pthread_mutex_lock(&members->lock);
        member = source->id ? histfs_members_find(members, source->id, number) : NULL;
        if (member)
            memcpy(buffer, member->data + start, length);
        pthread_mutex_unlock(&members->lock);
        if (!member) {
            if ((result = histfs_member_load(call, source, number, &member)) != RS_DONE)
                return result;
            memcpy(buffer, member->data + start, length);
            histfs_members_keep(members, member);
        }
        buffer += length;
        offset += length;
        size -= length;
    }
    return RS_DONE;
}

static int histfs_source_read(histfs_call_t *call, histfs_source_t *source, char *buffer, uint64_t offset, size_t size)
{
    if (offset > source->size || size > source->size - offset)
        return RS_INPUT_ENDED;
    if (source->memory) {
        memcpy(buffer, source->memory + offset, size);
        return RS_DONE;
    }
    return source->member_count ? histfs_members_read(call, source, buffer, offset, size)
        : histfs_file_read(call, source, buffer, offset, size);
}

static int histfs_version_go_on(histfs_call_t *call, char *buffer, uint64_t offset, size_t size)
{
    histfs_version_t const *self = call->version;
    histfs_map_t const *map = self->map;
    histfs_reading_t *reading = call->reading;
    size_t index = 0;

    while (reading->done < size) {
        uint64_t at = offset + reading->done, left;
        histfs_extent_t const *extent = &map->extents[index = histfs_map_find(map, at, index)];
        uint64_t origin = histfs_advance(extent->origin, at - extent->target);
        size_t length;
        int result;

        left = extent[1].target - at;
        length = left < size - reading->done ? (size_t)left : size - reading->done;
        reading->source = origin >> HISTFS_OFFSET_BITS;
        if (reading->source >= self->source_count || !self->sources[reading->source])
            return RS_PARAM_ERROR;
        result = histfs_source_read(call, self->sources[reading->source], buffer + reading->done,
                                    origin & HISTFS_LARGEST, length);
        if (result != RS_DONE)
            return result;
        reading->done += length;
    }
    return RS_DONE;
}

/* Fills `buffer` with the version from `offset` on, beginning at `reading->done`. Where it cannot go on it says why:
   HISTFS_NOT_OPEN if the source in `reading` must be opened first; with `nowait` HISTFS_WOULD_WAIT if a disk might have
   to be waited for, or it takes long; RS_CORRUPT, RS_INPUT_ENDED, RS_IO_ERROR, RS_MEM_ERROR. */
int histfs_version_read(histfs_version_t const *self, char *buffer, uint64_t offset, size_t size, int nowait,
                        histfs_reading_t *reading)
{
    histfs_call_t call = { self, reading, NULL, nowait, size >= HISTFS_LARGE && !nowait, 0, 0 };
    int result;

    reading->error = 0;
    if (offset > self->map->size || size > self->map->size - offset || reading->done > size)
        return RS_PARAM_ERROR;
    result = histfs_version_go_on(&call, buffer, offset, size);
    libdeflate_free_decompressor(call.inflater);
    return result;
}
