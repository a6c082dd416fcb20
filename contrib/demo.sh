#!/bin/sh
# The main job, from end to end, on real files: three sessions, the history as folders, an old file back.
#
#   make run               with this project's own files
#   make run SRC=DIR       with a copy (cp -a) of DIR, which itself is only read
#   make run KEEP=1        leaves the history mounted, and says where
#
# Every command is shown as one would type it and then run. Whatever is not as it must be ends the demo with an error:
# each snapshot is compared with a plain copy of the source, made when the session ran.
set -eu

project=$(cd "$(dirname "$0")/.." && pwd -P)
PATH=$project/.venv/bin:$PATH
export PATH

say() { printf '\n# %s\n' "$*"; }
fail() {
    printf '\nmake run: FAILED: %s\n' "$*" >&2
    exit 1
}
quoted() { # "$1" as one word for a shell, with quotes only where it takes some
    case $1 in
        *[!A-Za-z0-9./_+@:=-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
        *) printf %s "$1" ;;
    esac
}
show() {
    printf '$ %s\n' "$1"
    eval "$1" || fail "this command ended with exit code $?: $1"
}
show_diff() { # which ends with 1 if there are differences (a fifo always is one), with 2 if it could not read
    printf '$ %s\n' "$1"
    eval "$1" || [ $? = 1 ] || fail "this command could not read all files: $1"
}

# --- a place to play ---------------------------------------------------------------------------------------------

[ -z "${SRC:-}" ] || [ -d "$SRC" ] || fail "SRC=$SRC is not a directory"
[ -z "${SRC:-}" ] || SRC=$(cd "$SRC" && pwd -P)
if ! [ -r /dev/fuse ] || ! [ -w /dev/fuse ]; then
    fail "/dev/fuse is missing or closed to you; try 'modprobe fuse' (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
fi

place=$(mktemp -d "${TMPDIR:-/tmp}/histfs-demo.XXXXXX")
place=$(cd "$place" && pwd -P)
keep=
is_mounted() { mountpoint -q "$place/history"; }
clean_up() {
    [ -z "$keep" ] || return 0
    cd /
    if is_mounted; then
        histfs umount "$place/history" >/dev/null 2>&1 || fusermount3 -u "$place/history" 2>/dev/null ||
            fusermount3 -u -z "$place/history" || umount -l "$place/history" || :
    fi
    # Never below a mount that would not go.
    is_mounted || { chmod -R u+rwX "$place" && rm -rf --one-file-system "$place"; }
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

show "cd $(quoted "$place")"
mkdir source history truth
if [ -n "${SRC:-}" ]; then
    say "A copy of $SRC to work with (the original is only read)"
    show "cp -a $(quoted "$SRC/.") source"
elif (cd "$project" && [ -e .git ] && git rev-parse) 2>/dev/null; then
    say "This project's files as git knows them"
    # shellcheck disable=SC2016  # the inner shell's variable
    (cd "$project" && git ls-files -z | xargs -0 sh -c 'for name; do
        if [ -e "$name" ] || [ -L "$name" ]; then printf "%s\0" "$name"; fi
    done' sh) >files
    tar -C "$project" --null --no-recursion -T files -cf - | tar -xpf - -C source
else
    say "This project's files"
    (cd "$project" && tar --exclude=./.venv --exclude=./build --exclude=./dist --exclude=__pycache__ --exclude='.*_cache' \
        -cf - .) | tar -xpf - -C source
fi

# --- three sessions ----------------------------------------------------------------------------------------------

# Five files to change: the largest up to a few megabytes, with names that can be shown without quotes.
find_files() {
    find source -mindepth 1 -name '*[!A-Za-z0-9._+-]*' -prune -o -name '.*' -prune -o -name '-*' -prune -o \
        -type f -size +0 -size -8M -writable -printf '%s %p\n' | sort -k1,1nr -k2 | head -n 5 | cut -d' ' -f2- >picked
}
find_files
if [ "$(wc -l <picked)" -lt 5 ]; then
    say "There are few files to change here, so here are some more"
    # shellcheck disable=SC2016  # shown and run as it is
    show 'for n in 1 2 3 4 5; do seq $n "${n}00" > source/demo-$n.txt; done'
    find_files
fi
pick() { sed -n "$1p" picked; }
edited=$(pick 1) removed=$(pick 2) renamed=$(pick 3) closed=$(pick 4) edited_later=$(pick 5)

now=$(date +%s)
first=$((now - 2 * 86400)) second=$((now - 86400))
snapshot_name() { date -d "@$1" +@%Y-%m-%dT%H:%M; }
one=$(snapshot_name "$first") two=$(snapshot_name "$second")
remember() { cp -a source "truth/$1"; }

say "The first session (dated two days back, so that there is some history to see)"
remember "$one"
show "histfs --current-time $first backup source repository"

say "A day later: a file edited, one added, one removed"
show "echo 'a line of the second day' >> $edited"
show "mkdir -p source/notes; date > source/notes/today.txt"
show "rm $removed"
remember "$two"
show "histfs --current-time $second backup source repository"

say "Today: more edits, a rename, other permissions"
show "sed -i '1i a line of today, at the top' $edited"
show "echo 'and one here' >> $edited_later"
show "mv $renamed $renamed.old"
show "chmod 600 $closed"
remember newest
show "histfs backup source repository"
show "histfs list sessions repository"

say "The newest state is a plain directory, next to the history of the older ones"
show_diff "diff -r --no-dereference --exclude=rdiff-backup-data source repository"

# --- the history -------------------------------------------------------------------------------------------------

say "All of it, as folders"
show "histfs mount repository history"
is_mounted || fail "'histfs mount' came back without a mount on $place/history"
show "cd history"
show "ls -l"
for name in "$one" "$two"; do
    [ -d "$name" ] || fail "the mount has no folder $name"
done
three=$(printf '%s\n' @????-??-??T* | sort | tail -n 1)
[ "$(printf '%s\n' @????-??-??T* | wc -l)" = 3 ] || fail "the mount does not show three snapshots"
show "find $one -type f | head -n 5"

say "What changed from the first day to the second"
show_diff "diff -r --no-dereference $one $two" >../shown
cat ../shown
sed 1d ../shown >../found
(cd ../truth && diff -r --no-dereference "$one" "$two") >../expected || :
cmp ../found ../expected || fail "the snapshots differ otherwise than the source did"

say "The edited file in its three states, and the oldest one back"
inside=${edited#source/}
show "ls -l @????-??-??T*/$inside"
show "cp -p $one/$inside ../restored"
show "cd .."
show "ls -l restored"

say "The same without a mount, and a whole snapshot"
show "histfs restore --at $first repository/$inside restored-too"
show "cmp restored restored-too"
show "histfs restore --at $second repository restored-all"

# --- is it all true? ---------------------------------------------------------------------------------------------

say "Each snapshot against a plain copy of that day: names, contents, types, permissions, times"
listing() ( # without what is not recorded (times of links) or shown otherwise (the top has the session's time)
    cd "$1"
    find . -path ./rdiff-backup-data -prune -o -name . -printf '%p %y %m %U:%G\n' -o -type l -printf '%p %y %U:%G %l\n' -o -type f -printf '%p %y %m %U:%G %Ts %s\n' -o -printf '%p %y %m %U:%G %Ts\n' |
        LC_ALL=C sort
    find . -path ./rdiff-backup-data -prune -o -type f -exec sha256sum {} + | LC_ALL=C sort -k 2
)
same() {
    listing "truth/$2" >expected
    listing "$1" >found
    cmp -s expected found || fail "$1 is not what the source was: $(diff expected found | head -n 20)"
    printf '%s: as it was\n' "$1"
}
same repository newest
same "history/$one" "$one"
same "history/$two" "$two"
same "history/$three" newest
same restored-all "$two"
cmp restored "truth/$one/$inside" || fail "the restored file is not the one of the first day"
[ "$(stat -c '%a %Y' restored)" = "$(stat -c '%a %Y' "truth/$one/$inside")" ] ||
    fail "the restored file has other permissions or another time than on the first day"
show "histfs verify repository"
show "histfs verify --at 999B repository" # the oldest, so through all increments

if [ -n "${KEEP:-}" ]; then
    keep=1
    say "Left mounted: $(quoted "$place/history"). When you have seen enough:"
    printf '%s umount %s && rm -r %s\n' "$(quoted "$project/.venv/bin/histfs")" \
        "$(quoted "$place/history")" "$(quoted "$place")"
else
    show "histfs umount history"
    ! is_mounted || fail "the mount is still there after 'histfs umount'"
fi
say "Done: every file of three sessions, as it was"
