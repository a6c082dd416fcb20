/* Answers that were made before they were asked for. Whatever is in a place makes room for what is to go there. */
#define HISTFS_PLACES 4096
#define HISTFS_KEPT_BYTES (8u << 20)

static pthread_mutex_t histfs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct histfs_content { uint64_t inode; char *data; size_t size; } histfs_contents[HISTFS_PLACES];
static struct histfs_content histfs_claimed;  /* by the session's thread */
static size_t histfs_kept_bytes, histfs_hand;

static size_t histfs_place(uint64_t inode)
{
    return (inode * UINT64_C(0x9E3779B97F4A7C15)) >> 52;  /* the upper 12 bits: 4096 places */
}

static void histfs_drop_content(size_t place)
{
    histfs_kept_bytes -= histfs_contents[place].size;
    free(histfs_contents[place].data);
    memset(&histfs_contents[place], 0, sizeof histfs_contents[place]);
}

static void histfs_drop_all(void)
{
    pthread_mutex_lock(&histfs_lock);
    for (size_t place = 0; place < HISTFS_PLACES; place++)
        histfs_drop_content(place);
    free(histfs_claimed.data);
    memset(&histfs_claimed, 0, sizeof histfs_claimed);
    pthread_mutex_unlock(&histfs_lock);
}

/* Whether it is kept. From any thread. */
static int histfs_fuse_keep_content(uint64_t inode, const char *data, size_t size)
{
    size_t place = histfs_place(inode);
    char *copy;

    if (!histfs_is_by_inode || size > HISTFS_KEPT_BYTES || !(copy = malloc(size ? size : 1)))
        return 0;
    memcpy(copy, data, size);
    pthread_mutex_lock(&histfs_lock);
    histfs_drop_content(place);
    while (histfs_kept_bytes + size > HISTFS_KEPT_BYTES)
        histfs_drop_content(histfs_hand++ % HISTFS_PLACES);
    histfs_contents[place].inode = inode;
    histfs_contents[place].data = copy;
    histfs_contents[place].size = size;
    histfs_kept_bytes += size;
    pthread_mutex_unlock(&histfs_lock);
    return 1;
}

/* Take a content out of its place, to be read by the session's thread alone; whether there is one. */
static int histfs_claim(uint64_t inode)
{
    size_t place = histfs_place(inode);

    if (histfs_claimed.data && histfs_claimed.inode == inode)
        return 1;
    pthread_mutex_lock(&histfs_lock);
    if (!histfs_contents[place].data || histfs_contents[place].inode != inode) {
        pthread_mutex_unlock(&histfs_lock);
        return 0;
    }
    free(histfs_claimed.data);
    histfs_claimed = histfs_contents[place];
    histfs_contents[place].data = NULL;
    histfs_drop_content(place);
    pthread_mutex_unlock(&histfs_lock);
    return 1;
}

static void histfs_read_claimed(fuse_req_t req, size_t size, off_t offset)
{
    size_t left = 0 <= offset && (size_t)offset < histfs_claimed.size ? histfs_claimed.size - offset : 0;

    histfs_reply_buf(req, left ? histfs_claimed.data + offset : NULL, left < size ? left : size);
}

/* Whole listings of directories, as the kernel takes them: struct fuse_direntplus of linux/fuse.h, one after the other.
   All of it is for the session's thread alone. */
#define HISTFS_LISTINGS 1024
#define HISTFS_LISTINGS_BYTES (4u << 20)
#define HISTFS_ENTRY_BYTES 128  /* struct fuse_entry_out; what follows is */
struct histfs_name {            /* struct fuse_dirent, its name, and zeros up to a multiple of 8 bytes */
    uint64_t inode, offset;
    uint32_t length, type;
};

static struct histfs_listing {
    uint64_t inode;
    char *data;
    size_t size;
    uint64_t next_offset;       /* where the last reply ended: an offset of the directory, */
    size_t next;                /* and its place in `data` */
} histfs_listings[HISTFS_LISTINGS];
static size_t histfs_listings_bytes, histfs_listings_hand;
static size_t histfs_listing_room = SIZE_MAX;  /* of a reply: the least that was ever asked for */
static struct { uint64_t inode, offset; } histfs_promised;  /* to be the next reply */

static struct histfs_listing *histfs_listing_place(uint64_t inode)
{
    return &histfs_listings[histfs_place(inode) % HISTFS_LISTINGS];
}

static void histfs_drop_listing(struct histfs_listing *listing)
{
    histfs_listings_bytes -= listing->size;
    free(listing->data);
    memset(listing, 0, sizeof *listing);
}

static void histfs_drop_listings(void)
{
    for (size_t place = 0; place < HISTFS_LISTINGS; place++)
        histfs_drop_listing(&histfs_listings[place]);
    histfs_promised.inode = 0;
}

static int histfs_fuse_keep_listing(uint64_t inode, const char *data, size_t size)
{
    struct histfs_listing *listing = histfs_listing_place(inode);
    char *copy;

    if (!histfs_is_by_inode || size > HISTFS_LISTINGS_BYTES || !(copy = malloc(size ? size : 1)))
        return 0;
    memcpy(copy, data, size);
    histfs_drop_listing(listing);
    while (histfs_listings_bytes + size > HISTFS_LISTINGS_BYTES)
        histfs_drop_listing(&histfs_listings[histfs_listings_hand++ % HISTFS_LISTINGS]);
    listing->inode = inode;
    listing->data = copy;
    listing->size = size;
    histfs_listings_bytes += size;
    return 1;
}

/* How long the record at `place` is; 0 if there is none. */
static size_t histfs_record_bytes(struct histfs_listing const *listing, size_t place, uint64_t *offset)
{
    struct histfs_name name;
    size_t size;

    if (listing->size - place < HISTFS_ENTRY_BYTES + sizeof name)
        return 0;
    memcpy(&name, listing->data + place + HISTFS_ENTRY_BYTES, sizeof name);
    size = HISTFS_ENTRY_BYTES + ((sizeof name + name.length + 7) & ~(size_t)7);
    *offset = name.offset;
    return size <= listing->size - place ? size : 0;
}

/* Find where the names behind `offset` begin; whether that is known. */
static int histfs_seek_listing(struct histfs_listing *listing, uint64_t offset)
{
    if (offset && offset != listing->next_offset) {
        size_t place = 0, size;
        uint64_t found = 0;

        while (found != offset && (size = histfs_record_bytes(listing, place, &found)))
            place += size;
        if (found != offset)
            return 0;
        listing->next = place;
        listing->next_offset = offset;
    } else if (!offset) {
        listing->next = 0;
        listing->next_offset = 0;
    }
    return 1;
}

static int histfs_has_listing(uint64_t inode, uint64_t offset)
{
    struct histfs_listing *listing = histfs_listing_place(inode);

    return inode && listing->inode == inode && histfs_seek_listing(listing, offset);
}

/* Reply with what comes next in a listing, as much as there is room for. */
static int histfs_reply_from_listing(fuse_req_t req, uint64_t inode, size_t room)
{
    struct histfs_listing *listing = histfs_listing_place(inode);
    size_t start = listing->next, size;
    uint64_t offset;

    while ((size = histfs_record_bytes(listing, listing->next, &offset)) && size <= room - (listing->next - start)) {
        listing->next += size;
        listing->next_offset = offset;
    }
    return histfs_reply_buf(req, listing->data + start, listing->next - start);
}

/* Promise that the next reply, which is to be an empty one, is to be what is kept of a directory; whether it is. */
static int histfs_fuse_reply_listing(uint64_t inode, uint64_t offset)
{
    if (!histfs_has_listing(inode, offset))
        return 0;
    histfs_promised.inode = inode;
    histfs_promised.offset = offset;
    return 1;
}
