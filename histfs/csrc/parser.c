/* The delta format (docs/format.md 6.6), parsed as it comes: whatever the chunks are, the result is the same. Accepts
   and refuses what librsync's patch job does; that a copy leaves the basis shows when maps are composed or read. */

static unsigned char const histfs_magic[4] = { 0x72, 0x73, 0x02, 0x36 };

/* Bytes of the command that begins with `op`. */
static unsigned histfs_command_size(unsigned op)
{
    if (op > 0x40 && op <= 0x44)
        return 1 + (1u << (op - 0x41));
    if (op >= 0x45 && op <= 0x54)
        return 1 + (1u << ((op - 0x45) >> 2)) + (1u << ((op - 0x45) & 3));
    return 1;
}

static uint64_t histfs_number(unsigned char const *from, unsigned size)
{
    uint64_t number = 0;

    while (size--)
        number = number << 8 | *from++;
    return number;
}

static int histfs_parser_copy(histfs_parser_t *self)
{
    unsigned op = self->header[0], start_size = 1u << ((op - 0x45) >> 2), length_size = 1u << ((op - 0x45) & 3);
    uint64_t start = histfs_number(self->header + 1, start_size);
    uint64_t length = histfs_number(self->header + 1 + start_size, length_size);

    if (start > INT64_MAX || length > INT64_MAX || !length)
        return RS_CORRUPT;
    if (start > HISTFS_LARGEST || length > HISTFS_LARGEST - start)
        return RS_INPUT_ENDED;     /* no basis is so long */
    return self->task == HISTFS_FILTER ? RS_DONE : histfs_map_add(&self->map, start, length);
}

static int histfs_parser_literal(histfs_parser_t *self)
{
    unsigned op = self->header[0];
    uint64_t length = op <= 0x40 ? op : histfs_number(self->header + 1, 1u << (op - 0x41));
    int result;

    if (length > INT64_MAX || !length)
        return RS_CORRUPT;
    if (self->task != HISTFS_COMMANDS) {
        self->literal_left = length;
        return RS_DONE;
    }
    if (self->literals_at > HISTFS_LARGEST || length > HISTFS_LARGEST - self->literals_at)
        return RS_CORRUPT;
    result = histfs_map_add(&self->map, self->source | self->literals_at, length);
    self->literals_at += length;
    return result;
}

/* `header` is complete. */
static int histfs_parser_execute(histfs_parser_t *self)
{
    unsigned op = self->header[0];

    self->filled = 0;
    if (!self->began) {
        self->began = 1;
        return memcmp(self->header, histfs_magic, sizeof histfs_magic) ? RS_BAD_MAGIC : RS_DONE;
    }
    if (op > 0x54)
        return RS_CORRUPT;
    if (op >= 0x45)
        return histfs_parser_copy(self);
    if (op)
        return histfs_parser_literal(self);
    self->ended = 1;
    return RS_DONE;
}

/* Whether the target at the map's end is wanted; `*length` is cut to the part of which that is true. */
static int histfs_parser_wants(histfs_parser_t *self, uint64_t *length)
{
    uint64_t at = self->map.size, boundary;
    int wants;

    if (self->keeps_all)
        return 1;
    while (self->wanted_next < self->wanted_count && self->wanted[self->wanted_next].end <= at)
        self->wanted_next++;
    if (self->wanted_next == self->wanted_count)
        return 0;
    wants = self->wanted[self->wanted_next].start <= at;
    boundary = wants ? self->wanted[self->wanted_next].end : self->wanted[self->wanted_next].start;
    if (boundary - at < *length)
        *length = boundary - at;
    return wants;
}

/* `size` bytes of a literal have come. */
static int histfs_parser_keep(histfs_parser_t *self, char const *in, uint64_t size, char *out)
{
    while (size) {
        uint64_t length = size;
        int wants = histfs_parser_wants(self, &length), result;

        if (wants && length > HISTFS_LARGEST - self->literals_at)
            return RS_CORRUPT;
        result = histfs_map_add(&self->map, wants ? self->source | self->literals_at : HISTFS_HOLE_ORIGIN, length);
        if (result != RS_DONE)
            return result;
        if (wants) {
            memcpy(out + self->produced, in, length);
            self->produced += length;
            self->literals_at += length;
        }
        in += length;
        size -= length;
    }
    return RS_DONE;
}

/* One command, or a part of it, or of its literal, from the beginning of `in`; `*used` bytes are taken. */
static int histfs_parser_step(histfs_parser_t *self, char const *in, size_t size, char *out, size_t *used)
{
    unsigned needed = !self->began ? (unsigned)sizeof histfs_magic : self->filled ? histfs_command_size(self->header[0]) : 1;

    if (self->literal_left) {
        *used = self->literal_left < size ? (size_t)self->literal_left : size;
        self->literal_left -= *used;
        return self->task == HISTFS_FILTER ? RS_DONE : histfs_parser_keep(self, in, *used, out);
    }
    *used = needed - self->filled < size ? needed - self->filled : size;
    memcpy(self->header + self->filled, in, *used);
    self->filled += (unsigned)*used;
    if (self->task == HISTFS_FILTER) {
        memcpy(out + self->produced, in, *used);
        self->produced += *used;
    }
    if (self->task == HISTFS_COMMANDS)
        self->literals_at += *used;
    if (self->filled < needed || (self->began && self->filled < histfs_command_size(self->header[0])))
        return RS_DONE;
    return histfs_parser_execute(self);
}

/* `out` has room for `size` bytes. What follows the end of the delta is ignored. */
int histfs_parser_feed(histfs_parser_t *self, char const *in, size_t size, char *out)
{
    self->produced = 0;
    while (size && !self->ended && self->result == RS_DONE) {
        size_t used = 0;

        self->result = histfs_parser_step(self, in, size, out, &used);
        in += used;
        size -= used;
    }
    return self->result;
}

/* Takes `size` bytes of a literal as read; only for a filter, which does not look at them. */
int histfs_parser_skip(histfs_parser_t *self, uint64_t size)
{
    if (size > self->literal_left || self->task != HISTFS_FILTER)
        return RS_PARAM_ERROR;
    self->literal_left -= size;
    return self->result;
}

/* Checks that the delta was complete, and moves the map to `map` (NULL: there is none). */
int histfs_parser_finish(histfs_parser_t *self, histfs_map_t *map)
{
    if (self->result == RS_DONE && !self->ended)
        self->result = RS_INPUT_ENDED;
    if (self->result == RS_DONE && map)
        self->result = histfs_map_seal(&self->map);
    if (self->result == RS_DONE && map) {
        *map = self->map;
        memset(&self->map, 0, sizeof self->map);
        self->result = RS_PARAM_ERROR;  /* finished once */
        return RS_DONE;
    }
    return self->result;
}

static int histfs_compare_ranges(void const *one, void const *other)
{
    uint64_t a = ((histfs_range_t const *)one)->start, b = ((histfs_range_t const *)other)->start;

    return a < b ? -1 : a > b;
}

/* From now on keep only those literals that `older`, whose basis is the target of this delta, refers to. */
int histfs_parser_want(histfs_parser_t *self, histfs_map_t const *older)
{
    histfs_range_t *ranges = malloc((older->count + 1) * sizeof *ranges);
    size_t count = 0, merged = 0;
    int is_sorted = 1;

    if (!ranges)
        return RS_MEM_ERROR;
    for (size_t i = 0; i < older->count; i++) {
        histfs_extent_t const *extent = &older->extents[i];

        if (extent->origin > HISTFS_LARGEST)
            continue;
        ranges[count].start = extent->origin;
        ranges[count].end = extent->origin + (extent[1].target - extent->target);
        is_sorted = is_sorted && (!count || ranges[count - 1].start <= ranges[count].start);
        count++;
    }
    if (!is_sorted)
        qsort(ranges, count, sizeof *ranges, histfs_compare_ranges);
    for (size_t i = 0; i < count; i++) {
        if (merged && ranges[i].start <= ranges[merged - 1].end) {
            if (ranges[i].end > ranges[merged - 1].end)
                ranges[merged - 1].end = ranges[i].end;
        } else {
            ranges[merged++] = ranges[i];
        }
    }
    free(self->wanted);
    self->wanted = ranges;
    self->wanted_count = merged;
    self->keeps_all = 0;
    return RS_DONE;
}

void histfs_parser_close(histfs_parser_t *self)
{
    histfs_map_close(&self->map);
    free(self->wanted);
    self->wanted = NULL;
    self->wanted_count = 0;
    if (self->result == RS_DONE)
        self->result = RS_PARAM_ERROR;
}
