/* Extent maps: building, composing and looking up (see _rsync_maps.py for what they are).

   Rules: no number of a delta is added to another before it is known to fit; offsets and sizes stay below 2^48, so that
   they fit into an origin, and an extent's end never looks like the beginning of the next source; no recursion; a closed
   map is an empty one. */

#define HISTFS_OFFSET_BITS 48
#define HISTFS_LARGEST (((uint64_t)1 << HISTFS_OFFSET_BITS) - 1)
#define HISTFS_HOLE_ORIGIN ((uint64_t)HISTFS_HOLE << HISTFS_OFFSET_BITS)

void histfs_map_close(histfs_map_t *self)
{
    free(self->extents);
    self->extents = NULL;
    self->size = 0;
    self->count = self->room = 0;
}

/* `origin`, `by` bytes further on. */
static uint64_t histfs_advance(uint64_t origin, uint64_t by)
{
    return origin == HISTFS_HOLE_ORIGIN ? origin : origin + by;
}

/* Room for one more extent and the one at the end. */
static int histfs_map_grow(histfs_map_t *self)
{
    size_t room = self->room ? 2 * self->room : 16;
    histfs_extent_t *extents;

    if (self->count >= self->limit)
        return HISTFS_TOO_MANY_EXTENTS;
    if (self->count + 2 <= self->room)
        return RS_DONE;
    if (room > SIZE_MAX / sizeof *extents || !(extents = realloc(self->extents, room * sizeof *extents)))
        return RS_MEM_ERROR;
    self->extents = extents;
    self->room = room;
    return RS_DONE;
}

/* Appends `length` bytes that lie at `origin`; the caller has checked that these do not leave their source. */
static int histfs_map_add(histfs_map_t *self, uint64_t origin, uint64_t length)
{
    histfs_extent_t *last = self->count ? &self->extents[self->count - 1] : NULL;
    int result;

    if (length > HISTFS_LARGEST - self->size)
        return RS_CORRUPT;
    if (!last || histfs_advance(last->origin, self->size - last->target) != origin) {
        if ((result = histfs_map_grow(self)) != RS_DONE)
            return result;
        self->extents[self->count].target = self->size;
        self->extents[self->count++].origin = origin;
    }
    self->size += length;
    return RS_DONE;
}

/* Marks the end, and gives back what is not needed. */
static int histfs_map_seal(histfs_map_t *self)
{
    histfs_extent_t *extents = realloc(self->extents, (self->count + 1) * sizeof *extents);

    if (!extents)
        return RS_MEM_ERROR;
    self->extents = extents;
    self->room = self->count + 1;
    extents[self->count].target = self->size;
    extents[self->count].origin = HISTFS_HOLE_ORIGIN;
    return RS_DONE;
}

/* The extent that holds `target`, which is below the size. `hint`: where the last search ended; what is sought mostly
   lies shortly behind it. */
static size_t histfs_map_find(histfs_map_t const *self, uint64_t target, size_t hint)
{
    size_t low = 0, high = self->count;

    if (hint < high && self->extents[hint].target <= target) {
        size_t step = 1;

        for (low = hint; step < high - low && self->extents[low + step].target <= target; step *= 2)
            low += step;
        if (step < high - low)
            high = low + step;
    }
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (self->extents[middle].target <= target)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int histfs_map_compose(histfs_map_t *self, histfs_map_t const *older, histfs_map_t const *newer)
{
    size_t hint = 0;
    int result = RS_DONE;

    for (size_t i = 0; i < older->count && result == RS_DONE; i++) {
        histfs_extent_t const *extent = &older->extents[i];
        uint64_t at = extent->origin, left = extent[1].target - extent->target;

        if (extent->origin > HISTFS_LARGEST) {
            result = histfs_map_add(self, extent->origin, left);
            continue;
        }
        if (at > newer->size || left > newer->size - at)
            return RS_INPUT_ENDED;
        for (hint = histfs_map_find(newer, at, hint); left && result == RS_DONE; hint++) {
            histfs_extent_t const *inner = &newer->extents[hint];
            uint64_t length = inner[1].target - at < left ? inner[1].target - at : left;

            result = histfs_map_add(self, histfs_advance(inner->origin, at - inner->target), length);
            at += length;
            left -= length;
        }
        hint--;
    }
    return result == RS_DONE ? histfs_map_seal(self) : result;
}

/* Marks in `used`, which has a byte for each, the sources that are referred to; how long the basis must be, and how many
   of the first sources there are at most, holes aside. */
void histfs_map_survey(histfs_map_t const *self, unsigned char *used, uint64_t *basis_size, uint64_t *source_count)
{
    *basis_size = *source_count = 0;
    for (size_t i = 0; i < self->count; i++) {
        histfs_extent_t const *extent = &self->extents[i];
        uint64_t end = extent->origin + (extent[1].target - extent->target);

        uint64_t source = extent->origin >> HISTFS_OFFSET_BITS;

        used[source] = 1;
        if (source >= *source_count && source != HISTFS_HOLE)
            *source_count = source + 1;
        if (extent->origin <= HISTFS_LARGEST && end > *basis_size)
            *basis_size = end;
    }
}

/* Notes in `lookup` where the target from `offset` on lies, from `lookup->done` up to `size`; returns early when that is
   full. */
int histfs_map_look_up(histfs_map_t const *self, histfs_lookup_t *lookup, uint64_t offset, size_t size)
{
    size_t hint = 0;

    lookup->count = 0;
    if (offset > self->size || size > self->size - offset || lookup->done > size)
        return RS_PARAM_ERROR;
    while (lookup->done < size && lookup->count < HISTFS_PIECES) {
        uint64_t at = offset + lookup->done, *piece = &lookup->pieces[4 * lookup->count++];
        histfs_extent_t const *extent = &self->extents[hint = histfs_map_find(self, at, hint)];
        uint64_t origin = histfs_advance(extent->origin, at - extent->target), left = extent[1].target - at;

        piece[0] = lookup->done;
        piece[1] = origin >> HISTFS_OFFSET_BITS;
        piece[2] = origin & HISTFS_LARGEST;
        piece[3] = left < size - lookup->done ? left : size - lookup->done;
        lookup->done += (size_t)piece[3];
    }
    return RS_DONE;
}
