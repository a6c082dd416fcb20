#!/bin/sh
# Makes this directory ready: system packages (Debian and relatives), .venv, and histfs itself, compiled in place.
#
#   contrib/setup.sh run     what histfs needs
#   contrib/setup.sh test    and what its tests need
#   contrib/setup.sh bench   and what the bench compares and draws with, as far as there are packages of it
#   contrib/setup.sh fuzz    and what guides fuzzing
#   contrib/setup.sh dev     and linters, types, packaging
#
# Does only what is missing; when nothing is, it takes a few hundredths of a second. Installs system packages as root
# or through sudo; otherwise it says which one command to type and fails.
set -eu

usage='usage: contrib/setup.sh run|test|bench|fuzz|dev'
level=${1:?"$usage"}
run_packages='python3 python3-venv python3-dev gcc libc6-dev librsync-dev libdeflate-dev libfuse3-dev fuse3 pkg-config'
test_packages='rdiff rsync attr acl libacl1-dev procps strace e2fsprogs xfsprogs mount' # rdiff-backup calls ps; pylibacl is compiled with libacl1-dev
bench_packages='restic borgbackup bup python3-pyfuse3 python3-llfuse python3-fuse time' # three are for their mounts
case $level in
    run) packages=$run_packages extras='' provides='run' ;;
    test) packages="$run_packages $test_packages" extras='[test]' provides='run test' ;;
    bench) packages="$run_packages $test_packages" extras='[test,bench]' provides='run test bench' ;;
    fuzz) packages="$run_packages $test_packages" extras='[test,fuzz]' provides='run test fuzz' ;;
    dev) packages="$run_packages $test_packages" extras='[test,dev]' provides='run test dev' ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # dpkg needs them, and an ordinary user's PATH may lack them
LC_ALL=C.UTF-8
export PATH LC_ALL
cd "$(dirname "$0")/.."
project=$(pwd -P)

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# --- system packages ---------------------------------------------------------------------------------------------

missing_packages() { # $1: a list of words
    # shellcheck disable=SC2086
    installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' $1 2>/dev/null || :)"
    for package in $1; do
        case $installed in
            *" installed=$package "*) ;;
            *) printf ' %s' "$package" ;;
        esac
    done
}

# apt-get as root, or as root through sudo if that can work: without a password, or with somebody there to type it.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env "$@"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo env "$@"
    else
        return 111
    fi
}

apt() {
    as_root DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

install_packages() {
    say "system packages:$1"
    command="apt-get update && apt-get install -y --no-install-recommends$1"
    as_root true || fail "installing them takes root; type this, then try again:

    $(command -v sudo >/dev/null && echo "sudo sh -c" || echo "su -c") '$command'
"
    # The lists of a fresh machine are empty or old: then, and only then, fetch them.
    # shellcheck disable=SC2086  # a list of words
    apt install -y --no-install-recommends $1 >/dev/null 2>&1 ||
        { apt update && apt install -y --no-install-recommends $1 >/dev/null; } ||
        fail "could not install them with: $command"
}

# One by one: the bench goes on without those that are not there.
install_what_can_be() {
    as_root true || { [ -z "$1" ] || say "not root: the bench goes on without$1" && return; }
    [ -z "$1" ] || apt update >/dev/null 2>&1 || :
    for package in $1; do
        say "system package: $package"
        apt install -y --no-install-recommends "$package" >/dev/null 2>&1 || say "the bench goes on without $package"
    done
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
    missing=$(missing_packages "$packages")
    [ -z "$missing" ] || install_packages "$missing"
    [ "$level" != bench ] || install_what_can_be "$(missing_packages "$bench_packages")"
fi

# --- .venv -------------------------------------------------------------------------------------------------------

# Whether every user can reach and run program $1: an interpreter below a private home would shut out the services and
# tests that run as somebody else.
is_public() {
    place=$(realpath -e -- "$1" 2>/dev/null) || return 1
    while :; do
        case $(stat -c %A -- "$place") in
            ???????r?[xt]) ;;
            *) return 1 ;;
        esac
        [ "$place" != / ] || return 0
        place=$(dirname -- "$place")
    done
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for python in /usr/bin/python3 /usr/local/bin/python3 "$(command -v python3 || :)" \
        /usr/bin/python3.1[1-9] /usr/local/bin/python3.1[1-9]; do
        # A wrapper (of pyenv, for one) is not the interpreter: ask it for the real one.
        python=$("$python" -c 'import sys; print(sys._base_executable)' 2>/dev/null) || continue
        if is_public "$python" && is_recent "$python"; then
            printf '%s\n' "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer that every user can run; install python3 in /usr/bin"
}

# A .venv that cannot be kept: broken, too old, private, or moved (its programs name the place where it was made).
is_usable() {
    is_public .venv/bin/python3 && is_recent .venv/bin/python3 && .venv/bin/python3 -c 'import pip' 2>/dev/null &&
        { [ ! -e .venv/place ] || [ "$(cat .venv/place)" = "$project" ]; }
}

# What an installation was made from. Contents, not times: a checkout changes times.
inputs() {
    realpath .venv/bin/python3
    cat pyproject.toml histfs/_*_build.py histfs/csrc/* 2>/dev/null | sha256sum
}

is_done() {
    is_public .venv/bin/python3 && [ -e histfs/_rsync.abi3.so ] && [ -e histfs/_fuse.abi3.so ] && [ -e histfs/_tree.abi3.so ] &&
        [ "$(cat .venv/place 2>/dev/null)" = "$project" ] &&
        [ "$(cat ".venv/installed-$level" 2>/dev/null)" = "$(inputs)" ]
}

! is_done || exit 0
exec 9<"$0" && flock 9 # one at a time
! is_done || exit 0

if ! is_usable; then
    python=$(find_python)
    say ".venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
fi
printf '%s\n' "$project" >.venv/place

say "pip install -e '.$extras'"
rm -f .venv/installed-*
log=$(mktemp)
trap 'rm -f "$log"' EXIT
.venv/bin/python3 -m pip install --no-input --disable-pip-version-check --use-pep517 --editable ".$extras" >"$log" 2>&1 || {
    cat "$log" >&2
    fail "pip could not install histfs into .venv: see above"
}
for name in $provides; do
    inputs >".venv/installed-$name"
done
