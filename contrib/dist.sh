#!/bin/sh
# Makes the sdist, and from that the wheel, in dist/; looks into both; then tries the wheel out in an empty environment.
# A build can lose the compiled module, or files that only the sdist needs, without a word: so what counts is the result.
set -eu

cd "$(dirname "$0")/.."
project=$(pwd -P)
python=$project/.venv/bin/python3

fail() {
    printf 'make dist: FAILED: %s\n' "$*" >&2
    exit 1
}

# What an older egg-info lists would get into the sdist even if it is no longer wanted.
rm -rf dist man ./*.egg-info
log=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$log" "$scratch"' EXIT
"$python" contrib/manpages.py man
"$python" -m build --outdir dist . >"$log" 2>&1 || {
    cat "$log" >&2
    fail "the build stopped, see above"
}
set -- dist/*.tar.gz
sdist=$1
set -- dist/*.whl
wheel=$1

tar -tzf "$sdist" | sed 's,^[^/]*/,,' >"$scratch/sdist"
for name in pyproject.toml README.md LICENSE Makefile contrib/setup.sh histfs/_rsync_build.py histfs/csrc/maps.h histfs/csrc/maps.c \
    histfs/csrc/parser.c histfs/csrc/walk.h histfs/csrc/walk.c histfs/csrc/sha1.c histfs/csrc/calls.h histfs/csrc/checked.h histfs/csrc/checked.c histfs/csrc/copy.h histfs/csrc/copy.c histfs/csrc/moved.h histfs/csrc/moved.c histfs/csrc/noise.h histfs/csrc/noise.c histfs/csrc/pages.h histfs/csrc/pages.c histfs/csrc/times.c histfs/_rsync.pyi histfs/_fuse_build.py histfs/_fuse.pyi histfs/_tree_build.py histfs/_tree.pyi histfs/py.typed tests/conftest.py \
    man/histfs.1 man/histfs-restore.1 contrib/completion/_histfs; do
    grep -qx "$name" "$scratch/sdist" || fail "$name is missing in $sdist"
done
! grep -E '\.(so|pyc)$|__pycache__|^build/|^\.venv' "$scratch/sdist" || fail "built files in $sdist"

"$python" -m zipfile -l "$wheel" | sed -n '2,$s, .*,,p' >"$scratch/wheel"
for name in histfs/_rsync.abi3.so histfs/_rsync.pyi histfs/_fuse.abi3.so histfs/_fuse.pyi histfs/_tree.abi3.so histfs/_tree.pyi histfs/py.typed histfs/cli/__init__.py; do
    grep -qx "$name" "$scratch/wheel" || fail "$name is missing in $wheel"
done
for name in man/man1/histfs.1 man/man1/histfs-restore.1 bash-completion/completions/histfs.bash zsh/site-functions/_histfs \
    fish/vendor_completions.d/histfs.fish; do
    grep -q "/data/share/$name\$" "$scratch/wheel" || fail "$name is missing in $wheel"
done
! grep -E '\.(c|h|o|pyc)$|^(tests|bench|contrib)/' "$scratch/wheel" || fail "sources or foreign files in $wheel"
# Of our own modules, no more and no less than git's, or than the directory's.
(cd histfs && find . -name '*.py' | sed 's,^\.,histfs,' | sort) >"$scratch/ours"
grep '\.py$' "$scratch/wheel" | sort | diff "$scratch/ours" - || fail "the modules in $wheel are not those in histfs/"
case $wheel in
    *-cp311-abi3-linux_*.whl) ;;
    *) fail "$wheel has the wrong tag: cp311-abi3 was wanted" ;;
esac

"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python3" -m pip install --quiet --no-input --disable-pip-version-check "$wheel"
cd "$scratch" # away from the sources
venv/bin/python3 -I "$project/contrib/smoke.py" venv/bin/histfs || fail "the installed wheel does not work"
cd "$project"
ls -l dist
