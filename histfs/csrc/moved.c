/* Which records of a ledger may be of a file that was found elsewhere: those with its inode number, or with its size
   and time. It says only where to look: eight bytes for each way to find a record, a part of a hash and the number of
   the record, in a table that is probed one place after the other. */

enum { HISTFS_MOST_ALIKE = 4 }; /* records that are found in one way */

struct histfs_place {
    uint32_t hash; /* 0: nothing is here */
    uint32_t number;
};

struct histfs_moved {
    int64_t smallest;
    size_t capacity, used; /* the first is a power of two */
    struct histfs_place *places;
};

static uint32_t histfs_hash(uint64_t one, uint64_t other)
{
    uint64_t mixed = (one + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (other + 1) * UINT64_C(0xc2b2ae3d27d4eb4f);

    mixed ^= mixed >> 32;
    mixed *= UINT64_C(0xd6e8feb86659fd93);
    mixed ^= mixed >> 32;
    return (uint32_t)mixed ? (uint32_t)mixed : 1;
}

static uint32_t histfs_hash_of_inode(uint64_t inode)
{
    return histfs_hash(inode, UINT64_MAX);
}

static uint32_t histfs_hash_of_size(int64_t size, int64_t mtime_ns)
{
    return histfs_hash((uint64_t)mtime_ns, (uint64_t)size);
}

/* Files of at least `smallest` bytes will be found. NULL without memory. */
static histfs_moved *histfs_moved_new(int64_t smallest)
{
    histfs_moved *moved = calloc(1, sizeof *moved);

    if (moved) {
        moved->smallest = smallest;
        moved->capacity = 1024;
        moved->places = calloc(moved->capacity, sizeof *moved->places);
        if (!moved->places) {
            free(moved);
            return NULL;
        }
    }
    return moved;
}

static void histfs_moved_free(histfs_moved *moved)
{
    free(moved->places);
    free(moved);
}

/* Where so many are alike already that none is looked for beyond them, the number is left out. */
static void histfs_put(histfs_moved *moved, uint32_t hash, uint32_t number)
{
    size_t place = hash & (moved->capacity - 1), alike = 0;

    while (moved->places[place].hash) {
        alike += moved->places[place].hash == hash;
        if (alike == HISTFS_MOST_ALIKE)
            return;
        place = (place + 1) & (moved->capacity - 1);
    }
    moved->places[place].hash = hash;
    moved->places[place].number = number;
    moved->used++;
}

static int histfs_grow(histfs_moved *moved)
{
    histfs_moved larger = *moved;

    larger.capacity *= 2;
    larger.used = 0;
    larger.places = calloc(larger.capacity, sizeof *larger.places);
    if (!larger.places)
        return ENOMEM;
    for (size_t place = 0; place < moved->capacity; place++)
        if (moved->places[place].hash)
            histfs_put(&larger, moved->places[place].hash, moved->places[place].number);
    free(moved->places);
    *moved = larger;
    return 0;
}

/* Take in the records from `first_number` on; `text_bytes`: of theirs in the list, together. 0, or an error number. */
static int histfs_moved_add(
    histfs_moved *moved, const struct histfs_seen *seen, size_t count, uint32_t first_number, uint64_t *text_bytes)
{
    *text_bytes = 0;
    for (size_t record = 0; record < count; record++, seen++) {
        *text_bytes += seen->record_bytes;
        if (!(seen->flags & HISTFS_VALID) || !S_ISREG(seen->mode) || seen->nlink != 1 || seen->size < moved->smallest)
            continue;
        if ((moved->used + 2) * 4 > moved->capacity * 3 && histfs_grow(moved))
            return ENOMEM;
        histfs_put(moved, histfs_hash_of_inode(seen->inode), first_number + (uint32_t)record);
        histfs_put(moved, histfs_hash_of_size(seen->size, seen->mtime_ns), first_number + (uint32_t)record);
    }
    return 0;
}

static size_t histfs_look_up(const histfs_moved *moved, uint32_t hash, uint32_t *numbers, size_t count)
{
    size_t found = 0;

    for (size_t place = hash & (moved->capacity - 1); found < count && moved->places[place].hash;
         place = (place + 1) & (moved->capacity - 1))
        if (moved->places[place].hash == hash)
            numbers[found++] = moved->places[place].number;
    return found;
}

/* The numbers of records that may be of such a file, `count` at most; those with its inode come first. */
static size_t histfs_moved_find(
    const histfs_moved *moved, uint64_t inode, int64_t size, int64_t mtime_ns, uint32_t *numbers, size_t count)
{
    size_t found = histfs_look_up(moved, histfs_hash_of_inode(inode), numbers, count);

    return found + histfs_look_up(moved, histfs_hash_of_size(size, mtime_ns), numbers + found, count - found);
}
