/* Small versions: the files of which they are made are read as a whole, and so is what comes in between.

   Rules: nothing is trusted, as the SHA1 says in the end whether a version is what it should be; so no lock is needed, and
   what is not made here, for whatever reason, is opened in the usual way, which says what is wrong. What is no regular file
   is not opened, as opening a fifo or a device has effects of its own; its descriptor is looked at again, as the name may
   have got another file in between. The disk is asked for many files at once: it then needs a third of the time. */

#define HISTFS_SMALL_OPEN 64           /* files that are open, and on their way from the disk, at the same time */
#define HISTFS_SMALL_BYTES (1u << 20)  /* of a file, of what is inflated from it, and of any version on the way */
#define HISTFS_SMALL_EXTENTS (1u << 16)
#define HISTFS_IN_MIRROR 'm'           /* before each name: where it lies, */
#define HISTFS_COMPRESSED 'z'          /* or that it is a compressed increment; any other is an increment as it is */

typedef struct {
    char *data;
    size_t size, room;
} histfs_buffer_t;

typedef struct {
    struct libdeflate_decompressor *inflater;
    histfs_buffer_t packed, version, delta, literals, made;
    int64_t mtime_ns;  /* of the file that was read last */
} histfs_workshop_t;

static int histfs_buffer_grow(histfs_buffer_t *buffer, size_t room)
{
    char *data;

    if (room <= buffer->room)
        return 1;
    if (room > HISTFS_SMALL_BYTES || !(data = realloc(buffer->data, room)))
        return 0;
    buffer->data = data;
    buffer->room = room;
    return 1;
}

static int histfs_small_open(int directory, char const *name)
{
    struct stat status;

    if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) || !S_ISREG(status.st_mode))
        return -1;
    return openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static int histfs_small_read(histfs_workshop_t *shop, int fd, histfs_buffer_t *into)
{
    struct stat status;
    ssize_t got;

    into->size = 0;
    if (fd < 0 || fstat(fd, &status) || !S_ISREG(status.st_mode) || status.st_size > HISTFS_SMALL_BYTES
        || !histfs_buffer_grow(into, (size_t)status.st_size) || !histfs_has_ns(status.st_mtim, &shop->mtime_ns))
        return 0;
    while (into->size < (size_t)status.st_size
           && (got = pread(fd, into->data + into->size, (size_t)status.st_size - into->size, (off_t)into->size)) > 0)
        into->size += (size_t)got;
    return into->size == (size_t)status.st_size;
}

/* Inflates all members of what is packed. */
static int histfs_small_inflate(histfs_workshop_t *shop, histfs_buffer_t *into)
{
    histfs_buffer_t *packed = &shop->packed;
    size_t used, got, begin = 0, room = packed->size < HISTFS_SMALL_BYTES / 4 ? packed->size * 4 : HISTFS_SMALL_BYTES;

    if (!shop->inflater && !(shop->inflater = libdeflate_alloc_decompressor()))
        return 0;
    if (!packed->size || !histfs_buffer_grow(into, room))
        return 0;
    for (into->size = 0; begin < packed->size;) {
        enum libdeflate_result result = libdeflate_gzip_decompress_ex(
            shop->inflater, packed->data + begin, packed->size - begin, into->data + into->size,
            into->room - into->size, &used, &got);

        if (result == LIBDEFLATE_INSUFFICIENT_SPACE && into->room < HISTFS_SMALL_BYTES
            && histfs_buffer_grow(into, into->room < HISTFS_SMALL_BYTES / 2 ? into->room * 2 : HISTFS_SMALL_BYTES))
            continue;
        if (result != LIBDEFLATE_SUCCESS)
            return 0;
        begin += used;
        into->size += got;
    }
    return 1;
}

static int histfs_small_load(histfs_workshop_t *shop, int fd, char kind, histfs_buffer_t *into)
{
    if (kind != HISTFS_COMPRESSED)
        return histfs_small_read(shop, fd, into);
    return histfs_small_read(shop, fd, &shop->packed) && histfs_small_inflate(shop, into);
}

/* Makes the target of a map from the version before and the literals. */
static int histfs_small_fill(histfs_workshop_t *shop, histfs_map_t const *map)
{
    if (map->size > HISTFS_SMALL_BYTES || !histfs_buffer_grow(&shop->made, (size_t)map->size))
        return 0;
    for (size_t i = 0; i < map->count; i++) {
        histfs_extent_t const *extent = &map->extents[i];
        uint64_t length = extent[1].target - extent->target, from = extent->origin & HISTFS_LARGEST;
        histfs_buffer_t const *source = extent->origin > HISTFS_LARGEST ? &shop->literals : &shop->version;

        if (from > source->size || length > source->size - from)
            return 0;
        memcpy(shop->made.data + extent->target, source->data + from, (size_t)length);
    }
    shop->made.size = (size_t)map->size;
    return 1;
}

/* The version that the delta makes of the one before takes its place. */
static int histfs_small_patch(histfs_workshop_t *shop)
{
    histfs_parser_t parser = { .task = HISTFS_LITERALS, .keeps_all = 1, .source = HISTFS_LARGEST + 1 };
    histfs_map_t map = { 0 };
    histfs_buffer_t before;
    int is_made;

    parser.map.limit = HISTFS_SMALL_EXTENTS;
    if (!histfs_buffer_grow(&shop->literals, shop->delta.size))
        return 0;
    is_made = histfs_parser_feed(&parser, shop->delta.data, shop->delta.size, shop->literals.data) == RS_DONE;
    shop->literals.size = parser.produced;
    is_made = is_made && histfs_parser_finish(&parser, &map) == RS_DONE && histfs_small_fill(shop, &map);
    histfs_map_close(&map);
    histfs_parser_close(&parser);
    before = shop->version;
    shop->version = shop->made;
    shop->made = before;
    return is_made;
}

/* `kinds` and `fds` are those of its links. */
static int histfs_small_make_one(
    histfs_workshop_t *shop, histfs_small_t *version, int const *fds, char const *kinds, char *data)
{
    struct histfs_sha1 sha1;
    unsigned char digest[20];

    if (!histfs_small_load(shop, fds[0], kinds[0], &shop->version))
        return 0;
    for (uint32_t link = 1; link < version->links; link++)
        if (!histfs_small_load(shop, fds[link], kinds[link], &shop->delta) || !histfs_small_patch(shop))
            return 0;
    if (shop->version.size != version->size)
        return 0;
    histfs_sha1_begin(&sha1);
    histfs_sha1_add(&sha1, (unsigned char const *)shop->version.data, shop->version.size);
    histfs_sha1_end(&sha1, digest);
    if (memcmp(digest, version->sha1, sizeof digest))
        return 0;
    if (version->size)
        memcpy(data, shop->version.data, (size_t)version->size);
    version->mtime_ns = shop->mtime_ns;
    return 1;
}

/* `names` end with a NUL each; each version has its size of places in `data`, one behind the other. -1 where one has no
   link, or more than can be open at once. */
int histfs_small_make(
    int mirror, int increments, histfs_small_t *versions, size_t count, char const *names, char *data)
{
    histfs_workshop_t shop = { 0 };
    histfs_small_t *const end = versions + count;
    int fds[HISTFS_SMALL_OPEN], result = 0;
    char kinds[HISTFS_SMALL_OPEN];

    while (versions < end && !result) {
        histfs_small_t *const first = versions;
        unsigned opened = 0, used = 0;

        for (; versions < end && versions->links <= HISTFS_SMALL_OPEN - opened; versions++) {
            if (!versions->links)
                break;
            for (uint32_t link = 0; link < versions->links; link++, opened++) {
                kinds[opened] = *names++;
                fds[opened] = histfs_small_open(kinds[opened] == HISTFS_IN_MIRROR ? mirror : increments, names);
                names += strlen(names) + 1;
            }
        }
        if (versions == first)
            result = -1;
        if (opened > 1)
            for (unsigned file = 0; file < opened; file++)
                if (fds[file] >= 0)
                    posix_fadvise(fds[file], 0, 0, POSIX_FADV_WILLNEED);
        for (histfs_small_t *version = first; version < versions; version++) {
            version->is_made = (uint32_t)histfs_small_make_one(&shop, version, fds + used, kinds + used, data);
            used += version->links;
            data += version->size;
        }
        for (unsigned file = 0; file < opened; file++)
            if (fds[file] >= 0)
                close(fds[file]);
    }
    if (shop.inflater)
        libdeflate_free_decompressor(shop.inflater);
    free(shop.packed.data);
    free(shop.version.data);
    free(shop.delta.data);
    free(shop.literals.data);
    free(shop.made.data);
    return result;
}
