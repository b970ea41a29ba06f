#!/bin/bash
# setup.sh   Installs what the tests of failback use, and nothing that is there already.
#
# A package is asked for only when its command is missing, and nothing is ever removed: a machine
# with a newer qemu-utils keeps it. Where nothing is missing this takes well under a second.
set -euo pipefail

# One line each: the command (or Python module) that shows the package is there, then the package.
needs='
cc              gcc
c++             g++
gzip            gzip
bzip2           bzip2
python3         python3
rsync           rsync
strace          strace
script          bsdutils
mount           mount
findmnt         util-linux
mkfs.ext4       e2fsprogs
mkfs.xfs        xfsprogs
mkfs.btrfs      btrfs-progs
setfattr        attr
setfacl         acl
fusermount3     fuse3
qemu-img        qemu-utils
qemu-io         qemu-utils
qemu-storage-daemon qemu-utils
7zz             7zip
vhdiinfo        libvhdi-utils
python3:pyvhdi  python3-libvhdi
'

fail() {
    echo "tests/setup.sh: $*" >&2
    exit 1
}

is_there() {
    case $1 in
        # Debian's own Python: another one on the search path does not see its packages.
        python3:*) /usr/bin/python3 -c "import ${1#python3:}" 2>/dev/null ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Tools of the administrator (mkfs.*) are not in every user's search path.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()
while read -r name package; do
    [ -n "$name" ] || continue
    is_there "$name" || missing+=("$package")
done <<<"$needs"

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null 2>&1 ||
        fail "no apt-get here (Debian 12 is expected); install yourself: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || fail "not root, and no sudo; install yourself: ${missing[*]}"
        as_root=(sudo -n)
    fi
    echo "tests/setup.sh: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    # `--no-remove`: rather fail than replace a program that is in use on this machine.
    if ! { "${as_root[@]}" apt-get update -q &&
        "${as_root[@]}" apt-get install -y -q --no-install-recommends --no-remove \
            "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        fail "apt-get could not install ${missing[*]}"
    fi
fi

command -v cargo >/dev/null 2>&1 || fail "no cargo here; install Rust from https://rustup.rs"
if ! cargo nextest --version >/dev/null 2>&1; then
    echo "tests/setup.sh: building cargo-nextest (some minutes, once)"
    # Its own target folder: a caller's CARGO_TARGET_DIR is for the project.
    env -u CARGO_TARGET_DIR cargo install --locked cargo-nextest ||
        fail "cargo install cargo-nextest failed"
fi
