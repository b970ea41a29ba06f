#!/usr/bin/env python3
"""What a saved map of the target is worth when nothing is in memory: a sync beside reading the source once.

    cargo build --release && benches/cold_map.py SOURCE OLD [--rounds N] [--dir DIR] [--block-size SIZE] [--failback PATH]

SOURCE and OLD are raw disks, such as `cargo bench -p failback-benches --bench peers -- --dir DIR` leaves there (new.raw, old.raw; --percent
and --layout say what differs). A copy of OLD is the target: made OLD again and mapped (BLAKE3, `map --save`) before each round, untimed.
Then, each with both files out of the page cache: two threads read what SOURCE holds, in pieces of 512 KiB, and one sync of two paths, in
place and unverified. Just before each a ballast of memory is let go of, as in that comparison: without it whichever comes later is slower on
a virtual machine whose host takes back what is free. Needs root, to drop the page cache. Prints both times of each round, and their medians.
"""
import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

PIECE = 512 << 10
BALLAST = 4 << 30
ONES = b"\1" * (1 << 20)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("old")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir")
    parser.add_argument("--block-size", default="1M")
    parser.add_argument("--failback", default="target/release/failback")
    args = parser.parse_args()
    reads, syncs = [], []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        target = os.path.join(folder, "target.raw")
        subprocess.run(["cp", "--sparse=always", args.old, target], check=True)
        for _ in range(args.rounds):
            make_old(args.old, target)
            state = os.path.join(folder, "state")
            shutil.rmtree(state, ignore_errors=True)
            options = ["--state-dir", state, "--hash", "blake3", "--block-size", args.block_size, "--json"]
            run([args.failback, "map", target, "--save", *options])
            make_cold(folder, args.source, target)
            reads.append(read(args.source))
            make_cold(folder, args.source, target)
            in_place = ["--apply", "in-place", "--verify", "off"]
            seconds, report = run([args.failback, "sync", args.source, target, *options, *in_place])
            syncs.append(seconds)
            found = report["map"]["target"]
            assert found["state"] == "trusted", found
            print(f"read {reads[-1]:.2f} s, sync {seconds:.2f} s, not read of the target {found['vouched_bytes'] >> 20} MiB", flush=True)
    of_read, of_sync = statistics.median(reads), statistics.median(syncs)
    print(f"medians: reading the source {of_read:.2f} s, sync {of_sync:.2f} s: {of_sync / of_read:.2f} times")


def run(command):
    started = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return time.monotonic() - started, json.loads(done.stdout)


def read(source):
    """Seconds that two threads need for what the file holds."""
    pieces = data_of(source)
    turn = threading.Lock()

    def work():
        disk, buffer = os.open(source, os.O_RDONLY), memoryview(bytearray(PIECE))
        while True:
            with turn:
                piece = next(pieces, None)
            if piece is None:
                break
            os.preadv(disk, [buffer[:piece[1] - piece[0]]], piece[0])
        os.close(disk)

    threads = [threading.Thread(target=work) for _ in range(2)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def data_of(path):
    """Ranges that are no holes, in pieces."""
    disk = os.open(path, os.O_RDONLY)
    at, length = 0, os.fstat(disk).st_size
    while at < length:
        try:
            at = os.lseek(disk, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(disk, at, os.SEEK_HOLE)
        while at < end:
            yield at, min(end, at + PIECE)
            at = min(end, at + PIECE)
    os.close(disk)


def make_old(old, target):
    """Writes what differs, so that the rest stays where it is."""
    source, disk = os.open(old, os.O_RDONLY), os.open(target, os.O_RDWR)
    for start, end in itertools.chain(data_of(old), list(data_of(target))):
        wanted = os.pread(source, end - start, start)
        if os.pread(disk, end - start, start) != wanted:
            os.pwrite(disk, wanted, start)
    os.fsync(disk)
    os.close(source)
    os.close(disk)


def make_cold(folder, *paths):
    """Takes the files out of the page cache, and lets go of memory that has just been used."""
    os.sync()
    for path in paths:
        disk = os.open(path, os.O_RDONLY)
        os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(disk)
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("1")
    ballast = os.path.join(folder, "ballast")
    with open(ballast, "wb") as file:
        for _ in range(BALLAST // len(ONES)):
            file.write(ONES)
        os.fsync(file.fileno())
    time.sleep(1)
    os.remove(ballast)


if __name__ == "__main__":
    main()
