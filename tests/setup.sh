#!/bin/bash
# setup.sh   Installs what the tests of failback use, and nothing that is there already.
#
# A package is asked for only when its command is missing, and nothing is ever removed: a machine
# with a newer qemu-utils keeps it. Where nothing is missing this takes well under a second.
set -euo pipefail

# One line each: the command (or file, or Python module) that shows the package is there, then the package.
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
busybox         busybox-static
sfdisk          fdisk
extlinux        extlinux
/usr/lib/syslinux/mbr/mbr.bin syslinux-common
xz              xz-utils
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
        /*) [ -e "$1" ] ;;
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

# Finds out how to become root, or says what somebody else has to install.
as_root=()
find_root() {
    command -v apt-get >/dev/null 2>&1 ||
        fail "no apt-get here (Debian 12 is expected); install yourself: $*"
    [ "$(id -u)" -eq 0 ] && return
    sudo -n true 2>/dev/null || fail "not root, and no sudo; install yourself: $*"
    as_root=(sudo -n)
}

export DEBIAN_FRONTEND=noninteractive
# `--no-remove`: rather fail than replace a program that is in use on this machine.
install=(install -y -q --no-install-recommends --no-remove)

if [ ${#missing[@]} -gt 0 ]; then
    find_root "${missing[@]}"
    echo "tests/setup.sh: installing ${missing[*]}"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if ! { "${as_root[@]}" apt-get update -q &&
        "${as_root[@]}" apt-get "${install[@]}" "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        fail "apt-get could not install ${missing[*]}"
    fi
fi

# The machine emulator comes in the version of qemu-utils: of another one it would replace that. Where
# Debian's own release has an older one than this machine (qemu-utils from backports), backports are
# named in a configuration for this one call; that of the machine stays as it is.
install_machine() {
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" apt-get "${install[@]}" qemu-system-x86 && return
    local dir=$1 uri release key
    read -r uri release < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' \
        'Created-By: Packages' 'Origin: Debian' | awk '$2 ~ /^[a-z]+$/ { print; exit }')
    key=$(find /usr/share/keyrings -name 'debian-archive-keyring.*g' | sort | head -n 1)
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/parts"
    find /etc/apt -maxdepth 2 \( -name sources.list -o -path '*/sources.list.d/debian*' \) \
        -exec cp {} "$dir/parts/" \;
    echo "deb [signed-by=$key] $uri $release-backports main" >"$dir/parts/backports.list"
    cat >"$dir/apt.conf" <<END
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "-";
Dir::Etc::sourceparts "$dir/parts";
END
    chmod -R a+rX "$dir"
    "${as_root[@]}" apt-get -c "$dir/apt.conf" update -q
    "${as_root[@]}" apt-get -c "$dir/apt.conf" "${install[@]}" -t "$release-backports" \
        qemu-system-x86 qemu-utils
}

if ! is_there qemu-system-x86_64; then
    find_root qemu-system-x86
    echo "tests/setup.sh: installing qemu-system-x86"
    scratch=$(mktemp -d)
    trap 'rm -f "${log:-}"; "${as_root[@]}" rm -rf "$scratch"' EXIT
    if ! install_machine "$scratch" >"$scratch/log" 2>&1 </dev/null; then
        cat "$scratch/log" >&2
        fail "apt-get could not install qemu-system-x86"
    fi
fi

command -v cargo >/dev/null 2>&1 || fail "no cargo here; install Rust from https://rustup.rs"
if ! cargo nextest --version >/dev/null 2>&1; then
    echo "tests/setup.sh: building cargo-nextest (some minutes, once)"
    # Its own target folder: a caller's CARGO_TARGET_DIR is for the project.
    env -u CARGO_TARGET_DIR cargo install --locked cargo-nextest ||
        fail "cargo install cargo-nextest failed"
fi
