/* Copies files: each is read once, and hashed and written meanwhile.

   Rules: no link is followed, and what is no regular file is not opened, as opening a fifo or a device has effects of
   its own. A copy is made with O_EXCL and mode 0600, and gets its owner before its mode. What is not exactly the file
   that was meant, from before the first byte until after the last, leaves no copy: the caller finds out why. Nothing is
   written to a file that was there before: whoever has it open would see what is not meant for them. */

/* Flags of a copy. The second: which it has got by itself. The last is set by the caller. */
enum { HISTFS_OWNER_REFUSED = 1, HISTFS_HAS_XATTRS = 2, HISTFS_MAY_BE_THERE = 4 };

static int histfs_is_meant(const struct histfs_copy *copy, const struct stat *status)
{
    int64_t mtime_ns;

    return S_ISREG(status->st_mode) && status->st_ino == copy->inode && status->st_dev == copy->device &&
        status->st_size == copy->size && histfs_has_ns(status->st_mtim, &mtime_ns) && mtime_ns == copy->mtime_ns;
}

static int histfs_write(int file, const char *data, size_t bytes)
{
    ssize_t written;

    for (; bytes; data += written, bytes -= (size_t)written)
        if ((written = write(file, data, bytes)) < 0)
            return errno;
    return 0;
}

/* `some` bytes, or ESTALE where the file ends before. */
static int histfs_read(int file, char *data, size_t some)
{
    size_t have;
    ssize_t got;

    for (have = 0; have < some; have += (size_t)got) {
        got = read(file, data + have, some - have);
        if (got < 0)
            return errno;
        if (!got)
            return ESTALE;
    }
    return 0;
}

/* The content, all of `copy->size` bytes. Blocks of zeros become holes. */
static int histfs_copy_content(struct histfs_copy *copy, int source, int target, char *buffer, size_t buffer_bytes)
{
    struct histfs_sha1 sha1;
    int64_t left = copy->size;
    size_t some;
    int error, is_hole = 0;

    histfs_sha1_begin(&sha1);
    while (left) {
        some = left < (int64_t)buffer_bytes ? (size_t)left : buffer_bytes;
        if ((error = histfs_read(source, buffer, some)))
            return error;
        histfs_sha1_add(&sha1, (const unsigned char *)buffer, some);
        left -= (int64_t)some;
        is_hole = histfs_is_zeros(buffer, some);
        if (is_hole && lseek(target, (off_t)some, SEEK_CUR) < 0)
            return errno;
        if (!is_hole && (error = histfs_write(target, buffer, some)))
            return error;
    }
    if (is_hole && ftruncate(target, copy->size))
        return errno;
    histfs_sha1_end(&sha1, copy->sha1);
    return 0;
}

static int histfs_is_refusal(int error)
{
    return error == EPERM || error == EINVAL || error == EOPNOTSUPP;
}

static int histfs_dress_copy(struct histfs_copy *copy, int target)
{
    struct timespec times[2];
    struct stat status;
    mode_t mode = copy->mode & 07777;
    int64_t seconds = copy->mtime_ns / 1000000000, rest = copy->mtime_ns % 1000000000;

    if (fstat(target, &status))
        return errno;
    if ((status.st_uid != copy->uid || status.st_gid != copy->gid) && fchown(target, copy->uid, copy->gid)) {
        if (!histfs_is_refusal(errno))
            return errno;
        copy->flags |= HISTFS_OWNER_REFUSED;
        mode &= ~(mode_t)(S_ISUID | S_ISGID); /* of another owner must not become ours */
    }
    if (flistxattr(target, NULL, 0) > 0)
        copy->flags |= HISTFS_HAS_XATTRS;
    if (fchmod(target, mode))
        return errno;
    times[0].tv_sec = times[1].tv_sec = rest < 0 ? seconds - 1 : seconds;
    times[0].tv_nsec = times[1].tv_nsec = rest < 0 ? rest + 1000000000 : rest;
    return futimens(target, times) ? errno : 0;
}

/* Whether the open file `there` has the content of the source, whose SHA1 is in `copy` then. */
static int histfs_is_same(struct histfs_copy *copy, int source, int there, char *buffer, size_t buffer_bytes)
{
    struct histfs_sha1 sha1;
    int64_t left = copy->size;
    size_t half = buffer_bytes / 2, some;

    histfs_sha1_begin(&sha1);
    while (left) {
        some = left < (int64_t)half ? (size_t)left : half;
        if (histfs_read(source, buffer, some) || histfs_read(there, buffer + half, some) ||
            memcmp(buffer, buffer + half, some))
            return 0;
        histfs_sha1_add(&sha1, (const unsigned char *)buffer, some);
        left -= (int64_t)some;
    }
    histfs_sha1_end(&sha1, copy->sha1);
    return 1;
}

/* A copy that somebody has made before, if that is what it is, by its bytes; else it goes, and -1. */
static int histfs_open_same(struct histfs_copy *copy, int source, const char *name, char *buffer, size_t buffer_bytes)
{
    struct stat status;
    int there = -1;

    if (!fstatat(copy->mirror, name, &status, AT_SYMLINK_NOFOLLOW) && S_ISREG(status.st_mode) &&
        status.st_nlink == 1 && status.st_size == copy->size)
        there = openat(copy->mirror, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (there >= 0 && !fstat(there, &status) && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
        status.st_size == copy->size && histfs_is_same(copy, source, there, buffer, buffer_bytes))
        return there;
    if (there >= 0)
        close(there);
    unlinkat(copy->mirror, name, 0);
    return -1;
}

static int histfs_copy_from(struct histfs_copy *copy, int source, const char *name, char *buffer, size_t buffer_bytes)
{
    struct stat status;
    int target = -1, error = 0;

    if (fstat(source, &status))
        return errno;
    if (!histfs_is_meant(copy, &status))
        return ESTALE;
    if (copy->flags & HISTFS_MAY_BE_THERE) {
        copy->flags = 0;
        target = histfs_open_same(copy, source, name, buffer, buffer_bytes);
        if (target < 0 && lseek(source, 0, SEEK_SET))
            return errno;
    }
    if (target < 0) {
        target = openat(copy->mirror, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (target < 0)
            return errno;
        error = histfs_copy_content(copy, source, target, buffer, buffer_bytes);
    }
    if (!error && (fstat(source, &status) || !histfs_is_meant(copy, &status)))
        error = ESTALE;
    if (!error)
        error = histfs_dress_copy(copy, target);
    if (close(target) && !error)
        error = errno;
    if (error)
        unlinkat(copy->mirror, name, 0);
    return error;
}

static int histfs_copy_file(struct histfs_copy *copy, const char *names, char *buffer, size_t buffer_bytes)
{
    struct stat status;
    int source, error;

    if (fstatat(copy->source, names + copy->name, &status, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (!histfs_is_meant(copy, &status))
        return ESTALE;
    source = openat(copy->source, names + copy->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (source < 0)
        return errno;
    error = histfs_copy_from(copy, source, names + copy->mirror_name, buffer, buffer_bytes);
    close(source);
    return error;
}

/* `names` has NUL-terminated names of the source and the mirror; `buffer` at least two bytes. */
static void histfs_copy_files(
    struct histfs_copy *files, size_t count, const char *names, char *buffer, size_t buffer_bytes)
{
    for (size_t file = 0; file < count; file++) {
        files[file].error = histfs_copy_file(&files[file], names, buffer, buffer_bytes);
        if (files[file].flags & HISTFS_MAY_BE_THERE)  /* it was not even compared */
            unlinkat(files[file].mirror, names + files[file].mirror_name, 0);
        files[file].flags &= ~(uint32_t)HISTFS_MAY_BE_THERE;
    }
}
