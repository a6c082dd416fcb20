/* A walk through a tree in the order of the metadata files, and its comparison with what an earlier session saw.

   Rules: names are only ever opened by the descriptor of the directory they lie in, and no link is followed. What comes
   from the caller (the text of a list, a ledger) is taken for damaged until it was looked at: every length in it is
   compared with what there is. Nothing is kept of it but copies. */

enum { HISTFS_OPEN_LEVELS = 32 };    /* directories that are kept open; in what lies deeper the caller looks itself */
enum { HISTFS_MOST_IDS = 256 };      /* users and groups whose names are known to be the same as before */
enum { HISTFS_LISTXATTRAT = 465 };   /* the number of the system call, since Linux 6.13 */
enum { HISTFS_VALID = 1, HISTFS_LINKED = 8, HISTFS_SCANNED = 16 }; /* of what was seen, see store/format/ledger.py */
enum { HISTFS_LONGEST_PATH = 32768 };

/* Why a run ends. */
enum {
    HISTFS_END, HISTFS_DIFFERS, HISTFS_NEEDS_TEXT, HISTFS_NEEDS_SEEN, HISTFS_FULL, HISTFS_WENT, HISTFS_UNLISTED
};

struct level {
    int directory, is_trusted;
    struct names names;
    size_t next;
    struct histfs_level told;
};

struct histfs_walk {
    int mirror, quotes, escapes_devices, escapes_spaces;
    char is_quoted[256];
    char *mirror_path;
    size_t mirror_path_capacity;
    uint64_t skipped_device, skipped_inode;
    struct level *levels;
    size_t depth, levels_capacity;
    char *path; /* ends with a NUL */
    size_t path_bytes, path_capacity;
    const char *name; /* the current one; NULL: none */
    int is_pending; /* it was not given to the caller yet */
    int stops_at_links;
    struct scouts *scouts; /* perhaps NULL */
    uint32_t uids[HISTFS_MOST_IDS], gids[HISTFS_MOST_IDS];
    size_t uid_count, gid_count;
};

static histfs_walk *histfs_walk_new(int mirror, uint64_t skipped_device, uint64_t skipped_inode)
{
    histfs_walk *walk = calloc(1, sizeof *walk);

    if (walk) {
        walk->mirror = mirror;
        walk->skipped_device = skipped_device;
        walk->skipped_inode = skipped_inode;
    }
    return walk;
}

static void histfs_walk_pop(histfs_walk *walk)
{
    struct level *level = &walk->levels[--walk->depth];

    if (level->directory >= 0)
        close(level->directory);
    histfs_forget(&level->names);
    free((char *)level->told.record);
}

static void histfs_walk_free(histfs_walk *walk)
{
    while (walk->depth)
        histfs_walk_pop(walk);
    free(walk->levels);
    free(walk->path);
    free(walk->mirror_path);
    histfs_scouts_free(walk->scouts);
    free(walk);
}

/* Have so many threads look ahead of comparisons that begin in the directory that the walk is in, which is the root, if
   there are so many records; each is given some at a time. Nothing is missing without them. */
static void histfs_walk_scout(histfs_walk *walk, size_t threads, size_t records_at_once, size_t records_from)
{
    if (!walk->scouts && walk->depth == 1 && threads && records_at_once)
        walk->scouts = histfs_scouts_new(
            walk->levels[0].directory, walk->mirror, threads, records_at_once, records_from);
}

/* Go into `directory`, which is the current name (or the root) and closed in the end. 0, or an error number.

   Its names are taken from `scouted`, if a scout has found them there. */
static int histfs_walk_push_scouted(histfs_walk *walk, int directory, int is_trusted, struct scouted *scouted)
{
    struct level level;
    int error = 0;

    memset(&level, 0, sizeof level);
    level.is_trusted = is_trusted;
    level.told.path_bytes = walk->path_bytes;
    level.directory = -1;
    if (!histfs_has_room((void **)&walk->levels, &walk->levels_capacity, walk->depth + 1, sizeof level))
        error = ENOMEM;
    else if (scouted && scouted->is_listed)
        histfs_take_names(walk->scouts, scouted, &level.names);
    else
        error = histfs_list(directory, &level.names, SIZE_MAX);
    if (!error && walk->depth < HISTFS_OPEN_LEVELS)
        level.directory = directory;
    else
        close(directory);
    walk->name = NULL;
    if (error)
        histfs_forget(&level.names);
    else
        walk->levels[walk->depth++] = level;
    return error;
}

static int histfs_walk_push(histfs_walk *walk, int directory, int is_trusted)
{
    return histfs_walk_push_scouted(walk, directory, is_trusted, NULL);
}

/* In the mirror each byte of a name that `is_quoted` is written in another way, and by the special escapes others are. */
static void histfs_walk_quote(histfs_walk *walk, const char *is_quoted, int escapes_devices, int escapes_spaces)
{
    memcpy(walk->is_quoted, is_quoted, sizeof walk->is_quoted);
    walk->quotes = 1;
    walk->escapes_devices = escapes_devices;
    walk->escapes_spaces = escapes_spaces;
}

/* Whether a name of these bytes may have a special escape in the mirror. */
static int histfs_may_be_escaped(const histfs_walk *walk, const char *name, size_t bytes)
{
    static const char devices[] = "aux\0prn\0con\0nul\0com\0lpt";

    if (walk->escapes_spaces && bytes && (name[bytes - 1] == ' ' || name[bytes - 1] == '.'))
        return 1;
    for (const char *device = devices; walk->escapes_devices && device < devices + sizeof devices; device += 4)
        if (bytes >= 3 && !strncasecmp(name, device, 3) && (bytes == 3 || name[3] == '.' ||
                (name[3] >= '0' && name[3] <= '9' && (bytes == 4 || name[4] == '.'))))
            return 1;
    return 0;
}

/* Where `path` is in the mirror; NULL if that is not known. */
static const char *histfs_in_mirror(histfs_walk *walk, const char *path, size_t bytes)
{
    size_t written = 0, name = 0;
    unsigned char byte;

    if (!walk->quotes)
        return path;
    if (!histfs_has_room((void **)&walk->mirror_path, &walk->mirror_path_capacity, 4 * bytes + 1, 1))
        return NULL;
    for (size_t at = 0; at <= bytes; at++) {
        byte = at < bytes ? (unsigned char)path[at] : 0;
        if (!byte || byte == '/') {
            if (histfs_may_be_escaped(walk, path + name, at - name))
                return NULL;
            name = at + 1;
        }
        if (byte && walk->is_quoted[byte])
            written += (size_t)snprintf(walk->mirror_path + written, 5, ";%03d", byte);
        else
            walk->mirror_path[written++] = (char)byte;
    }
    return walk->mirror_path;
}

/* Whether the directory in the mirror that is the like of `path` was last changed at `ctime_ns` (0: never). */
static int histfs_is_unchanged(histfs_walk *walk, const char *path, size_t bytes, int64_t ctime_ns)
{
    struct histfs_seen seen;
    const char *there = ctime_ns && walk->mirror >= 0 ? histfs_in_mirror(walk, path, bytes) : NULL;

    return there && !histfs_see(walk->mirror, there, AT_SYMLINK_NOFOLLOW, &seen) && S_ISDIR(seen.mode) &&
        seen.ctime_ns == ctime_ns;
}

/* The walk is in the directory `path` at this depth; what is in it is compared on the same condition as when it is
   entered. */
static void histfs_walk_rely(
    histfs_walk *walk, size_t depth, const char *path, size_t path_bytes, int64_t mirror_ctime_ns)
{
    struct level *level;

    if (depth >= walk->depth)
        return;
    level = &walk->levels[depth];
    if (level->directory >= 0 && level->told.path_bytes == path_bytes && !memcmp(walk->path, path, path_bytes))
        level->is_trusted = histfs_is_unchanged(walk, path, path_bytes, mirror_ctime_ns);
}

static int histfs_walk_enter_scouted(histfs_walk *walk, int64_t mirror_ctime_ns, struct scouted *scouted)
{
    struct level *level;
    int directory;

    if (!walk->depth || !walk->name || walk->depth >= HISTFS_OPEN_LEVELS)
        return EBADF;
    level = &walk->levels[walk->depth - 1];
    directory = openat(level->directory, walk->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (directory < 0)
        return errno;
    return histfs_walk_push_scouted(walk, directory,
        histfs_is_unchanged(walk, walk->path, walk->path_bytes, mirror_ctime_ns), scouted);
}

/* Go into the current name. What is in it is compared if its like in the mirror has not changed since `mirror_ctime_ns`
   (0: never). EBADF: the caller has to open it, and to push it. */
static int histfs_walk_enter(histfs_walk *walk, int64_t mirror_ctime_ns)
{
    return histfs_walk_enter_scouted(walk, mirror_ctime_ns, NULL);
}

/* Go to the next name in the directory that the walk is in: 1, 0 at its end, or less than 0 without memory. */
static int histfs_walk_step(histfs_walk *walk)
{
    struct level *level = &walk->levels[walk->depth - 1];
    size_t length, above = level->told.path_bytes;

    walk->name = NULL;
    walk->path_bytes = above;
    if (walk->path)
        walk->path[above] = 0;
    if (level->next == level->names.count)
        return 0;
    walk->name = level->names.names + level->names.places[level->next++] + 1;
    length = strlen(walk->name);
    if (!histfs_has_room((void **)&walk->path, &walk->path_capacity, above + length + 2, 1))
        return -1;
    if (above)
        walk->path[above++] = '/';
    memcpy(walk->path + above, walk->name, length + 1);
    walk->path_bytes = above + length;
    return 1;
}

/* The path that the walk is at, as `item`. */
static void histfs_walk_here(histfs_walk *walk, struct histfs_item *item)
{
    item->path = walk->path;
    item->path_bytes = walk->path_bytes;
}

/* The next name, as `item`: 1, 0 at the end of the tree, or less than 0 without memory. */
static int histfs_walk_next(histfs_walk *walk, struct histfs_item *item)
{
    struct stat status;
    struct level *level;
    int found = walk->is_pending;

    walk->is_pending = 0;
    while (!found && walk->depth) {
        found = histfs_walk_step(walk);
        if (!found)
            histfs_walk_pop(walk);
    }
    if (found <= 0)
        return found;
    level = &walk->levels[walk->depth - 1];
    histfs_walk_here(walk, item);
    item->name_bytes = strlen(walk->name);
    item->is_directory = walk->name[-1] == DT_DIR;
    if (walk->name[-1] == DT_UNKNOWN && level->directory >= 0)
        item->is_directory = !fstatat(level->directory, walk->name, &status, AT_SYMLINK_NOFOLLOW) &&
            S_ISDIR(status.st_mode);
    return 1;
}

/* What the current name is now. EBADF, EOVERFLOW: the caller has to look itself. */
static int histfs_walk_look(histfs_walk *walk, struct histfs_seen *seen)
{
    int directory = walk->depth ? walk->levels[walk->depth - 1].directory : -1;

    if (directory < 0 || !walk->name)
        return EBADF;
    return histfs_see(directory, walk->name, AT_SYMLINK_NOFOLLOW, seen);
}

/* 0 if the current name has no extended attributes; anything else if it may have some. */
static int histfs_walk_count_xattrs(histfs_walk *walk)
{
    int directory = walk->depth ? walk->levels[walk->depth - 1].directory : -1;

    if (directory < 0 || !walk->name)
        return -1;
    return (int)syscall(HISTFS_LISTXATTRAT, directory, walk->name, AT_SYMLINK_NOFOLLOW, NULL, (size_t)0);
}

/* Go to the next names in the directory that the walk is in, if nothing there is compared, and look at them: as far as
   the first directory, which is the current name then, the first that cannot be looked at, or the end. How many. */
static size_t histfs_walk_ahead(
    histfs_walk *walk, struct histfs_ahead *ahead, size_t count, char *names, size_t names_bytes)
{
    struct level *level = walk->depth ? &walk->levels[walk->depth - 1] : NULL;
    size_t found = 0, length;

    if (!level || level->is_trusted || level->directory < 0 || walk->is_pending)
        return 0;
    while (found < count && level->next < level->names.count) {
        length = strlen(level->names.names + level->names.places[level->next] + 1);
        if (length > names_bytes || histfs_walk_step(walk) <= 0)
            break;
        if (histfs_walk_look(walk, &ahead->seen)) {
            walk->is_pending = 1;
            break;
        }
        memcpy(names, walk->name, length);
        names += length, names_bytes -= length;
        ahead->name_bytes = (uint32_t)length;
        ahead->is_directory = S_ISDIR(ahead->seen.mode);
        ahead->has_no_xattrs = !histfs_walk_count_xattrs(walk);
        found++;
        if (ahead++->is_directory)
            break;
    }
    return found;
}

static int histfs_knows(const uint32_t *ids, size_t count, uint32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id)
            return 1;
    return 0;
}

static void histfs_add_id(uint32_t *ids, size_t *count, uint32_t id)
{
    if (!histfs_knows(ids, *count, id) && *count < HISTFS_MOST_IDS)
        ids[(*count)++] = id;
}

/* The names of this user and this group are those that the list has. */
static void histfs_walk_trust(histfs_walk *walk, uint32_t uid, uint32_t gid)
{
    histfs_add_id(walk->uids, &walk->uid_count, uid);
    histfs_add_id(walk->gids, &walk->gid_count, gid);
}

/* From now on files with other links are left to the caller. */
static void histfs_walk_stop_at_links(histfs_walk *walk)
{
    walk->stops_at_links = 1;
}

static size_t histfs_walk_depth(histfs_walk *walk)
{
    return walk->depth;
}

static void histfs_walk_level(histfs_walk *walk, size_t depth, struct histfs_level *level)
{
    *level = walk->levels[depth].told;
}

/* The caller knows now that the walk is in this directory. */
static void histfs_walk_told(histfs_walk *walk, size_t depth)
{
    free((char *)walk->levels[depth].told.record);
    walk->levels[depth].told.record = NULL;
}

/* --- comparing ---------------------------------------------------------------------------------------------------- */

static int histfs_is_as_seen(histfs_walk *walk, const struct histfs_seen *then, const struct histfs_seen *now)
{
    int is_directory = S_ISDIR(now->mode);

    return then->inode == now->inode && then->device == now->device && then->mtime_ns == now->mtime_ns &&
        then->ctime_ns == now->ctime_ns && then->mode == now->mode && then->uid == now->uid && then->gid == now->gid &&
        (is_directory || (then->size == now->size && then->nlink == now->nlink)) &&
        histfs_knows(walk->uids, walk->uid_count, now->uid) && histfs_knows(walk->gids, walk->gid_count, now->gid) &&
        !(is_directory && now->device == walk->skipped_device && now->inode == walk->skipped_inode);
}

/* Whether the flags are those of what may be passed over. */
static int histfs_is_plain(histfs_walk *walk, const struct histfs_seen *then)
{
    return then->flags == HISTFS_VALID || (then->flags == (HISTFS_VALID | HISTFS_SCANNED) && S_ISDIR(then->mode)) ||
        (then->flags == (HISTFS_VALID | HISTFS_LINKED) && !walk->stops_at_links);
}

/* Whether the next record of `run` is about the current path: 1, 0 if not, or less than 0 to know later. */
static int histfs_is_about(histfs_walk *walk, const struct histfs_run *run)
{
    const char *text = run->text + run->text_at;
    size_t left = run->text_bytes - run->text_at, head = HISTFS_START_BYTES + walk->path_bytes;

    if (left < head + 1)
        return run->is_last ? 0 : -1;
    return !memcmp(text, HISTFS_START, HISTFS_START_BYTES) &&
        !memcmp(text + HISTFS_START_BYTES, walk->path, walk->path_bytes) && text[head] == '\n';
}

/* Whether the next record of `run` lies in the directory that the walk is at the end of; results as above. */
static int histfs_is_below(histfs_walk *walk, const struct histfs_run *run)
{
    const char *text = run->text + run->text_at;
    size_t left = run->text_bytes - run->text_at, head = HISTFS_START_BYTES + walk->path_bytes;

    if (left < head + 1)
        return run->is_last ? 0 : -1;
    if (!walk->path_bytes)
        return 1;
    return !memcmp(text + HISTFS_START_BYTES, walk->path, walk->path_bytes) && text[head] == '/';
}

/* Whether a whole record of that length is next. */
static int histfs_has_record(const struct histfs_run *run, size_t bytes)
{
    const char *end = run->text + run->text_at + bytes;
    size_t left = run->text_bytes - run->text_at - bytes;

    return bytes > HISTFS_START_BYTES && end[-1] == '\n' &&
        (left ? left >= HISTFS_START_BYTES && !memcmp(end, HISTFS_START, HISTFS_START_BYTES) : run->is_last);
}

/* One line of the statistics: the path, unchanged, its size now and before, no increment. 0: it does not fit. */
static int histfs_add_line(histfs_walk *walk, struct histfs_run *run, uint64_t size)
{
    size_t left = run->lines_bytes - run->lines_at;
    char *end = run->lines + run->lines_at;
    int written;

    if (left < walk->path_bytes + 64)
        return 0;
    memcpy(end, walk->path, walk->path_bytes);
    end += walk->path_bytes;
    written = snprintf(end, 64, " 0 %llu %llu NA", (unsigned long long)size, (unsigned long long)size);
    end[written] = run->line_end;
    run->lines_at += walk->path_bytes + written + 1;
    return 1;
}

/* Go into a directory that is as it was seen. */
static int histfs_follow(
    histfs_walk *walk, struct histfs_run *run, const struct histfs_seen *seen, struct scouted *scouted)
{
    char *record = malloc(seen->record_bytes);
    struct histfs_level *told;
    int error;

    if (!record)
        return ENOMEM;
    memcpy(record, run->text + run->text_at, seen->record_bytes);
    error = histfs_walk_enter_scouted(walk, seen->size, scouted);
    if (error) {
        free(record);
        return error;
    }
    told = &walk->levels[walk->depth - 1].told;
    told->seen = *seen;
    told->record = record;
    told->record_bytes = seen->record_bytes;
    told->xattrs_at = run->xattrs_bytes - seen->xattrs_bytes;
    told->acl_at = run->acls_bytes - seen->acl_bytes;
    told->number = run->first_number + (int64_t)run->seen_at;
    return 0;
}

/* Scanned directories that were entered, and in which nothing was passed over yet: they stay only if something is. */
struct waiting {
    size_t depth; /* of the walk, when it came to the first one; 0: there are none */
    struct histfs_run before; /* it was passed over */
};

/* Leave the scanned directories again, as if the first one had not been passed over. */
static void histfs_leave_waiting(histfs_walk *walk, struct histfs_run *run, const struct waiting *waiting)
{
    *run = waiting->before;
    while (walk->depth > waiting->depth)
        histfs_walk_pop(walk);
    walk->levels[walk->depth - 1].next--;
    walk->is_pending = histfs_walk_step(walk) > 0; /* there is room for a name that has been there before */
}

static int histfs_compare(histfs_walk *walk, struct histfs_run *run, struct waiting *waiting)
{
    struct histfs_seen now;
    const struct histfs_seen *then;
    struct scouted *scouted;
    uint64_t size;
    size_t needed;
    int found;

    run->error = 0;
    if (walk->scouts)
        histfs_send(walk->scouts, run);
    for (;;) {
        while (!walk->is_pending) {
            if (!walk->depth)
                return HISTFS_END;
            found = histfs_walk_step(walk);
            if (found < 0) {
                run->error = ENOMEM;
                return HISTFS_UNLISTED;
            }
            if (found) {
                walk->is_pending = 1;
                break;
            }
            if (waiting->depth)
                return HISTFS_DIFFERS;
            found = histfs_is_below(walk, run);
            if (found)
                return found < 0 ? HISTFS_NEEDS_TEXT : HISTFS_WENT;
            histfs_walk_pop(walk);
        }
        if (!walk->levels[walk->depth - 1].is_trusted || walk->path_bytes > HISTFS_LONGEST_PATH)
            return HISTFS_DIFFERS;
        if (run->seen_at == run->seen_count)
            return HISTFS_NEEDS_SEEN;
        then = &run->seen[run->seen_at];
        found = histfs_is_about(walk, run);
        needed = (size_t)then->record_bytes + (run->is_last ? 0 : HISTFS_START_BYTES);
        if (found < 0 || (found && run->text_bytes - run->text_at < needed))
            return run->is_last ? HISTFS_DIFFERS : HISTFS_NEEDS_TEXT;
        if (!run->is_last && run->text_bytes - run->text_at < run->text_ahead)
            return HISTFS_NEEDS_TEXT;
        if (!found || !histfs_is_plain(walk, then) || !histfs_has_record(run, then->record_bytes))
            return HISTFS_DIFFERS;
        scouted = walk->scouts ? histfs_scouted(walk->scouts, run->number) : NULL;
        if (scouted)
            now = scouted->now;
        if (!scouted || !histfs_is_as_seen(walk, then, &now)) {
            scouted = NULL;
            if (histfs_walk_look(walk, &now) || !histfs_is_as_seen(walk, then, &now))
                return HISTFS_DIFFERS;
        }
        if (S_ISDIR(now.mode) && walk->depth >= HISTFS_OPEN_LEVELS)
            return HISTFS_DIFFERS; /* the caller looks at what lies in it, and has to know it for that */
        if ((then->flags & HISTFS_SCANNED) && !waiting->depth) {
            waiting->depth = walk->depth;
            waiting->before = *run;
        }
        size = S_ISREG(now.mode) ? (uint64_t)now.size : 0;
        if ((then->flags & HISTFS_LINKED) && run->links_at + 2 > run->links_count)
            return HISTFS_FULL;
        if (run->lines && !histfs_add_line(walk, run, size))
            return HISTFS_FULL;
        walk->is_pending = 0;
        if (!(then->flags & HISTFS_SCANNED))
            waiting->depth = 0;
        if (then->flags & HISTFS_LINKED) {
            run->links[run->links_at++] = run->text_at;
            run->links[run->links_at++] = run->seen_at;
        }
        run->xattrs_bytes += then->xattrs_bytes;
        run->acls_bytes += then->acl_bytes;
        run->files++;
        run->file_bytes += size;
        if (S_ISDIR(now.mode))
            run->error = histfs_follow(walk, run, then, scouted);
        run->text_at += then->record_bytes;
        run->seen_at++;
        run->number++;
        if (run->error)
            return HISTFS_UNLISTED;
    }
}

/* Pass over what is as the list says. When it ends the current name, if there is one, was not passed over. */
static int histfs_walk_run(histfs_walk *walk, struct histfs_run *run)
{
    struct waiting waiting;
    int why;

    waiting.depth = 0;
    why = histfs_compare(walk, run, &waiting);
    if (!waiting.depth)
        return why;
    histfs_leave_waiting(walk, run, &waiting);
    return why == HISTFS_NEEDS_TEXT || why == HISTFS_NEEDS_SEEN || (why == HISTFS_FULL && run->files) ? why :
        HISTFS_DIFFERS;
}
