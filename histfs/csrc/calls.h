/* What the threads of a mount (serving.c, in histfs._fuse) call of a version of which they know nothing else (checked.c, in
   histfs._rsync). This file is read by the compiler and by cffi (see _rsync_build.py), so it has plain declarations only. */

/* What to do with bytes that were read for somebody. */
#define HISTFS_GIVE 0              /* give them out, then call `settle` */
#define HISTFS_SETTLE_FIRST 1      /* give them out if `settle` says 0 */
#define HISTFS_IN_A_THREAD 2       /* ask once more where it is no matter if it takes long */
#define HISTFS_OTHER_CONTENT 204   /* give out nothing: the version is not what was recorded */

typedef struct {
    int (*read)(void const *version, char *buffer, uint64_t offset, size_t size);  /* 0: all of it is there */
    int (*give)(void const *version, uint64_t offset, size_t size, int nowait);
    int (*settle)(void const *version, char const *buffer, uint64_t offset, size_t size, int const *is_ending);
} histfs_calls_t;
