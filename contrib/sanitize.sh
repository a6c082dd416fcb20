#!/bin/sh
# Tests of the C code, compiled anew in a copy with AddressSanitizer and UndefinedBehaviorSanitizer. Arguments go to
# pytest, in place of those tests that matter.
set -eu

cd "$(dirname "$0")/.."
copy=$(mktemp -d "${TMPDIR:-/var/tmp}/histfs-sanitize.XXXXXX")
trap 'rm -rf "$copy"' EXIT INT TERM
cp -a Makefile README.md LICENSE pyproject.toml contrib docs histfs tests "$copy"
rm -f "$copy"/histfs/*.so
cd "$copy"
CFLAGS='-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined' \
    LDFLAGS='-fsanitize=address,undefined' sh contrib/setup.sh test
[ $# -gt 0 ] || set -- tests/test_rsync.py tests/test_rsync_maps.py tests/test_rsync_reading.py tests/test_rsync_small.py \
    tests/test_rsync_checked.py tests/test_rsync_misuse.py tests/fuzz tests/store/test_copying.py tests/store/test_direct.py tests/store/test_sums.py \
    tests/store/test_delta.py tests/store/test_seekable.py \
    tests/store/test_large_content.py tests/store/test_sweep.py tests/store/test_sweep_selected.py tests/store/test_scouts.py tests/store/test_far_times.py \
    tests/mount/test_fuse.py tests/mount/test_mount_damaged_files.py -m 'not long' \
    -k 'not memory_stays_bounded and not garbage_is_freed and not without_python' # sanitizers take memory, and time
# Python itself is not compiled so: what it leaks at its end, and that libasan was loaded for it, is none of ours.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
    .venv/bin/python3 -m pytest -q -p no:cacheprovider --capture=sys "$@"
