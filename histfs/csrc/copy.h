/* Copying of files, see copy.c. Read by cffi too: no directives of the preprocessor. */

/* A file, and what came of it. The fields are those of `_COPY` in store/copying.py. */
struct histfs_copy {
    int source, mirror; /* descriptors of the directories */
    uint32_t name, mirror_name; /* where its names begin */
    uint64_t inode, device; /* of the file that is meant, ... */
    int64_t size, mtime_ns; /* ... and how it must be, before and after */
    uint32_t mode, uid, gid; /* for the copy */
    int error; /* 0: it was copied; else nothing is left of the copy */
    uint32_t flags;
    unsigned char sha1[20];
};

static void histfs_copy_files(
    struct histfs_copy *files, size_t count, const char *names, char *buffer, size_t buffer_bytes);
