/* What is on the disk: the names in a directory, in their order, and what lstat(2) says of a name. */

static const char HISTFS_START[] = "File "; /* of a record */
enum { HISTFS_START_BYTES = sizeof HISTFS_START - 1 };

struct names {
    char *names; /* of each: its type, the name, a NUL */
    size_t bytes;
    size_t *places;
    size_t count;
};

static void histfs_forget(struct names *names)
{
    free(names->names);
    free(names->places);
    memset(names, 0, sizeof *names);
}

/* Whether `*array` has room for `wanted` elements, perhaps elsewhere. */
static int histfs_has_room(void **array, size_t *capacity, size_t wanted, size_t size)
{
    size_t more = *capacity * 2 > wanted ? *capacity * 2 : wanted + 64;
    void *grown;

    if (wanted <= *capacity)
        return 1;
    if (more > SIZE_MAX / 2 / size || !(grown = realloc(*array, more * size)))
        return 0;
    *array = grown;
    *capacity = more;
    return 1;
}

static int histfs_by_name(const void *one, const void *other, void *names)
{
    return strcmp((char *)names + *(const size_t *)one + 1, (char *)names + *(const size_t *)other + 1);
}

/* Leave each of the sorted names there once: one that goes and comes while its directory is read may come twice. */
static void histfs_drop_doubles(struct names *names)
{
    size_t kept = 0;
    char *last, *next;

    for (size_t i = 1; i < names->count; i++) {
        last = names->names + names->places[kept];
        next = names->names + names->places[i];
        if (strcmp(last + 1, next + 1))
            names->places[++kept] = names->places[i];
        else if (*last != *next)
            *last = DT_UNKNOWN;
    }
    if (names->count)
        names->count = kept + 1;
}

/* The names in `directory`, in their order, each once. E2BIG if they take more than `most_bytes`. */
static int histfs_list(int directory, struct names *names, size_t most_bytes)
{
    size_t names_capacity = 0, places_capacity = 0, length;
    char buffer[16 * 1024] __attribute__((aligned(16)));
    const struct dirent64 *entry;
    ssize_t got;

    memset(names, 0, sizeof *names);
    while ((got = getdents64(directory, buffer, sizeof buffer)) > 0) {
        for (char *at = buffer; at < buffer + got; at += entry->d_reclen) {
            entry = (const struct dirent64 *)at;
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
                continue;
            length = strlen(entry->d_name) + 1;
            if (!histfs_has_room((void **)&names->names, &names_capacity, names->bytes + 1 + length, 1) ||
                !histfs_has_room((void **)&names->places, &places_capacity, names->count + 1, sizeof *names->places))
                return ENOMEM;
            names->places[names->count++] = names->bytes;
            names->names[names->bytes] = (char)entry->d_type;
            memcpy(names->names + names->bytes + 1, entry->d_name, length);
            names->bytes += 1 + length;
        }
        if (names->bytes + names->count * sizeof *names->places > most_bytes)
            return E2BIG;
    }
    if (got < 0)
        return errno;
    if (names->count)
        qsort_r(names->places, names->count, sizeof *names->places, histfs_by_name, names->names);
    histfs_drop_doubles(names);
    return 0;
}

/* What `name` in `directory` is now. 0, or an error number; EOVERFLOW: the caller has to look itself. */
static int histfs_see(int directory, const char *name, int flags, struct histfs_seen *seen)
{
    struct stat status;

    if (fstatat(directory, name, &status, flags))
        return errno;
    if (!histfs_has_ns(status.st_mtim, &seen->mtime_ns) || !histfs_has_ns(status.st_ctim, &seen->ctime_ns))
        return EOVERFLOW;
    seen->inode = status.st_ino;
    seen->device = status.st_dev;
    seen->size = status.st_size;
    seen->mode = status.st_mode;
    seen->uid = status.st_uid;
    seen->gid = status.st_gid;
    seen->nlink = status.st_nlink > UINT32_MAX ? UINT32_MAX : (uint32_t)status.st_nlink;
    seen->record_bytes = seen->flags = seen->xattrs_bytes = seen->acl_bytes = 0;
    return 0;
}
