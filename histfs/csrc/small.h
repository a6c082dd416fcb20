/* Small versions, made at once. This file is read by the compiler and by cffi (see _rsync_build.py), so it has plain
   declarations only. */

/* A version, and whether it could be made. The fields are those of `_SMALL` in _rsync_small.py. */
typedef struct {
    uint64_t size;                 /* of the version */
    int64_t mtime_ns;              /* of the file that leads to it */
    uint32_t links;                /* its names: of what it begins with, and of the deltas in the order of their use */
    uint32_t is_made;              /* its bytes are those that were recorded */
    unsigned char sha1[20];        /* of what was recorded */
    unsigned char padding[4];
} histfs_small_t;

int histfs_small_make(
    int mirror, int increments, histfs_small_t *versions, size_t count, char const *names, char *data);
