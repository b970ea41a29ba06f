#!/usr/bin/env python3
"""What the disk's size costs while a machine is off: the downtime of a job with the extent tracker, 64 MiB changed since its last
pass, on a small sparse VHDX and a large one, interleaved.

    cargo build --release && sudo benches/downtime.py [--sizes GIB,GIB] [--rounds N] [--dir DIR]

Each round makes its own XFS in a file (3 GiB, sparse) with two equal images of 192 MiB of data, spread evenly; the machines are shell
scripts. Prints the medians of the downtimes, their ratio, and the medians of what each record of the journal took. Needs root, mkfs.xfs
and qemu-io.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

MIB = 1 << 20
DATA, CHANGED = 192, 64


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="4,64", help="GiB, two of them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir")
    parser.add_argument("--failback", default="target/release/failback")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    reports = {size: [] for size in sizes}
    for _ in range(args.rounds):
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=args.dir) as folder:
                reports[size].append(come_home(os.path.abspath(args.failback), folder, size))
    medians = {}
    for size in sizes:
        seconds = [report["downtime"]["measured"] for report in reports[size]]
        medians[size] = statistics.median(seconds)
        print(f"{size:4} GiB  {medians[size]:.3f} s   {' '.join(f'{s:.3f}' for s in seconds)}")
    print(f"ratio {medians[sizes[1]] / medians[sizes[0]]:.2f}")
    steps = {size: [records(report) for report in reports[size]] for size in sizes}
    for at, (name, _) in enumerate(steps[sizes[0]][0]):
        took = [statistics.median(run[at][1] for run in steps[size]) for size in sizes]
        print(f"  {name:32} {took[0]:6.0f} ms {took[1]:6.0f} ms")


def come_home(failback, folder, gib):
    image, at = os.path.join(folder, "xfs"), os.path.join(folder, "at")
    os.mkdir(at)
    run("truncate", "-s", "3G", image)
    run("mkfs.xfs", "-q", image)
    run("mount", "-o", "loop", image, at)
    try:
        cloud, home = f"{at}/cloud.vhdx", f"{at}/home.vhdx"
        run(failback, "create", cloud, "--size", f"{gib}G", "--block-size", "1M")
        write(cloud, 0x11, DATA, gib)
        run("cp", cloud, home)
        for side, power in [("cloud", "on"), ("home", "off")]:
            with open(f"{at}/{side}.power", "w") as file:
                file.write(power)
        with open(f"{at}/web.toml", "w") as file:
            file.write(definition(at, cloud, home))
        state = ["--state-dir", f"{at}/state", "--json"]
        run(failback, "job", "start", f"{at}/web.toml", "--no-wait", *state)
        write(cloud, 0x22, CHANGED, gib)
        return json.loads(run(failback, "job", "complete", "web", *state))
    finally:
        run("umount", at)


def definition(at, cloud, home):
    def machine(side):
        power = f"{at}/{side}.power"
        return (
            f'kind = "hooks"\npower = ["cat", "{power}"]\n'
            f'start = ["sh", "-c", "echo on > {power}"]\nshut_down = ["sh", "-c", "echo off > {power}"]\n'
        )

    return (
        'name = "web"\n[policy]\nstrategy = "delta"\n[source]\ntracker = "extents"\n'
        f'[source.machine]\n{machine("cloud")}[source.snapshots]\nkind = "reflink"\n'
        f'[target.machine]\n{machine("home")}[[disk]]\nid = "os"\nsource = "{cloud}"\ntarget = "{home}"\n'
    )


def write(image, pattern, pieces, gib):
    """The guest writes pieces of 1 MiB, spread evenly over the disk."""
    step = (gib << 30) // pieces
    commands = []
    for piece in range(pieces):
        commands += ["-c", f"write -P {pattern} {piece * step // MIB * MIB} 1M"]
    run("qemu-io", "-f", "vhdx", *commands, image)


def records(report):
    """What came between the records of the journal, from the stop to the start: name and milliseconds."""
    facts = [(moment.get("fact") or {}).get("fact", "-") for moment in report["timeline"]]
    moments = report["timeline"][facts.index("stopping"):]
    named = facts[facts.index("stopping"):]
    end = named.index("started")
    return [
        (f"{after['phase']}: {name}", after["at_ms"] - before["at_ms"])
        for before, after, name in zip(moments[:end], moments[1:], named[1:])
    ]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
