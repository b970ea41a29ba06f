#!/usr/bin/env python3
"""change_disk.py IN OUT PERCENT [SEED [LAYOUT]]: OUT is IN with PERCENT of its 64 KiB blocks changed, holes kept.

Blocks are drawn evenly from those that hold data (LAYOUT scattered), or as runs of 64 blocks of them (clustered), and from
holes when these do not suffice. A changed block differs in one run of 1, 2, 4, 8 or 16 pages of 4 KiB: half of them random,
half text.
"""
import os
import random
import subprocess
import sys

BLOCK = 64 << 10
PAGE = 4 << 10


def blocks_with_data(fd, size):
    blocks, at = set(), 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        blocks.update(range(start // BLOCK, (at + BLOCK - 1) // BLOCK))
    return blocks


def main():
    source, out, percent = sys.argv[1], sys.argv[2], float(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 7
    run = {"scattered": 1, "clustered": 64}[sys.argv[5] if len(sys.argv) > 5 else "scattered"]
    subprocess.check_call(["cp", "--sparse=always", source, out])
    size = os.path.getsize(source)
    count = size // BLOCK
    wanted = round(count * percent / 100)
    random_ = random.Random(f"{seed} {percent}")
    fd = os.open(out, os.O_RDWR)
    data = sorted(block for block in blocks_with_data(fd, size) if block < count)
    runs = [data[at:at + run] for at in range(0, len(data), run)]
    changed = [block for blocks in random_.sample(runs, len(runs)) for block in blocks][:wanted]
    if len(changed) < wanted:
        holes = sorted(set(range(count)).difference(data))
        changed += random_.sample(holes, wanted - len(changed))
    noise = random_.randbytes(4 << 20)
    text = " ".join(str(random_.randrange(10**9)) for _ in range(400_000)).encode()
    written = 0
    for block in sorted(changed):
        pages = random_.choice((1, 1, 2, 4, 8, 16))
        first = random_.randrange(0, 17 - pages)
        pool = random_.choice((noise, text))
        at = random_.randrange(len(pool) - pages * PAGE)
        new = bytearray(pool[at:at + pages * PAGE])
        # No two blocks get the same bytes.
        new[:8] = random_.getrandbits(63).to_bytes(8, "little")
        written += os.pwrite(fd, new, block * BLOCK + first * PAGE)
    os.fsync(fd)
    os.close(fd)
    print(f"variant: {len(changed)} of {count} blocks of 64 KiB changed, {written >> 10} KiB of new bytes")


if __name__ == "__main__":
    main()
