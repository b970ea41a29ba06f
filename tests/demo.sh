#!/bin/bash
# demo.sh   The main job once, on a real image: makes TARGET, an older and changed copy, equal to
# SOURCE, and lets two independent readers (QEMU, 7-Zip) compare. Ends with a line OK, or fails.
#
# For a fresh Debian with a Rust toolchain; installs qemu-utils and 7zip when they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "demo: $*" >&2
    exit 1
}

say() {
    printf '\n-- %s\n' "$*"
}

install_missing() {
    local missing=() as_root=()
    command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || missing+=(qemu-utils)
    command -v 7zz >/dev/null || missing+=(7zip)
    command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    command -v apt-get >/dev/null || fail "no apt-get here; install yourself: ${missing[*]}"
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -q >/dev/null
    "${as_root[@]}" apt-get install -y -q --no-install-recommends --no-remove "${missing[@]}" \
        >/dev/null
}

# A disk that Windows wrote where one is beside the checkout, else an ext4 with the project's files.
make_source() {
    local real=../shared/images/lvm2.vhdx.gz
    if [ -f "$real" ]; then
        say "the source is a disk that Windows 10 wrote ($(basename "$real" .gz), 10 GiB)"
        gzip -dc "$real" >"$dir/source.vhdx"
        return
    fi
    say 'the source is a new ext4 with the files of this project (1 GiB)'
    mkdir "$dir/files"
    cp -r README.md Cargo.lock vhdx engine transport cli "$dir/files/"
    truncate -s 1G "$dir/raw"
    mkfs.ext4 -q -F -d "$dir/files" "$dir/raw"
    qemu-img convert -f raw -O vhdx -o subformat=dynamic "$dir/raw" "$dir/source.vhdx"
    rm -r "$dir/raw" "$dir/files"
}

# The disk as it was before it left home: other block size, and 300 places that differ.
make_target() {
    local place size commands=()
    say 'the target is an older copy with another block size: 300 places differ'
    qemu-img convert -f vhdx -O vhdx -o subformat=dynamic,block_size=2M \
        "$dir/source.vhdx" "$dir/target.vhdx"
    size=$(qemu-img info -f vhdx "$dir/source.vhdx" | sed -n 's/^virtual size:.*(\([0-9]*\) bytes)/\1/p')
    for place in $(seq 0 299); do
        # Half of them in the first 64 MiB, where there is data; the rest anywhere.
        local within=$((place % 2 ? size : 64 << 20))
        commands+=(-c "write -q -P $((place % 254 + 1)) $((place * 7919 * 4096 % within)) 4k")
    done
    qemu-io -f vhdx "${commands[@]}" "$dir/target.vhdx"
    if qemu-img compare -q -f vhdx -F vhdx "$dir/source.vhdx" "$dir/target.vhdx"; then
        fail 'the target was to differ'
    fi
}

content_sum() {
    7zz x -so -tvhdx "$1" 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

PATH=$PATH:/usr/sbin:/sbin
install_missing
command -v cargo >/dev/null || fail 'no cargo here; install Rust from https://rustup.rs'
say 'cargo build --release'
cargo build --release
failback=${CARGO_TARGET_DIR:-target}/release/failback

dir=$(mktemp -d "${TMPDIR:-/tmp}/failback-demo.XXXXXX")
trap 'rm -rf "$dir"' EXIT
make_source
make_target

say 'failback sync SOURCE TARGET --json'
"$failback" sync "$dir/source.vhdx" "$dir/target.vhdx" --json | tee "$dir/report.json"

say 'compared by QEMU and by 7-Zip'
qemu-img compare -f vhdx -F vhdx "$dir/source.vhdx" "$dir/target.vhdx" || fail 'contents differ'
qemu-img check -f vhdx "$dir/target.vhdx" || fail 'the target is damaged'
source_sum=$(content_sum "$dir/source.vhdx")
target_sum=$(content_sum "$dir/target.vhdx")
echo "sha256 of the source's content: $source_sum"
echo "sha256 of the target's content: $target_sum"
[ "$source_sum" = "$target_sum" ] || fail 'sums differ'

say 'a second run has nothing to send'
"$failback" sync "$dir/source.vhdx" "$dir/target.vhdx" --json >"$dir/second.json"
grep -Eq '"sent": *0[,}]?' "$dir/second.json" || fail 'the second run sent something'

printf '\nOK: the target is equal to the source, by failback, QEMU and 7-Zip.\n'
