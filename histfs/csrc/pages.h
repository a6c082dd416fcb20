/* Which pages differ, sums of blocks, and what is nothing but zeros, see pages.c. Read by cffi too: no directives. */

static size_t histfs_differing(
    const char *old, size_t old_bytes, const char *new_, size_t new_bytes, size_t page, char *differs);
static void histfs_block_sums(const char *key, const char *data, size_t bytes, size_t block, unsigned char *sums);
static int histfs_is_zeros(const char *data, size_t bytes);
