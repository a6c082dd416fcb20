/* Comparing a version with its SHA1 while it is read, see checked.c. This file is read by the compiler and by cffi (see
   _rsync_build.py), so it has plain declarations only. */

histfs_check_t *histfs_check_new(uint64_t size, unsigned char const *sha1, int is_again);
void histfs_check_free(histfs_check_t *self);
int histfs_check_verdict(histfs_check_t *self);

int histfs_version_give(histfs_version_t const *self, uint64_t offset, size_t size, int nowait);
int histfs_version_settle(histfs_version_t const *self, char const *buffer, uint64_t offset, size_t size,
                          int const *is_ending, histfs_reading_t *reading);
uintptr_t histfs_version_calls(void);
