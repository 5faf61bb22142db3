#!/bin/sh
# SPDX-License-Identifier: BSL-1.0
#
# Installs what building sluice and its tests needs and the system lacks: a C++20 compiler, CMake >= 3.25, Ninja,
# Boost >= 1.83, Catch2 >= 3.4 and, for an example, OpenSSL. Knows Debian 12, Debian 13 and Ubuntu 24.04 and does nothing
# on a machine that has it all. Run it again at will.
#
#   cmake/bootstrap.sh        what `cmake --workflow --preset test` needs
#   cmake/bootstrap.sh --all  also what every other command of the documents, and .ci/run, need
set -eu

need_version() {  # need_version FOUND WANTED: is FOUND at least WANTED?
    [ -n "$1" ] && dpkg --compare-versions "$1" ge "$2"
}

# The version that apt would install (or has installed) of a package, without epoch; empty when it knows none.
candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \(.*:\)\{0,1\}\([0-9].*\)$/\2/p'
}

installed() {
    dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}

fail() {
    echo "bootstrap: $1" >&2
    exit 1
}

if ! command -v apt-get >/dev/null 2>&1; then
    fail "this script knows Debian and Ubuntu only; install a C++20 compiler, CMake 3.25, Ninja, Boost 1.83 and Catch2 3.4, or newer, by hand"
fi

# Debian 12 has Boost 1.83 and Catch2 3.7 in its backports alone; elsewhere the release itself is recent enough.
. /etc/os-release
case "${ID:-}-${VERSION_ID:-}" in
    debian-12) boost=libboost1.83-dev catch2=libcatch2-dev backports=yes ;;
    *)         boost=libboost-dev     catch2=catch2        backports=no ;;
esac

case "${1:-}" in
    "") extra= ;;
    --all)
        extra="clang-19 clang-format-19 clang-tidy-19 libclang-rt-19-dev libc++-19-dev libc++abi-19-dev \
git python3 pkgconf doxygen gcovr debootstrap"
        ;;
    *) fail "unknown option '$1'; there is only --all" ;;
esac

missing=
for package in g++ cmake ninja-build "$boost" "$catch2" libssl-dev $extra; do
    installed "$package" || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "bootstrap: everything is installed"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root() { "$@"; }
elif command -v sudo >/dev/null 2>&1; then
    as_root() { sudo "$@"; }
else
    fail "missing are$missing; there is no sudo, so run this as root, or have them installed"
fi

# quietly() does something as root and keeps for fail_to_get() what it says.
log=$(mktemp)
new_list=
clean_up() {
    rm -f "$log"
    [ -z "$new_list" ] || as_root rm -f "$new_list"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP
quietly() {
    as_root "$@" >"$log" 2>&1
}
fail_to_get() {
    reason=$(sed -n 's/^[EW]: //p' "$log" | head -n 1)
    fail "missing are$missing, and apt cannot get them (is there a network?): ${reason:-$(tail -n 1 "$log")}"
}

update() {  # succeeds if it reaches anything: that of several sources one is gone need not matter
    quietly apt-get update -q && grep -Eq '^(Get|Hit):' "$log"
}

update || fail_to_get
if [ "$backports" = yes ] && [ -z "$(candidate "$catch2")" ]; then
    # The mirror is the one that apt already uses for the release itself.
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
        sed -n "s/ ${VERSION_CODENAME}\$//p" | grep -v security | head -n 1)
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -n "$mirror" ] || fail "apt has no source for ${VERSION_CODENAME}, so its backports cannot be found"
    new_list=/etc/apt/sources.list.d/sluice-backports.list  # removed again unless it gives what is wanted
    echo "deb [signed-by=$key] $mirror ${VERSION_CODENAME}-backports main" | quietly tee "$new_list" || fail_to_get
    update || fail_to_get
    [ -n "$(candidate "$catch2")" ] || fail_to_get
fi

need_version "$(candidate "$boost")" 1.83 || fail "apt offers $boost '$(candidate "$boost")', but Boost 1.83 or newer is needed"
need_version "$(candidate "$catch2")" 3.4 || fail "apt offers $catch2 '$(candidate "$catch2")', but Catch2 3.4 or newer is needed"
need_version "$(candidate cmake)" 3.25 || fail "apt offers cmake '$(candidate cmake)', but CMake 3.25 or newer is needed"

# First the download, without a word, since apt has many for what it cannot get.
install="env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends"
# shellcheck disable=SC2086  # lists of words
quietly $install --download-only $missing || fail_to_get
new_list=
# shellcheck disable=SC2086
as_root $install $missing
