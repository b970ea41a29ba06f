#!/usr/bin/env python3
"""Runs failback and rsync on the same disks, interleaved, and prints medians and ratios. Called by peers.sh.

Each run: a fresh copy of the old disk, flushed; both files read into the page cache; then, timed, one contender and an
fsync of the target; then, untimed, `cmp`. The order of the contenders turns by one from round to round.
"""
import argparse
import csv
import datetime
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import time

FIELDS = [
    "date", "disk_mib", "percent", "round", "contender", "seconds", "cpu_seconds", "plan_seconds", "copy_seconds",
    "verify_seconds", "wire_bytes", "cpus_busy_before",
]
RSYNC_DELTA = ("rsync delta", ["rsync", "--inplace", "--no-whole-file"])
RSYNC_WHOLE = ("rsync whole", ["rsync", "--inplace", "--whole-file"])


def main():
    args = arguments()
    source, base = os.path.join(args.dir, "new.raw"), os.path.join(args.dir, "old.raw")
    target = os.path.join(args.dir, "target.raw")
    contenders = [failback(args.failback, "blake3", []), failback(args.failback, "xxh3", [])]
    contenders += [rsync(*RSYNC_DELTA), rsync(*RSYNC_WHOLE)]
    if args.extra:
        contenders += [failback(args.failback, "blake3", option.split()) for option in args.extra]
    facts = machine(args)
    for name, value in facts.items():
        print(f"{name}: {value}")
    rows = []
    for round_ in range(args.rounds):
        turn = round_ % len(contenders)
        for name, run in contenders[turn:] + contenders[:turn]:
            fresh(base, target)
            warm(source, target)
            busy = settle(args.wait_idle)
            row = timed(run, source, target)
            subprocess.check_call(["cmp", source, target])
            row |= {
                "date": facts["date"], "disk_mib": os.path.getsize(source) >> 20, "percent": args.percent,
                "round": round_ + 1, "contender": name, "cpus_busy_before": f"{busy:.2f}",
            }
            rows.append(row)
            phases = [row.get(f"{phase}_seconds", "-") for phase in ("plan", "copy", "verify")]
            print(f"  {round_ + 1} {name:24} {row['seconds']:>8} s  cpu {row['cpu_seconds']:>8} s  "
                  f"plan/copy/verify {'/'.join(map(str, phases))}  busy {busy:.2f}", flush=True)
    os.remove(target)
    summary(rows)
    if args.record:
        record(args.record, facts, rows)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True, help="holds old.raw and new.raw")
    parser.add_argument("--failback", required=True, help="the binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--percent", default="1", help="for the record only")
    parser.add_argument("--wait-idle", type=float, default=20, help="seconds to wait for idle processors before a run")
    parser.add_argument("--extra", action="append", help="one more failback contender with these options of `sync`")
    parser.add_argument("--record", help="CSV file to write")
    return parser.parse_args()


def failback(binary, hash_, options):
    """An agent that serves the target on loopback TCP, and a client that reads the source."""
    def run(source, target):
        serve = [binary, "serve", "--listen", "tcp://127.0.0.1:0", "--grant", f"disk={target}:rw"]
        agent = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            address = agent.stdout.readline().split()[-1]
            sync = [binary, "sync", source, f"{address}/disk", "--hash", hash_, "--json", *options]
            started = time.monotonic()
            done = subprocess.run(sync, stdout=subprocess.PIPE, check=True)
            flush(target)
            seconds = time.monotonic() - started
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait()
        report = json.loads(done.stdout)
        phases = {f"{phase}_seconds": f"{report['seconds'][phase]:.3f}" for phase in ("plan", "copy", "verify")}
        return seconds, phases | {"wire_bytes": report["bytes"]["wire_out"] + report["bytes"]["wire_in"]}
    return " ".join(["failback", hash_, *options]), run


def rsync(name, command):
    def run(source, target):
        started = time.monotonic()
        subprocess.check_call([*command, source, target])
        flush(target)
        return time.monotonic() - started, {}
    return name, run


def flush(path):
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def fresh(base, target):
    """A new file each time: a whole-file rsync fills the holes, which the next contender must not pay for."""
    if os.path.exists(target):
        os.remove(target)
    subprocess.check_call(["cp", "--sparse=always", "--reflink=never", base, target])
    flush(target)


def warm(*paths):
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass


def settle(limit):
    """Waits until less than a quarter of a processor is busy, `limit` seconds at most. How busy they were last."""
    deadline = time.monotonic() + limit
    while True:
        before, started = idle_seconds(), time.monotonic()
        time.sleep(1)
        elapsed = time.monotonic() - started
        busy = os.cpu_count() - (idle_seconds() - before) / elapsed
        if busy < 0.25 or time.monotonic() >= deadline:
            return max(busy, 0)


def idle_seconds():
    with open("/proc/stat", encoding="ascii") as stat:
        fields = stat.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def timed(run, source, target):
    def cpu():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before = cpu()
    seconds, more = run(source, target)
    return {"seconds": f"{seconds:.3f}", "cpu_seconds": f"{cpu() - before:.2f}"} | more


def medians(rows, field):
    by_name = {}
    for row in rows:
        by_name.setdefault(row["contender"], []).append(float(row[field]))
    return {name: statistics.median(values) for name, values in by_name.items()}


def summary(rows):
    seconds, cpu = medians(rows, "seconds"), medians(rows, "cpu_seconds")
    rivals = [name for name in seconds if name.startswith("rsync")]
    fastest = min(rivals, key=seconds.get)
    print(f"medians of {len(rows) // len(seconds)} interleaved rounds; ratio to {fastest}")
    for name in seconds:
        ratio = seconds[fastest] / seconds[name]
        print(f"  {name:32} {seconds[name]:7.3f} s   cpu {cpu[name]:6.2f} s   {ratio:5.2f} x as fast")


def machine(args):
    def first_line(*command):
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.partition("\n")[0]
    cpus = subprocess.run(["lscpu"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpus if line.startswith("Model name")), "unknown")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": model, "cores": os.cpu_count(), "memory_gib": memory, "kernel": platform.release(),
        "file_system": first_line("stat", "-f", "-c", "%T", args.dir),
        "rustc": first_line("rustc", "-V"), "rsync": first_line("rsync", "--version"),
        "failback": first_line(args.failback, "--version"),
    }


def record(path, facts, rows):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="", encoding="ascii") as file:
        for name, value in facts.items():
            file.write(f"# {name}: {value}\n")
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"recorded: {path}")


if __name__ == "__main__":
    main()
