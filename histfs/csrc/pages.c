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
