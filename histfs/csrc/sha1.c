/* SHA-1 (FIPS 180-4), which is what the format records of contents. With the processor's own instructions where it has
   them. */

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define HISTFS_HAS_SHA 1
#endif

struct histfs_sha1 {
    uint32_t state[5];
    uint64_t bytes;
    unsigned char block[64]; /* what was added since the last whole one */
};

static void histfs_sha1_begin(struct histfs_sha1 *sha1)
{
    static const uint32_t start[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};

    memcpy(sha1->state, start, sizeof start);
    sha1->bytes = 0;
}

static uint32_t histfs_rotated(uint32_t word, int bits)
{
    return word << bits | word >> (32 - bits);
}

static void histfs_sha1_blocks_anywhere(uint32_t *state, const unsigned char *data, size_t blocks)
{
    uint32_t w[80], a, b, c, d, e, f, next;

    for (; blocks; blocks--, data += 64) {
        for (int t = 0; t < 16; t++)
            w[t] = (uint32_t)data[4 * t] << 24 | data[4 * t + 1] << 16 | data[4 * t + 2] << 8 | data[4 * t + 3];
        for (int t = 16; t < 80; t++)
            w[t] = histfs_rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
        for (int t = 0; t < 80; t++) {
            if (t < 20)
                f = (d ^ (b & (c ^ d))) + 0x5a827999;
            else if (t < 40)
                f = (b ^ c ^ d) + 0x6ed9eba1;
            else if (t < 60)
                f = ((b & c) | (d & (b | c))) + 0x8f1bbcdc;
            else
                f = (b ^ c ^ d) + 0xca62c1d6;
            next = histfs_rotated(a, 5) + f + e + w[t];
            e = d, d = c, c = histfs_rotated(b, 30), b = a, a = next;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
    }
}

#ifdef HISTFS_HAS_SHA
/* Four rounds a step: `w` are the last sixteen words of the schedule, four in each. */
__attribute__((target("sha,ssse3,sse4.1")))
static void histfs_sha1_blocks_here(uint32_t *state, const unsigned char *data, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f);
    __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0x1b), abcd_before;
    __m128i e = _mm_set_epi32((int)state[4], 0, 0, 0), e_before, w[4], next;

    for (; blocks; blocks--, data += 64) {
        abcd_before = abcd, e_before = e;
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + i), swap);
#define HISTFS_STEP(t, function) \
        do { \
            if ((t) >= 4) \
                w[(t) & 3] = _mm_sha1msg2_epu32( \
                    _mm_xor_si128(_mm_sha1msg1_epu32(w[(t) & 3], w[((t) + 1) & 3]), w[((t) + 2) & 3]), w[((t) + 3) & 3]); \
            e = (t) ? _mm_sha1nexte_epu32(e, w[(t) & 3]) : _mm_add_epi32(e, w[0]); \
            next = abcd; \
            abcd = _mm_sha1rnds4_epu32(abcd, e, function); \
            e = next; \
        } while (0)
        HISTFS_STEP(0, 0); HISTFS_STEP(1, 0); HISTFS_STEP(2, 0); HISTFS_STEP(3, 0); HISTFS_STEP(4, 0);
        HISTFS_STEP(5, 1); HISTFS_STEP(6, 1); HISTFS_STEP(7, 1); HISTFS_STEP(8, 1); HISTFS_STEP(9, 1);
        HISTFS_STEP(10, 2); HISTFS_STEP(11, 2); HISTFS_STEP(12, 2); HISTFS_STEP(13, 2); HISTFS_STEP(14, 2);
        HISTFS_STEP(15, 3); HISTFS_STEP(16, 3); HISTFS_STEP(17, 3); HISTFS_STEP(18, 3); HISTFS_STEP(19, 3);
#undef HISTFS_STEP
        e = _mm_sha1nexte_epu32(e, e_before);
        abcd = _mm_add_epi32(abcd, abcd_before);
    }
    _mm_storeu_si128((__m128i *)state, _mm_shuffle_epi32(abcd, 0x1b));
    state[4] = (uint32_t)_mm_extract_epi32(e, 3);
}

/* Asked once: in a virtual machine the question takes longer than the sum of a small file. */
static int histfs_has_sha(void)
{
    static int known; /* any thread may find out, and finds the same */
    unsigned int a, b, c, d;
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);

    if (!answer) {
        answer = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSE4_1) && (c & bit_SSSE3) &&
            __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29) ? 1 : -1;
        __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer > 0;
}
#endif

static void histfs_sha1_blocks(uint32_t *state, const unsigned char *data, size_t blocks)
{
#ifdef HISTFS_HAS_SHA
    if (histfs_has_sha()) {
        histfs_sha1_blocks_here(state, data, blocks);
        return;
    }
#endif
    histfs_sha1_blocks_anywhere(state, data, blocks);
}

static void histfs_sha1_add(struct histfs_sha1 *sha1, const unsigned char *data, size_t bytes)
{
    size_t have = sha1->bytes % 64, some;

    if (!bytes)
        return; /* there may be no data then, not even a pointer */
    sha1->bytes += bytes;
    if (have) {
        some = bytes < 64 - have ? bytes : 64 - have;
        memcpy(sha1->block + have, data, some);
        data += some, bytes -= some;
        if (have + some < 64)
            return;
        histfs_sha1_blocks(sha1->state, sha1->block, 1);
    }
    if (bytes >= 64)
        histfs_sha1_blocks(sha1->state, data, bytes / 64);
    memcpy(sha1->block, data + bytes / 64 * 64, bytes % 64);
}

static void histfs_sha1_end(struct histfs_sha1 *sha1, unsigned char *digest)
{
    static const unsigned char padding[64] = {0x80};
    unsigned char length[8];
    uint64_t bits = sha1->bytes * 8;

    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(bits >> (56 - 8 * i));
    histfs_sha1_add(sha1, padding, (119 - sha1->bytes % 64) % 64 + 1);
    histfs_sha1_add(sha1, length, 8);
    for (int i = 0; i < 20; i++)
        digest[i] = (unsigned char)(sha1->state[i / 4] >> (24 - 8 * (i % 4)));
}
