/* A walk through a tree, see walk.c. Read by cffi too: no directives of the preprocessor. */

/* What lstat(2) says of a name, and its place in the list of a session. The ledger is made of these. */
struct histfs_seen {
    uint64_t inode, device;
    int64_t mtime_ns, ctime_ns;
    int64_t size; /* in bytes; of a directory: when the one in the mirror last changed, in ns */
    uint32_t mode, uid, gid, nlink;
    uint32_t record_bytes, flags;
    uint32_t xattrs_bytes, acl_bytes; /* of its records in the files beside the list */
};

struct histfs_item {
    const char *path; /* from the root on; valid until the walk goes on */
    size_t path_bytes, name_bytes;
    int is_directory; /* as the directory that it lies in says */
};

/* A name that was looked at ahead of the caller. */
struct histfs_ahead {
    struct histfs_seen seen;
    uint32_t name_bytes;
    unsigned char is_directory, has_no_xattrs; /* the second: surely */
};

/* A directory that the walk is in, as the list that was compared knows it. */
struct histfs_level {
    struct histfs_seen seen;
    const char *record; /* NULL: the walk was led into it by the caller, or the caller knows */
    size_t record_bytes, path_bytes;
    uint64_t xattrs_at, acl_at; /* of its records beside the list, in those of the run that it was passed over in */
    int64_t number; /* of its record in the new list */
};

struct histfs_run {
    const char *text; /* of the list, from a record on */
    size_t text_bytes, text_at;
    const struct histfs_seen *seen; /* of the records in `text` and those behind it */
    size_t seen_count, seen_at;
    int is_last; /* nothing follows `text` */
    uint64_t number; /* of the record at `seen`, in the old list */
    size_t text_ahead; /* bytes of the list that are wanted beyond the next record, as long as there are more */
    char *lines; /* for the statistics of files; NULL: none are wanted */
    size_t lines_bytes, lines_at;
    char line_end;
    int64_t first_number; /* of the record at `seen`, in the new list */
    uint64_t files, file_bytes, xattrs_bytes, acls_bytes;
    uint64_t *links; /* of each file with other links that was passed over: its places in `text` and in `seen` */
    size_t links_at, links_count; /* numbers, two for each */
    int error;
};

typedef struct histfs_walk histfs_walk;
static histfs_walk *histfs_walk_new(int mirror, uint64_t skipped_device, uint64_t skipped_inode);
static void histfs_walk_free(histfs_walk *walk);
static void histfs_walk_scout(histfs_walk *walk, size_t threads, size_t records_at_once, size_t records_from);
static int histfs_walk_push(histfs_walk *walk, int directory, int is_trusted);
static int histfs_walk_enter(histfs_walk *walk, int64_t mirror_ctime_ns);
static void histfs_walk_quote(histfs_walk *walk, const char *is_quoted, int escapes_devices, int escapes_spaces);
static void histfs_walk_rely(
    histfs_walk *walk, size_t depth, const char *path, size_t path_bytes, int64_t mirror_ctime_ns);
static int histfs_walk_next(histfs_walk *walk, struct histfs_item *item);
static void histfs_walk_here(histfs_walk *walk, struct histfs_item *item);
static int histfs_walk_look(histfs_walk *walk, struct histfs_seen *seen);
static int histfs_walk_count_xattrs(histfs_walk *walk);
static size_t histfs_walk_ahead(
    histfs_walk *walk, struct histfs_ahead *ahead, size_t count, char *names, size_t names_bytes);
static void histfs_walk_trust(histfs_walk *walk, uint32_t uid, uint32_t gid);
static void histfs_walk_stop_at_links(histfs_walk *walk);
static size_t histfs_walk_depth(histfs_walk *walk);
static void histfs_walk_level(histfs_walk *walk, size_t depth, struct histfs_level *level);
static void histfs_walk_told(histfs_walk *walk, size_t depth);
static int histfs_walk_run(histfs_walk *walk, struct histfs_run *run);
