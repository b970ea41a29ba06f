#!/usr/bin/env python3
"""What the stage costs: the same delta staged, staged without an undo, and in place, interleaved.

    cargo build --release && benches/stage.py [--size GIB] [--percent P] [--rounds N] [--dir DIR]

A disk of which 70 % is random data, and a copy with P % of its 64 KiB blocks replaced at random places (seeded). One process, raw to
raw, page cache hot, default verify. Between runs the target is made the old disk again and flushed, untimed. Prints medians and ratios.
"""
import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time

BLOCK = 64 << 10
MODES = {"staged": [], "staged, no undo": ["--no-undo"], "in place": ["--apply", "in-place"]}


def main():
    args = arguments(percent=1)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        old, new, target = (os.path.join(folder, name) for name in ["old.raw", "new.raw", "target.raw"])
        make(old, args.size << 30)
        change(old, new, args.percent)
        subprocess.run(["cp", "--sparse=always", old, target], check=True)
        times = {mode: [] for mode in MODES}
        for round_ in range(args.rounds):
            order = list(MODES)[round_ % len(MODES):] + list(MODES)[:round_ % len(MODES)]
            for mode in order:
                times[mode].append(timed([args.failback, "sync", new, target, *MODES[mode]]))
                timed([args.failback, "sync", old, target, "--apply", "in-place", "--verify", "off"])
                os.sync()
    base = statistics.median(times["in place"])
    for mode, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{mode:16} {middle:6.2f} s  {middle / base:5.2f} x   {' '.join(f'{s:.2f}' for s in seconds)}")


def arguments(percent):
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4, help="GiB")
    parser.add_argument("--percent", type=float, default=percent)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir")
    parser.add_argument("--failback", default="target/release/failback")
    return parser.parse_args()


def make(path, size):
    with open(path, "wb") as disk:
        disk.truncate(size)
        for at in range(0, size * 7 // 10, 1 << 26):
            disk.seek(at)
            disk.write(os.urandom(1 << 26))


def change(old, new, percent):
    subprocess.run(["cp", "--sparse=always", old, new], check=True)
    blocks = os.path.getsize(new) // BLOCK
    with open(new, "r+b") as disk:
        for block in random.Random(1).sample(range(blocks), int(blocks * percent / 100)):
            disk.seek(block * BLOCK)
            disk.write(os.urandom(BLOCK))
    os.sync()


def timed(command):
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
