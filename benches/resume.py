#!/usr/bin/env python3
"""How soon a sync that was killed sends again: until its first payload, medians of some rounds.

    cargo build --release && benches/resume.py [--size GIB] [--percent P] [--rounds N] [--dir DIR]

The disks of stage.py, raw to raw, staged in a log (`--stage log`), one process, page cache hot. The sync is killed when the stage holds six
tenths of what changed. Then the same command again: the seconds are those of its first `progress` event that has sent something.
"""
import glob
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time

from stage import arguments, change, make


def main():
    args = arguments(percent=50)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        old, new, target = (os.path.join(folder, name) for name in ["old.raw", "new.raw", "target.raw"])
        make(old, args.size << 30)
        change(old, new, args.percent)
        changed = (args.size << 30) * args.percent / 100
        sync = [args.failback, "sync", new, target, "--stage", "log", "--events", "-", "--json"]
        seconds = []
        for _ in range(args.rounds):
            subprocess.run(["cp", "--sparse=always", old, target], check=True)
            os.sync()
            # A record has the new bytes and the old.
            staged = kill_once(sync, folder, 1.2 * changed)
            seconds.append(first_payload(sync))
            print(f"staged {staged >> 20} MiB, first payload after {seconds[-1]:.2f} s", flush=True)
            subprocess.run([args.failback, "rollback", target], stdout=subprocess.DEVNULL, check=False)
        print(f"median {statistics.median(seconds):.2f} s")


def kill_once(sync, folder, staged_max):
    process = subprocess.Popen(sync, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    staged = 0
    while staged < staged_max:
        if process.poll() is not None:
            raise SystemExit("the sync ended before it was killed")
        staged = sum(map(os.path.getsize, glob.glob(f"{folder}/.failback/*/stage")))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return staged


def first_payload(sync):
    with tempfile.TemporaryFile() as stdout:
        process = subprocess.Popen(sync, stdout=stdout, stderr=subprocess.PIPE, text=True)
        events = [json.loads(line) for line in process.stderr if line.startswith("{")]
        process.wait()
        stdout.seek(0)
        report = json.load(stdout)
    sent = [event["seconds"] for event in events if event["event"] == "progress" and event["sent"] > 0]
    if process.returncode != 0 or not sent or "resumed" not in report["reasons"]:
        raise SystemExit(f"no resume: {report['reasons']}, {report['error']}")
    return sent[0]


if __name__ == "__main__":
    main()
