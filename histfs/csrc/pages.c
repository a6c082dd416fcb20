/* Contents that are compared piece by piece, as fast as memory is read. */

/* The number of pages of `old` that are not the same in `new_`, which may be shorter; `differs` says which.
   The last page may be a part of one. */
static size_t histfs_differing(
    const char *old, size_t old_bytes, const char *new_, size_t new_bytes, size_t page, char *differs)
{
    size_t count = 0, number = 0, some;

    if (old_bytes <= new_bytes && !memcmp(old, new_, old_bytes)) {
        memset(differs, 0, (old_bytes + page - 1) / page);
        return 0;
    }
    for (size_t at = 0; at < old_bytes; at += page, number++) {
        some = old_bytes - at < page ? old_bytes - at : page;
        differs[number] = at + some > new_bytes || memcmp(old + at, new_ + at, some);
        count += (size_t)differs[number];
    }
    return count;
}

static int histfs_is_zeros(const char *data, size_t bytes)
{
    return !bytes || (!data[0] && !memcmp(data, data + 1, bytes - 1));
}

/* The sum of a block is NH, the hash of UMAC (RFC 4418, 5.2.2) with words of 64 bits: for contents that do not depend on
   the key, two of the same size have the same sum once in 2^64. Short blocks count as if zeros followed. */

enum { HISTFS_SUM_BYTES = 16 }; /* as in store/format/sums.py */

struct histfs_wide {
    uint64_t low, high;
};

static void histfs_add_product(struct histfs_wide *sum, uint64_t a, uint64_t b)
{
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 wide;
    wide total = ((wide)sum->high << 64 | sum->low) + (wide)a * b;

    sum->low = (uint64_t)total, sum->high = (uint64_t)(total >> 64);
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle, low = a * b;

    sum->low += low;
    sum->high += a1 * b1 + (middle >> 32) + (other >> 32) + (sum->low < low);
#endif
}

/* `pairs` of words; `key` has as many. */
static void histfs_add_words(struct histfs_wide *sum, const char *key, const char *data, size_t pairs)
{
    uint64_t k[2], m[2];

    for (; pairs; pairs--, key += sizeof k, data += sizeof m) {
        memcpy(k, key, sizeof k);
        memcpy(m, data, sizeof m);
        histfs_add_product(sum, m[0] + k[0], m[1] + k[1]);
    }
}

/* The sum of each block, of which the last may be a part of one. `key`: as long as a block, which is of whole pairs. */
static void histfs_block_sums(
    const char *key, const char *data, size_t bytes, size_t block, unsigned char *sums)
{
    struct histfs_wide sum;
    char last[16];
    size_t some, pairs;

    for (size_t at = 0; at < bytes; at += some, sums += HISTFS_SUM_BYTES) {
        some = bytes - at < block ? bytes - at : block;
        pairs = some / sizeof last;
        sum.low = sum.high = 0;
        histfs_add_words(&sum, key, data + at, pairs);
        if (some % sizeof last) {
            memset(last, 0, sizeof last);
            memcpy(last, data + at + pairs * sizeof last, some % sizeof last);
            histfs_add_words(&sum, key + pairs * sizeof last, last, 1);
        }
        memcpy(sums, &sum, HISTFS_SUM_BYTES);
    }
}
