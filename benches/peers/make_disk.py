#!/usr/bin/env python3
"""make_disk.py OUT SIZE_GIB [SEED]: a raw disk as a virtual machine leaves it, about 60 % of it allocated.

As root with loop devices: a real ext4 file system with system files, media, logs, duplicates, database pages,
written zeros and deleted space. Else the same files one after the other with holes between them, no file system.
All but the system files (what lies below /usr here) depends on the seed alone.
"""
import os
import random
import shutil
import subprocess
import sys

MIB = 1 << 20


def system_files(budget):
    """Files of this machine, in a fixed order."""
    for folder, folders, names in os.walk("/usr"):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            size = os.path.getsize(path)
            if size == 0 or size > 64 * MIB:
                continue
            with open(path, "rb") as file:
                yield "sys" + path, file.read()
            budget -= size
            if budget <= 0:
                return


def media(random_, budget):
    while budget > 0:
        data = random_.randbytes(random_.randrange(MIB, 24 * MIB))
        budget -= len(data)
        yield data


def logs(random_, budget):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(random_.choices(letters, k=random_.randrange(3, 11))) for _ in range(4000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    second = 1_700_000_000
    while budget > 0:
        lines, size, limit = [], 0, random_.randrange(MIB, 24 * MIB)
        while size < limit:
            second += random_.randrange(5)
            text = random_.choices(words, weights, k=90)
            for at in range(0, 90, 9):
                line = f"{second}.{random_.randrange(10**6):06d} host{at // 9} {' '.join(text[at:at + 9])}\n"
                lines.append(line)
                size += len(line)
        budget -= size
        yield "".join(lines).encode()


def database(random_, budget):
    while budget > 0:
        pages = bytearray()
        for _ in range(random_.randrange(500, 3000)):
            used = random_.randrange(1000, 6000)
            rows = (b"row%06d;" % random_.randrange(10**6)) * (used // 14)
            pages += (random_.randbytes(used // 4) + rows).ljust(8192, b"\0")[:8192]
        budget -= len(pages)
        yield bytes(pages)


def files(size, seed):
    """(name, content), shares of the whole disk."""
    random_ = random.Random(seed)
    yield from system_files(int(size * 0.30))
    first_media = []
    for index, data in enumerate(media(random_, int(size * 0.09))):
        if index < 4:
            first_media.append(data)
        yield f"media/{index}.bin", data
    for index, data in enumerate(media(random_, int(size * 0.03))):
        yield f"deleted/{index}.bin", data
    for index, data in enumerate(logs(random_, int(size * 0.06))):
        yield f"log/{index}.log", data
    budget, index = int(size * 0.06), 0
    while budget > 0:
        data = first_media[index % len(first_media)]
        yield f"duplicate/{index}.bin", data
        budget -= len(data)
        index += 1
    for index, data in enumerate(database(random_, int(size * 0.05))):
        yield f"database/{index}.db", data
    yield "zeros.img", bytes(int(size * 0.02))


def fill_mounted(out, size, seed):
    uuid = "11111111-2222-3333-4444-555555555555"
    options = f"hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0"
    subprocess.check_call(["mkfs.ext4", "-q", "-F", "-U", uuid, "-E", options, "-m", "0", out])
    place = out + ".mnt"
    os.makedirs(place, exist_ok=True)
    subprocess.check_call(["mount", "-o", "loop,nodiscard", out, place])
    try:
        for name, data in files(size, seed):
            path = os.path.join(place, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        os.sync()
        shutil.rmtree(os.path.join(place, "deleted"))
        os.sync()
    finally:
        subprocess.check_call(["umount", place])
        os.rmdir(place)


def fill_plain(out, size, seed):
    random_ = random.Random(seed)
    at = MIB
    with open(out, "r+b") as file:
        for name, data in files(size, seed):
            if at + len(data) > size:
                break
            file.seek(at)
            file.write(data)
            # The mean gap is what brings the allocated share down to about 60 %.
            gap = random_.randrange(max(1, len(data)))
            at = (at + len(data) + gap) // 4096 * 4096 + 4096


def main():
    out, size = sys.argv[1], int(float(sys.argv[2]) * (1 << 30))
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    with open(out, "wb") as file:
        file.truncate(size)
    can_mount = os.geteuid() == 0 and shutil.which("mkfs.ext4") and os.path.exists("/dev/loop-control")
    if can_mount:
        fill_mounted(out, size, seed)
    else:
        print("no root or no loop device: a sparse file without a file system")
        fill_plain(out, size, seed)
    print(f"disk: {size >> 20} MiB, {os.stat(out).st_blocks * 512 >> 20} MiB allocated")


if __name__ == "__main__":
    main()
