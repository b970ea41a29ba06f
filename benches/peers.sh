#!/bin/sh
# Compares failback (two processes over loopback TCP) with rsync on one disk. See docs/benchmarks.md.
#
#   benches/peers.sh [--size GIB] [--rounds N] [--percent P] [--dir DIR] [--keep] [-- OPTIONS OF compare.py]
#
# Needs about four times SIZE in DIR (default: a new folder below $TMPDIR or /tmp), python3, a Rust toolchain,
# and rsync, which it installs where it may. Root gets a disk with a real ext4 file system.
set -eu

size=4 rounds=5 percent=1 dir= keep=
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --percent) percent=$2; shift 2 ;;
        --dir) dir=$2; shift 2 ;;
        --keep) keep=1; shift ;;
        --) shift; break ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v rsync >/dev/null; then
    apt-get install -y --no-install-recommends rsync >/dev/null || { echo "rsync is missing" >&2; exit 1; }
fi
(cd "$here/.." && cargo build --release -p failback-cli)
target_dir=$(cd "$here/.." && cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')

if [ -z "$dir" ]; then
    dir=$(mktemp -d "${TMPDIR:-/tmp}/failback-peers.XXXXXX")
fi
mkdir -p "$dir"
# A disk that is there is used again: with --keep and --dir only the first run makes it.
made_with="$size GiB, $percent %"
clean() {
    if [ -z "$keep" ]; then
        rm -f "$dir/old.raw" "$dir/new.raw" "$dir/target.raw" "$dir/made-with"
        rmdir "$dir" 2>/dev/null || true
    fi
}
trap clean EXIT
trap 'exit 1' INT TERM
if [ "$(cat "$dir/made-with" 2>/dev/null)" != "$made_with" ]; then
    rm -f "$dir/made-with"
    python3 "$here/peers/make_disk.py" "$dir/old.raw" "$size"
    python3 "$here/peers/change_disk.py" "$dir/old.raw" "$dir/new.raw" "$percent"
    echo "$made_with" >"$dir/made-with"
fi

python3 "$here/peers/compare.py" --dir "$dir" --failback "$target_dir/release/failback" \
    --rounds "$rounds" --percent "$percent" \
    --record "$here/record/$(date -u +%Y-%m-%d)-delta-${percent}pct-${size}gib.csv" "$@"
