/* Where a file is in a ledger, by what stays the same when it is moved, see moved.c. Read by cffi too: no directives. */

typedef struct histfs_moved histfs_moved;
static histfs_moved *histfs_moved_new(int64_t smallest);
static void histfs_moved_free(histfs_moved *moved);
static int histfs_moved_add(
    histfs_moved *moved, const struct histfs_seen *seen, size_t count, uint32_t first_number, uint64_t *text_bytes);
static size_t histfs_moved_find(
    const histfs_moved *moved, uint64_t inode, int64_t size, int64_t mtime_ns, uint32_t *numbers, size_t count);
