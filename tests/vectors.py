#!/usr/bin/env python3
"""vectors.py   Roots of some disks, computed from the definition in docs/formats.md and nothing else.

Needs the packages blake3 and xxhash (pip install blake3 xxhash). Prints the table of docs/formats.md; the test
`published_vectors` of the engine holds the same numbers.
"""
import blake3
import xxhash

LEAF, PIECES, NODE, ROOT = "failback leaf 1", "failback pieces 1", "failback node 1", "failback root 1"
PIECE_LEN = 65536


def digest(kind, context, data):
    if kind == "blake3":
        return blake3.blake3(data, derive_key_context=context).digest()
    seed = int.from_bytes(blake3.blake3(context.encode()).digest()[:8], "little")
    return xxhash.xxh3_128_digest(data, seed=seed)


def leaf(kind, block):
    if kind == "blake3" or len(block) <= PIECE_LEN:
        return digest(kind, LEAF, block)
    return digest(kind, PIECES, b"".join(digest(kind, LEAF, piece) for piece, _ in cut(block, PIECE_LEN)))


def root(kind, blocks, size, block_size):
    """`blocks` yields (content, how many of them in a row)."""
    level = []
    for content, count in blocks:
        level += [leaf(kind, content)] * count
    while len(level) > 1:
        cache = {}
        above = []
        for at in range(0, len(level) - 1, 2):
            pair = level[at] + level[at + 1]
            if pair not in cache:
                cache[pair] = digest(kind, NODE, pair)
            above.append(cache[pair])
        if len(level) % 2:
            above.append(level[-1])
        level = above
    top = level[0] if level else b""
    return digest(kind, ROOT, size.to_bytes(8, "little") + block_size.to_bytes(8, "little") + top).hex()


def cut(data, block_size):
    return [(data[at:at + block_size], 1) for at in range(0, len(data), block_size)]


MIB = 1 << 20
pattern = bytes(at % 251 for at in range(3 * MIB + 512))
DISKS = [
    ("empty", [], 0, MIB),
    ("hello", cut(b"hello", MIB), 5, MIB),
    ("pattern", cut(pattern, MIB), len(pattern), MIB),
    ("pattern, 64 KiB blocks", cut(pattern, 65536), len(pattern), 65536),
    ("1 TiB of zeros", [(bytes(MIB), 1 << 20)], 1 << 40, MIB),
]
for name, blocks, size, block_size in DISKS:
    for kind in ("blake3", "xxh3"):
        print(f"| {name} | {kind} | `{root(kind, blocks, size, block_size)}` |")
