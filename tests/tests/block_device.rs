//! Goal: a block device is a disk like any other, and one that is in use is left alone. Method:
//! loop devices over files in a temporary folder (root; skipped loudly elsewhere).
#![cfg(target_os = "linux")]
#![allow(clippy::print_stderr, reason = "what is skipped is said aloud")]

use std::path::{Path, PathBuf};
use std::process::Command;

use failback_tests::{cli, disk, report};

const LEN: u64 = 64 << 20;

/// A loop device, detached at the end.
struct Loop {
    device: PathBuf,
}

impl Loop {
    /// `None`, and a loud word, where loop devices are not to be had.
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file)
            .output();
        let device = made.ok().filter(|made| made.status.success());
        let device = device.map(|made| String::from_utf8_lossy(&made.stdout).trim().into());
        if device.is_none() {
            eprintln!("SKIPPED: no loop devices here (needs root)");
        }
        device.map(|device| Self { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup")
            .arg("-d")
            .arg(&self.device)
            .status()
            .expect("losetup -d");
    }
}

fn run(program: &str, args: &[&Path]) {
    let status = Command::new(program).args(args).status().expect(program);
    assert!(status.success(), "{program}");
}

#[test]
fn a_device_becomes_the_source_also_where_the_source_is_zero() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (source, below) = (dir.path().join("source.raw"), dir.path().join("below.raw"));
    disk::write_raw(&source, LEN, 30, 1);
    std::fs::write(&below, vec![0x5a; 64 << 20]).expect("old content");
    let Some(target) = Loop::over(&below) else {
        return;
    };

    let first = cli::sync(&source, &target.device).exits(0).json();
    let second = cli::sync(&source, &target.device).exits(0).json();

    report::assert_done(&first);
    report::assert_nothing_sent(&second);
    run("cmp", &[&source, &target.device]);
}

#[test]
fn a_device_that_is_staged_for_cannot_be_mounted() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (source, below) = (dir.path().join("source.raw"), dir.path().join("below.raw"));
    disk::write_raw(&source, LEN, 30, 1);
    std::fs::File::create(&below)
        .and_then(|file| file.set_len(LEN))
        .expect("empty file");
    run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &below]);
    let Some(target) = Loop::over(&below) else {
        return;
    };
    let mount = dir.path().join("mounted");
    std::fs::create_dir(&mount).expect("mount point");
    let state = dir.path().join("state");
    let mut args = [
        Path::new("sync"),
        &source,
        &target.device,
        Path::new("--state-dir"),
    ]
    .to_vec();
    args.push(&state);
    let mut sync = cli::start(args);
    sync.stop_when_it_locks(&target.device);

    let mounted = Command::new("mount")
        .arg(&target.device)
        .arg(&mount)
        .output();

    sync.signal("CONT");
    let said = mounted.expect("mount");
    assert!(!said.status.success(), "it was mounted in mid-sync");
    let _ = sync.wait().exits(0);
    run("cmp", &[&source, &target.device]);
}

// Goal: a write to a device after its machine was stopped is found, though a device notes no time
// of change: the target is not sealed, and the source runs again. Method: a job whose stop hook
// leaves something behind that writes once the first look is over, when its probe of power is asked
// again; the same without.
#[test]
fn a_late_write_to_a_device_is_found() {
    for writes in [true, false] {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (below, home) = (dir.path().join("below.raw"), dir.path().join("home.raw"));
        disk::write_raw(&below, LEN, 30, 1);
        std::fs::copy(&below, &home).expect("copy");
        let Some(source) = Loop::over(&below) else {
            return;
        };
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("cloud"), "on\n").expect("power");
        std::fs::write(at("home"), "off\n").expect("power");
        // `final` is asked after the machine was proven quiet, and before the copy.
        let late = match writes {
            true => "printf late | dd of=$D bs=1 seek=4096 conv=notrunc status=none",
            false => ":",
        };
        let power = format!(
            "D={}; [ $FAILBACK_STEP = final ] && {{ {late}; }}; cat {}",
            source.device.display(),
            at("cloud")
        );
        let definition = format!(
            "name = \"web\"\n[policy]\nstrategy = \"full\"\n[source.machine]\nkind = \"hooks\"\n\
             power = [\"sh\", \"-c\", \"{power}\"]\nstart = [\"sh\", \"-c\", \"echo on > {0}\"]\n\
             shut_down = [\"sh\", \"-c\", \"echo off > {0}\"]\n[source.snapshots]\n\
             kind = \"hooks\"\ncreate = [\"sh\", \"-c\", \"cp {2} {0}.snap; echo {0}.snap\"]\n\
             release = [\"rm\", \"-f\", \"{0}.snap\"]\n[target.machine]\nkind = \"hooks\"\n\
             power = [\"cat\", \"{1}\"]\nstart = [\"sh\", \"-c\", \"echo on > {1}\"]\n\
             power_off = [\"sh\", \"-c\", \"echo off > {1}\"]\n[[disk]]\nid = \"os\"\n\
             source = \"{2}\"\ntarget = \"{3}\"\n",
            at("cloud"),
            at("home"),
            source.device.display(),
            home.display()
        );
        std::fs::write(at("web.toml"), definition).expect("definition");
        let job = |args: &[&str]| {
            let state = at("state");
            let more = ["--state-dir", &state, "--json"];
            cli::failback(["job"].iter().chain(args).chain(&more))
        };
        let _ = job(&["start", &at("web.toml"), "--no-wait"]).exits(0);
        let completed = job(&["complete", "web"]).exits(if writes { 3 } else { 0 });
        let report = completed.json();
        match writes {
            true => {
                assert_eq!(report["phase"], "waiting", "{report}");
                let message = report["error"]["message"].as_str().expect("message");
                assert!(message.contains("changed after its machine"), "{message}");
                assert_eq!(std::fs::read(at("cloud")).expect("power"), b"on\n");
            }
            false => assert_eq!(report["phase"], "commit_pending", "{report}"),
        }
    }
}

#[test]
fn a_mounted_device_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (source, below) = (dir.path().join("source.raw"), dir.path().join("below.raw"));
    disk::write_raw(&source, LEN, 30, 1);
    std::fs::File::create(&below)
        .and_then(|file| file.set_len(LEN))
        .expect("empty file");
    run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &below]);
    let Some(target) = Loop::over(&below) else {
        return;
    };
    let mount = dir.path().join("mounted");
    std::fs::create_dir(&mount).expect("mount point");
    run("mount", &[&target.device, &mount]);

    let refused = std::panic::catch_unwind(|| cli::sync(&source, &target.device).exits(3));
    run("umount", &[&mount]);

    report::assert_failure(&refused.expect("exit code").json(), "refused");
}
