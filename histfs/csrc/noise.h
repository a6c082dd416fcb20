/* Which parts of some bytes no compressor makes smaller, see noise.c. Read by cffi too: no directives. */

static size_t histfs_noise_runs(const unsigned char *data, size_t size, uint32_t *ends, size_t most);
