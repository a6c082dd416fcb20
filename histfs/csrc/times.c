/* Whether nanoseconds can tell a time, as they can from 1677 until 2262, and which ones. Others are left to Python. */
static int histfs_has_ns(struct timespec time, int64_t *ns)
{
    return !__builtin_mul_overflow((int64_t)time.tv_sec, INT64_C(1000000000), ns)
        && !__builtin_add_overflow(*ns, (int64_t)time.tv_nsec, ns);
}
