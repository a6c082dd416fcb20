/* Reading versions through their maps. This file is read by the compiler and by cffi (see _rsync_build.py), so it has
   plain declarations only. */

#define HISTFS_NOT_OPEN 203

/* Inflated members of increments, those used last; shared by all versions of a repository. */
typedef struct histfs_members histfs_members_t;

/* What was given out of a version, and its sum (checked.c). */
typedef struct histfs_check histfs_check_t;

/* Where bytes lie: in memory, or in a file, which may be closed while nobody reads from it. The numbers are set before
   the first use and do not change, but for the last four. */
typedef struct {
    unsigned char const *memory;   /* NULL: in a file */
    uint64_t size;                 /* of the bytes, where it is known; else the largest number */
    uint64_t id;                   /* its own, where there are members */
    size_t member_count;           /* 0: the bytes are in the file as they are; else in gzip members, */
    uint64_t const *offsets;       /* which begin there in the file, */
    uint64_t const *raw_offsets;   /* and there in the bytes; both end with where the last one ends */
    uint64_t ahead_from, ahead_to; /* what the kernel was told of the file that it will be read next */
    int fd;                        /* -1: not open */
    int users;                     /* who read from `fd` now */
} histfs_source_t;

/* A version, to be read from anywhere. It owns nothing. */
typedef struct {
    histfs_map_t const *map;
    histfs_source_t **sources;     /* by number; NULL where there is none */
    size_t source_count;
    histfs_members_t *members;
    histfs_check_t *check;         /* NULL: there is nothing to compare */
} histfs_version_t;

/* How a read went on. */
typedef struct {
    size_t done;                   /* bytes that are read */
    uint64_t source;               /* where it stopped */
    int error;                     /* errno of a failed system call */
} histfs_reading_t;

histfs_members_t *histfs_members_new(size_t capacity);
void histfs_members_clear(histfs_members_t *self);
void histfs_members_free(histfs_members_t *self);
size_t histfs_members_size(histfs_members_t *self);

int histfs_source_lend(histfs_members_t *members, histfs_source_t *source, int fd);
int histfs_source_close_idle(histfs_members_t *members, histfs_source_t *source);

int histfs_version_hold(histfs_version_t const *self);
void histfs_version_release(histfs_version_t const *self);
int histfs_version_read(histfs_version_t const *self, char *buffer, uint64_t offset, size_t size, int nowait,
                        histfs_reading_t *reading);
