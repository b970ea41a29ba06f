#!/usr/bin/env python3
"""Whether the planner chooses well: both strategies are really run at each point of a grid, and compared with its choice.

    cargo build --release && benches/plan_grid.py [--size MIB] [--percent LIST] [--rate LIST] [--rounds N] [--layout scattered|clustered] [--first]

A raw disk of which 70 % is data (half of each 64 KiB random, half text), and a copy with P % of its 64 KiB blocks replaced (seeded). The
target is behind an agent on loopback TCP, the link limited to so many bytes per second (0: not at all), page cache hot, all defaults but
`--optimize time`. At each point `plan` chooses; then a delta and a full copy are run, each from the same old target, the fastest of the
rounds counts. Each plan knows what the syncs before it saw of the target's disk, as on a host where syncs were run before (the first two
are a delta and a full copy of 30 %, which no point has); with `--first` none does, as on a host where none was. Regret: how much longer the
chosen one took than the better one. Prints one line of a table for each point.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

BLOCK = 64 << 10
TEXT = b"The quick brown fox jumps over the lazy dog, %08d times. "


def main():
    args = arguments()
    points = []
    print("| changed % | link | predicted delta | full | measured delta | full | chosen | regret % |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        old, new = (os.path.join(folder, name) for name in ["old.raw", "new.raw"])
        make(old, args.size << 20)
        if not args.first:
            change(old, new, 30, args.layout)
            measure(args, folder, 0)
        for percent in args.percent:
            change(old, new, percent, args.layout)
            for rate in args.rate:
                point = measure(args, folder, rate)
                points.append(point)
                print(line(percent, rate, *point), flush=True)
    regrets = [regret(*point) for point in points]
    good = sum(value <= 0.10 for value in regrets)
    print(f"\n{good} of {len(points)} points within 10 %; worst {max(regrets):.0%}, mean {sum(regrets) / len(regrets):.1%}")
    sys.exit(good < len(points))


def arguments():
    numbers = lambda of: lambda text: [of(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--percent", type=numbers(float), default=[0.1, 1, 5, 20, 50, 90])
    parser.add_argument("--rate", type=numbers(int), default=[10, 40, 160, 0], help="MiB per second; 0: no limit")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layout", choices=["scattered", "clustered"], default="scattered")
    parser.add_argument("--first", action="store_true", help="plans know of no syncs before them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir")
    parser.add_argument("--failback", default="target/release/failback")
    return parser.parse_args()


def block(number):
    text = (TEXT % number) * (BLOCK // 2 // len(TEXT % number) + 1)
    return os.urandom(BLOCK // 2) + text[:BLOCK // 2]


def make(path, size):
    with open(path, "wb") as disk:
        disk.truncate(size)
        for number in range(size * 7 // 10 // BLOCK):
            disk.write(block(number))


def change(old, new, percent, layout):
    subprocess.run(["cp", "--sparse=always", old, new], check=True)
    blocks = os.path.getsize(old) * 7 // 10 // BLOCK
    count = max(1, int(blocks * percent / 100))
    chosen = random.Random(1).sample(range(blocks), count) if layout == "scattered" else range(count)
    with open(new, "r+b") as disk:
        for number in chosen:
            disk.seek(number * BLOCK)
            disk.write(block(number + blocks))


def measure(args, folder, rate):
    limit = ["--limit-rate", f"{rate}M"] if rate else []
    target = os.path.join(folder, "target.raw")
    agent = subprocess.Popen([args.failback, "serve", "--listen", "tcp://127.0.0.1:0", "--grant", f"disk={target}:rw", "--json"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = json.loads(agent.stdout.readline())["listening"]
        ends = [os.path.join(folder, "new.raw"), f"{address}/disk"]
        report = lambda command, *more: json.loads(subprocess.run(
            [args.failback, command, *ends, "--json", *limit, *more], check=True, stdout=subprocess.PIPE).stdout)
        reset(folder, args.first)
        plan = report("plan", "--optimize", "time", "--seed", str(args.seed))
        seconds = {"delta": [], "full": []}
        for _ in range(args.rounds):
            for strategy, times in seconds.items():
                reset(folder, args.first)
                times.append(report("sync", "--strategy", strategy)["seconds"]["total"])
    finally:
        agent.terminate()
        agent.wait()
    return plan, min(seconds["delta"]), min(seconds["full"])


def reset(folder, forgets):
    """The old disk again, without any state but what was seen of its place, flushed, and both disks in memory."""
    state = os.path.join(folder, ".failback")
    seen = os.path.join(state, "seen-rates")
    for entry in os.scandir(state) if os.path.isdir(state) else []:
        if entry.is_dir():
            shutil.rmtree(entry)
    if forgets and os.path.exists(seen):
        os.remove(seen)
    target = os.path.join(folder, "target.raw")
    if os.path.exists(target):
        os.remove(target)
    subprocess.run(["cp", "--sparse=always", os.path.join(folder, "old.raw"), target], check=True)
    os.sync()
    subprocess.run(["cat", target, os.path.join(folder, "new.raw")], check=True, stdout=subprocess.DEVNULL)


def regret(plan, delta, full):
    chosen = {"delta": delta, "full": full}[plan["strategy"]]
    return chosen / min(delta, full) - 1


def line(percent, rate, plan, delta, full):
    costs = plan["plan"]
    link = f"{rate} MiB/s" if rate else "no limit"
    lost = regret(plan, delta, full)
    return (f"| {percent:g} | {link} | {costs['delta']['seconds']:.2f} | {costs['full']['seconds']:.2f} "
            f"| {delta:.2f} | {full:.2f} | {plan['strategy']} | {lost * 100:.0f} |")


if __name__ == "__main__":
    main()
