//! Goal: a real machine comes home: nothing that its guest was told is written gets lost, whatever
//! it does while it is copied. Method: QEMU boots a small Linux from a VHDX on the "cloud" side,
//! which writes numbered records and tells each on its console once it is flushed; `failback job`
//! moves it while it runs, and the guest itself says on the "home" side what it finds.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use failback_tests::cli::{Run, failback};
use failback_tests::guest::Guest;
use failback_tests::place::Mount;
use failback_tests::{skip_without, tools};

/// Records that each disk keeps, as in `tests/guest/init`.
const SLOTS: u64 = 512;

struct Scene {
    // Before `mount`: a machine is found, and ended, by what is kept there.
    cloud: Guest,
    home: Guest,
    mount: Mount,
    disks: usize,
    /// From a start of the cloud's machine to its next record.
    boot: Duration,
}

impl Scene {
    /// Both sides with the same disks; the cloud's machine runs since a while.
    fn new(disks: usize) -> Self {
        // Clones want a file system that has them.
        let mount = Mount::in_file("xfs", 4096);
        let dir = mount.path();
        let raw = Guest::build(dir);
        let sides = ["cloud", "home"].map(|side| dir.join(side));
        for side in &sides {
            fs::create_dir(side).unwrap();
        }
        let images = |side: &Path| -> Vec<PathBuf> {
            (0..disks)
                .map(|number| side.join(format!("disk{number}.vhdx")))
                .collect()
        };
        let (cloud, home) = (images(&sides[0]), images(&sides[1]));
        let convert = [
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            text(&raw),
            text(&cloud[0]),
        ];
        tools::run("qemu-img", convert);
        for data in &cloud[1..] {
            let create = ["create", text(data), "--size", "64M", "--block-size", "1M"];
            assert_eq!(failback(create).exits(0).stderr, "");
        }
        for (from, to) in cloud.iter().zip(&home) {
            fs::copy(from, to).unwrap();
        }
        let (cloud, home) = (Guest::new(&sides[0], &cloud), Guest::new(&sides[1], &home));
        // The first time all of it comes from the disk, which says nothing of the next.
        cloud.start();
        cloud.wait_for(" ACK ");
        cloud.kill();
        let started = Instant::now();
        cloud.start();
        cloud.wait_for(" ACK ");
        let boot = started.elapsed();
        let last = cloud.acknowledged();
        cloud.wait_for(&format!(" ACK {}", last + 50));
        Self {
            boot,
            cloud,
            home,
            mount,
            disks,
        }
    }

    fn definition(&self) -> PathBuf {
        let dir = self.mount.path();
        let probe = dir.join("probe.sh");
        fs::write(&probe, PROBE).unwrap();
        let machine = |guest: &Guest| {
            let (socket, script) = (guest.socket(), guest.script());
            let (socket, script) = (socket.display(), script.display());
            format!("kind = \"qmp\"\nsocket = \"{socket}\"\nstart = [\"sh\", \"{script}\"]\n")
        };
        let (cloud, home) = (self.cloud.console_path(), self.home.console_path());
        let (cloud, home, probe) = (cloud.display(), home.display(), probe.display());
        let mut job = format!(
            "name = \"web\"\n\
             [policy]\nexpected_stop = \"1s\"\nexpected_start = \"{}ms\"\n\
             [source.machine]\n{}[source.snapshots]\nkind = \"reflink\"\n\
             [target]\nprobe = [\"sh\", \"{probe}\", \"{cloud}\", \"{home}\"]\n\
             [target.machine]\n{}",
            // What its owner knows of it.
            self.boot.as_millis(),
            machine(&self.cloud),
            machine(&self.home)
        );
        for number in 0..self.disks {
            let at = |side: &str| dir.join(side).join(format!("disk{number}.vhdx"));
            let (source, target) = (at("cloud"), at("home"));
            let (source, target) = (source.display(), target.display());
            job += &format!(
                "[[disk]]\nid = \"disk{number}\"\nsource = \"{source}\"\ntarget = \"{target}\"\n"
            );
        }
        let path = dir.join("web.toml");
        fs::write(&path, job).unwrap();
        path
    }

    fn job(&self, args: &[&str]) -> Run {
        let state = self.mount.path().join("state");
        let place = ["--state-dir", text(&state), "--json"];
        failback(["job"].iter().chain(args).chain(&place).copied())
    }
}

/// Waits until the guest at home has written, and says for how long it could not, by its own clock.
const PROBE: &str = r#"
tries=0
until grep -q ' ACK ' "$2" || [ $tries -ge 600 ]; do sleep 0.1; tries=$((tries + 1)); done
before=$(grep ' ACK ' "$1" | tail -n 1 | cut -d' ' -f2)
after=$(grep ' ACK ' "$2" | head -n 1 | cut -d' ' -f2)
echo "guest_downtime_seconds=$((after - before))"
"#;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The whole way home of a machine with so many disks.
fn comes_home(disks: usize) {
    skip_without!(
        "root",
        "qemu-system-x86_64",
        "qemu-img",
        "mkfs.xfs",
        "extlinux",
        "sfdisk"
    );
    let scene = Scene::new(disks);
    let definition = scene.definition();
    let old: Vec<_> = (0..disks)
        .map(|number| fs::read(scene.mount.path().join(format!("home/disk{number}.vhdx"))).unwrap())
        .collect();

    let started = scene
        .job(&["start", text(&definition), "--no-wait"])
        .exits(0);

    assert_eq!(started.json()["phase"], "waiting");
    let before = scene.cloud.acknowledged();
    scene.cloud.wait_for(&format!(" ACK {}", before + 20));
    for (number, old) in old.iter().enumerate() {
        let path = scene.mount.path().join(format!("home/disk{number}.vhdx"));
        assert!(fs::read(path).unwrap() == *old, "the old disk is as it was");
    }

    let completed = scene.job(&["complete", "web"]).exits(0);

    let report = completed.json();
    assert_eq!(report["phase"], "commit_pending");
    assert!(!scene.cloud.is_running(), "the source is stopped");
    let last = scene.cloud.acknowledged();
    let up = scene.home.up().expect("the guest came up");
    assert!(
        up.last >= last,
        "{last} was acknowledged, {} is there",
        up.last
    );
    // All that the rings hold: none is missing between the first and the last.
    let kept = (SLOTS * disks as u64).min(up.last);
    assert_eq!((up.count, up.first), (kept, up.last - kept + 1));
    let timeline = report["timeline"].to_string();
    assert!(timeline.contains("guest_downtime_seconds="), "{timeline}");
    let measured = report["downtime"]["measured"].as_f64().unwrap();
    let predicted = report["downtime"]["predicted"].as_f64().unwrap();
    tools::say(&format!(
        "{disks} disks: downtime {measured:.1} s, predicted {predicted:.1} s, boot {:.1} s",
        scene.boot.as_secs_f64()
    ));
    assert!(
        (measured - predicted).abs() <= 0.2 * predicted + 2.0,
        "{measured} {predicted}"
    );

    let committed = scene.job(&["commit", "web"]).exits(0);

    assert_eq!(committed.json()["phase"], "finished");
    let more = scene.home.acknowledged();
    scene.home.wait_for(&format!(" ACK {}", more + 5));
}

#[test]
fn a_machine_with_one_disk_comes_home() {
    comes_home(1);
}

#[test]
fn a_machine_with_two_disks_comes_home() {
    comes_home(2);
}
