/* Noise is what looks as if each byte were as likely as any other: what is compressed or encrypted already. */

enum {
    HISTFS_CELL = 256,        /* bytes that are judged together */
    HISTFS_NOISE_CELLS = 4,   /* one after the other; fewer are not worth a block of their own */
    HISTFS_NOISE_SQUARES = 700
};

/* By the sum of the squares of how often each byte occurs: of 256 bytes of noise 511, and less than 650 in a million
   of such cells; 766 where each byte has seven bits of chance, some thousands in text. */
static int histfs_is_noise(const unsigned char *cell)
{
    uint16_t counts[256] = {0};
    unsigned squares = 0;

    for (int at = 0; at < HISTFS_CELL; at++)
        squares += 2u * counts[cell[at]]++ + 1;
    return squares < HISTFS_NOISE_SQUARES;
}

/* Parts of `data` that are by turns no noise (the first; it may be empty) and noise: puts where each ends into `ends`,
   `most` of them at most, and gives their number. The last one ends with the data, whatever it is. */
static size_t histfs_noise_runs(const unsigned char *data, size_t size, uint32_t *ends, size_t most)
{
    size_t found = 0, cells = size / HISTFS_CELL, at = 0, end;

    for (; at < cells && found + 2 < most; at = end + 1) {
        for (end = at; end < cells && histfs_is_noise(data + end * HISTFS_CELL);)
            end++;
        if (end - at < HISTFS_NOISE_CELLS)
            continue;
        ends[found++] = (uint32_t)(at * HISTFS_CELL);
        ends[found++] = (uint32_t)(end == cells ? size : end * HISTFS_CELL);
    }
    if (!found || ends[found - 1] < size)
        ends[found++] = (uint32_t)size;
    return found;
}
