/* Extent maps and what makes them. This file is read by the compiler and by cffi (see _rsync_build.py), so it has plain
   declarations only. Functions return RS_DONE or another rs_result, and the two of our own. */

#define HISTFS_TOO_MANY_EXTENTS 201
#define HISTFS_WOULD_WAIT 202
#define HISTFS_HOLE 65535
#define HISTFS_PIECES 32
#define HISTFS_LONGEST_COMMAND 17

/* `origin`: a source in the upper 16 bits, and an offset in it in the lower 48. */
typedef struct {
    uint64_t target, origin;
} histfs_extent_t;

/* Where each byte of a version lies. Each owns its extents, so that any map may be freed at any time. */
typedef struct {
    histfs_extent_t *extents;      /* `count` in the order of targets without gaps, then one whose target is the size */
    uint64_t size;
    size_t count, room, limit;
} histfs_map_t;

typedef struct {
    uint64_t start, end;
} histfs_range_t;

/* What a parser makes of a delta. */
typedef enum {
    HISTFS_LITERALS,               /* input: a delta; output: its literals, as far as they are wanted; and the map */
    HISTFS_COMMANDS,               /* input: commands without their literals; no output; and the map */
    HISTFS_FILTER                  /* input: a delta; output: its commands without their literals; no map */
} histfs_task_t;

typedef struct {
    histfs_map_t map;
    histfs_range_t *wanted;        /* ranges of the target, in order and apart */
    size_t wanted_count, wanted_next;
    int keeps_all;                 /* and `wanted` does not matter */
    histfs_task_t task;
    uint64_t source;               /* of literals, shifted to its place in an origin */
    uint64_t literals_at;          /* the offset that the next kept literal byte gets */
    uint64_t literal_left;         /* how much of a literal is still to come */
    unsigned char header[HISTFS_LONGEST_COMMAND];
    unsigned filled;               /* bytes of `header` that are known */
    int began, ended;              /* the magic was read; the end command was read */
    int result;                    /* of the first call that failed */
    size_t produced;               /* by the last call */
} histfs_parser_t;

/* A part of a map's target, looked up piece by piece. */
typedef struct {
    size_t done;                   /* bytes of the target that are dealt with */
    size_t count;
    uint64_t pieces[4 * HISTFS_PIECES];  /* each: position in the buffer, source, offset in the source, length */
} histfs_lookup_t;

int histfs_map_compose(histfs_map_t *self, histfs_map_t const *older, histfs_map_t const *newer);
int histfs_map_look_up(histfs_map_t const *self, histfs_lookup_t *lookup, uint64_t offset, size_t size);
void histfs_map_survey(histfs_map_t const *self, unsigned char *used, uint64_t *basis_size, uint64_t *source_count);
void histfs_map_close(histfs_map_t *self);

int histfs_parser_want(histfs_parser_t *self, histfs_map_t const *older);
int histfs_parser_feed(histfs_parser_t *self, char const *in, size_t size, char *out);
int histfs_parser_skip(histfs_parser_t *self, uint64_t size);
int histfs_parser_finish(histfs_parser_t *self, histfs_map_t *map);
void histfs_parser_close(histfs_parser_t *self);
