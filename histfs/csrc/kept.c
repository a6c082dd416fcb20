/* Answers that were made before they were asked for. Each may be in one of a few places; where none of them is free, what
   is in the first makes room. */
#define HISTFS_PLACES 4096
#define HISTFS_WAYS 4
#define HISTFS_KEPT_BYTES (8u << 20)

static pthread_mutex_t histfs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct histfs_content { uint64_t inode; char *data; size_t size; } histfs_contents[HISTFS_PLACES];
static struct histfs_content histfs_claimed;  /* by the session's thread */
static size_t histfs_kept_bytes, histfs_hand;

/* One of the places for `inode` in a table of places of `width` bytes, each of which begins with its inode, or with 0. */
static void *histfs_place(void *table, size_t width, uint64_t inode, size_t way)
{
    size_t first = (inode * UINT64_C(0x9E3779B97F4A7C15)) >> 52;  /* 12 bits: 4096 places */

    return (char *)table + (first + way) % HISTFS_PLACES * width;
}

/* Where `inode` is; NULL if it is nowhere. */
static void *histfs_find(void *table, size_t width, uint64_t inode)
{
    for (size_t way = 0; inode && way < HISTFS_WAYS; way++) {
        void *place = histfs_place(table, width, inode, way);

        if (*(uint64_t *)place == inode)
            return place;
    }
    return NULL;
}

/* Where `inode` is, or goes. */
static void *histfs_room(void *table, size_t width, uint64_t inode)
{
    void *found = histfs_find(table, width, inode);

    for (size_t way = 0; !found && way < HISTFS_WAYS; way++) {
        void *place = histfs_place(table, width, inode, way);

        if (!*(uint64_t *)place)
            found = place;
    }
    return found ? found : histfs_place(table, width, inode, 0);
}

static struct histfs_content *histfs_find_content(uint64_t inode)
{
    return histfs_find(histfs_contents, sizeof *histfs_contents, inode);
}

static void histfs_drop_content(struct histfs_content *content)
{
    histfs_kept_bytes -= content->size;
    free(content->data);
    memset(content, 0, sizeof *content);
}

static void histfs_drop_all(void)
{
    pthread_mutex_lock(&histfs_lock);
    for (size_t place = 0; place < HISTFS_PLACES; place++)
        histfs_drop_content(&histfs_contents[place]);
    free(histfs_claimed.data);
    memset(&histfs_claimed, 0, sizeof histfs_claimed);
    pthread_mutex_unlock(&histfs_lock);
}

/* Whether it is kept. From any thread. */
static int histfs_fuse_keep_content(uint64_t inode, const char *data, size_t size)
{
    struct histfs_content *content;
    char *copy;

    if (!histfs_is_by_inode || size > HISTFS_KEPT_BYTES || !(copy = malloc(size ? size : 1)))
        return 0;
    memcpy(copy, data, size);
    pthread_mutex_lock(&histfs_lock);
    content = histfs_room(histfs_contents, sizeof *histfs_contents, inode);
    histfs_drop_content(content);
    while (histfs_kept_bytes + size > HISTFS_KEPT_BYTES)
        histfs_drop_content(&histfs_contents[histfs_hand++ % HISTFS_PLACES]);
    content->inode = inode;
    content->data = copy;
    content->size = size;
    histfs_kept_bytes += size;
    pthread_mutex_unlock(&histfs_lock);
    return 1;
}

/* Take a content out of its place, to be read by the session's thread alone; whether there is one. */
static int histfs_claim(uint64_t inode)
{
    struct histfs_content *content;

    if (histfs_claimed.data && histfs_claimed.inode == inode)
        return 1;
    pthread_mutex_lock(&histfs_lock);
    content = histfs_find_content(inode);
    if (content) {
        free(histfs_claimed.data);
        histfs_claimed = *content;
        content->data = NULL;
        histfs_drop_content(content);
    }
    pthread_mutex_unlock(&histfs_lock);
    return content != NULL;
}

static void histfs_read_claimed(fuse_req_t req, size_t size, off_t offset)
{
    size_t left = 0 <= offset && (size_t)offset < histfs_claimed.size ? histfs_claimed.size - offset : 0;

    histfs_reply_buf(req, left ? histfs_claimed.data + offset : NULL, left < size ? left : size);
}

/* Listings of directories, or parts of them, as the kernel takes them: struct fuse_direntplus of linux/fuse.h, one after
   the other.
   All of it is for the session's thread. */
#define HISTFS_LISTINGS_BYTES (4u << 20)
#define HISTFS_ENTRY_BYTES 128  /* struct fuse_entry_out; what follows is */
struct histfs_name {            /* struct fuse_dirent, its name, and zeros up to a multiple of 8 bytes */
    uint64_t inode, offset;
    uint32_t length, type;
};

static struct histfs_listing {
    uint64_t inode, offset;     /* the offset in the directory where it begins */
    char *data;
    size_t size;
    int is_last;                /* nothing comes behind it */
    uint64_t next_offset;       /* where the last reply ended: an offset of the directory, */
    size_t next;                /* and its place in `data` */
} histfs_listings[HISTFS_PLACES];
static size_t histfs_listings_bytes, histfs_listings_hand;
static size_t histfs_listing_room = SIZE_MAX;  /* of a reply: the least that was ever asked for */
static struct { uint64_t inode, offset; } histfs_promised;  /* to be the next reply */

/* The listing of a directory; NULL if there is none. */
static struct histfs_listing *histfs_find_listing(uint64_t inode)
{
    return histfs_find(histfs_listings, sizeof *histfs_listings, inode);
}

static void histfs_drop_listing(struct histfs_listing *listing)
{
    histfs_listings_bytes -= listing->size;
    free(listing->data);
    memset(listing, 0, sizeof *listing);
}

/* Whether a listing must stay, as it is to be the next reply. */
static int histfs_is_promised(struct histfs_listing const *listing)
{
    return histfs_promised.inode && listing->inode == histfs_promised.inode;
}

static size_t histfs_promised_bytes(void)
{
    struct histfs_listing const *listing = histfs_find_listing(histfs_promised.inode);

    return listing ? listing->size : 0;
}

static void histfs_drop_listings(void)
{
    pthread_mutex_lock(&histfs_lock);
    for (size_t place = 0; place < HISTFS_PLACES; place++)
        histfs_drop_listing(&histfs_listings[place]);
    histfs_promised.inode = 0;
    pthread_mutex_unlock(&histfs_lock);
}

static int histfs_fuse_keep_listing(uint64_t inode, uint64_t offset, const char *data, size_t size, int is_last)
{
    struct histfs_listing *listing;
    char *copy;

    if (!histfs_is_by_inode || size > HISTFS_LISTINGS_BYTES || !(copy = malloc(size ? size : 1)))
        return 0;
    memcpy(copy, data, size);
    pthread_mutex_lock(&histfs_lock);
    listing = histfs_room(histfs_listings, sizeof *histfs_listings, inode);
    if (histfs_is_promised(listing)) {
        pthread_mutex_unlock(&histfs_lock);
        free(copy);
        return 0;
    }
    histfs_drop_listing(listing);
    while (histfs_listings_bytes + size > HISTFS_LISTINGS_BYTES + histfs_promised_bytes()) {
        struct histfs_listing *other = &histfs_listings[histfs_listings_hand++ % HISTFS_PLACES];

        if (!histfs_is_promised(other))
            histfs_drop_listing(other);
    }
    listing->inode = inode;
    listing->offset = listing->next_offset = offset;
    listing->data = copy;
    listing->size = size;
    listing->is_last = is_last;
    histfs_listings_bytes += size;
    pthread_mutex_unlock(&histfs_lock);
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

/* Find where the names behind `offset` begin; whether there is an answer. */
static int histfs_seek_listing(struct histfs_listing *listing, uint64_t offset)
{
    if (offset != listing->next_offset) {
        uint64_t found = listing->offset;
        size_t place = 0, size;

        while (found != offset && (size = histfs_record_bytes(listing, place, &found)))
            place += size;
        if (found != offset)
            return 0;
        listing->next = place;
        listing->next_offset = offset;
    }
    return listing->next < listing->size || listing->is_last;
}

static int histfs_has_listing(uint64_t inode, uint64_t offset)
{
    struct histfs_listing *listing;
    int is_there;

    pthread_mutex_lock(&histfs_lock);
    listing = histfs_find_listing(inode);
    is_there = listing && histfs_seek_listing(listing, offset);
    pthread_mutex_unlock(&histfs_lock);
    return is_there;
}

/* Reply with what comes in a listing behind `offset`, as much as there is room for; 0 if there is no answer now. When its
   end was told, the kernel has all of it. */
static int histfs_reply_from_listing(fuse_req_t req, uint64_t inode, uint64_t offset, size_t room)
{
    struct histfs_listing *listing;
    int is_there;

    pthread_mutex_lock(&histfs_lock);
    listing = histfs_find_listing(inode);
    is_there = listing && histfs_seek_listing(listing, offset);
    if (is_there) {
        size_t start = listing->next, size;
        uint64_t next_offset;

        while ((size = histfs_record_bytes(listing, listing->next, &next_offset))
               && size <= room - (listing->next - start)) {
            listing->next += size;
            listing->next_offset = next_offset;
        }
        histfs_reply_buf(req, listing->data + start, listing->next - start);
        if (listing->next == start)
            histfs_drop_listing(listing);
    }
    pthread_mutex_unlock(&histfs_lock);
    return is_there;
}

/* Keep none of what was listed, for the session's thread. */
static void histfs_fuse_forget_listings(void)
{
    histfs_drop_listings();
}

/* Promise that the next reply, which is to be an empty one, is to be what is kept of a directory; whether it is. */
static int histfs_fuse_reply_listing(uint64_t inode, uint64_t offset)
{
    int is_there = histfs_has_listing(inode, offset);

    if (is_there) {
        histfs_promised.inode = inode;
        histfs_promised.offset = offset;
    }
    return is_there;
}
