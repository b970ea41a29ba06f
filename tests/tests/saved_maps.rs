//! Goal: a disk that nobody changed is not read again, one that somebody did is, and the report
//! says what rests on what. Method: syncs by the command, of files and through agents, with edits
//! between them.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::Run;
use failback_tests::report::count;
use failback_tests::{cli, disk, place, qemu, report, skip_without, tools};
use serde_json::Value;
use tempfile::TempDir;

const DISK_LEN: u64 = 64 << 20;
/// Longer than two ticks of any kernel's clock: what was written before is told from what comes.
const SETTLE: Duration = Duration::from_millis(60);

struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    fn new(target: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [source, target] = place::paths(dir.path(), ["source.raw", target]);
        disk::write_raw(&source, DISK_LEN, 50, 7);
        Self {
            dir,
            source,
            target,
        }
    }

    fn sync(&self, more: &[&str]) -> Value {
        sync(&self.source, &self.target, more).json()
    }
}

fn sync(source: impl AsRef<Path>, target: impl AsRef<Path>, more: &[&str]) -> Run {
    let [source, target] =
        [source.as_ref(), target.as_ref()].map(|path| path.to_str().expect("UTF-8"));
    let args = ["sync", source, target, "--json"];
    cli::failback(args.iter().chain(more)).exits(0)
}

fn states(report: &Value) -> [&str; 2] {
    ["/map/source/state", "/map/target/state"].map(|pointer| {
        report
            .pointer(pointer)
            .and_then(Value::as_str)
            .expect("a state")
    })
}

fn has_reason(report: &Value, reason: &str) -> bool {
    let reasons = report["reasons"].as_array().expect("reasons");
    reasons.iter().any(|found| found == reason)
}

fn assert_equal_by_full_read(a: &Path, b: &Path) {
    let args = [
        "verify",
        a.to_str().expect("UTF-8"),
        b.to_str().expect("UTF-8"),
    ];
    let _equal = cli::failback(args).exits(0);
}

fn edit(path: &Path, at: u64) {
    thread::sleep(SETTLE);
    place::scribble(path, at, b"somebody was here");
}

#[test]
fn an_unchanged_pair_is_not_read_again() {
    for target in ["target.vhdx", "target.raw", "target.vhd"] {
        let disks = Disks::new(target);
        let first = disks.sync(&[]);
        let second = disks.sync(&[]);

        report::assert_done(&first);
        report::assert_done(&second);
        assert_eq!(states(&second), ["trusted"; 2], "{target}: {second}");
        assert!(has_reason(&second, "map_trusted"));
        assert_eq!(count(&second, "/bytes/source_read"), 0);
        assert_eq!(count(&second, "/bytes/target_read"), 0);
        assert!(count(&second, "/bytes/vouched_by_map") > DISK_LEN / 2);
        assert!(count(&second, "/map/target/audited_blocks") > 0);
        assert_eq!(second["root"], first["root"]);
    }
}

#[test]
fn an_edit_with_its_time_set_back_is_noticed() {
    let disks = Disks::new("target.vhdx");
    report::assert_done(&disks.sync(&[]));
    let mtime = disks
        .target
        .metadata()
        .and_then(|m| m.modified())
        .expect("mtime");

    edit(&disks.target, 5 << 20);
    let file = File::options()
        .write(true)
        .open(&disks.target)
        .expect("open");
    file.set_modified(mtime).expect("set back");
    drop(file);
    let after = disks.sync(&[]);

    report::assert_done(&after);
    assert_eq!(states(&after), ["trusted", "rejected"]);
    assert!(has_reason(&after, "map_rejected:ctime"), "{after}");
    assert_equal_by_full_read(&disks.source, &disks.target);
}

// DataWriteGuid alone would not tell: it is the same in the first three.
#[test]
fn each_way_to_change_an_image_has_its_reason() {
    type Change<'a> = (&'a dyn Fn(&Path), &'a str);
    skip_without!("qemu-io");
    let copied = |path: &Path| {
        let copy = path.with_extension("copy");
        tools::run(
            "cp",
            [
                "-p",
                path.to_str().expect("UTF-8"),
                copy.to_str().expect("UTF-8"),
            ],
        );
        std::fs::rename(&copy, path).expect("rename");
    };
    let touched = |path: &Path| {
        let file = File::options().write(true).open(path).expect("open");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .expect("set");
    };
    let written = |path: &Path| {
        qemu::io(
            path,
            qemu::Format::Dynamic(2),
            &["write -P 7 1M 4k".to_owned()],
        );
    };
    let table: [Change<'_>; 4] = [
        (&|path| edit(path, 5 << 20), "map_rejected:mtime"),
        (&touched, "map_rejected:mtime"),
        (&copied, "map_rejected:file_id"),
        (&written, "map_rejected:data_write_guid"),
    ];
    for (change, reason) in table {
        let disks = Disks::new("target.vhdx");
        report::assert_done(&disks.sync(&[]));
        thread::sleep(SETTLE);
        change(&disks.target);
        let after = disks.sync(&[]);
        report::assert_done(&after);
        assert!(has_reason(&after, reason), "{reason}: {after}");
        assert_equal_by_full_read(&disks.source, &disks.target);
    }
}

// A parent that was written to, or touched, is as bad as the image itself.
#[test]
fn a_chain_is_believed_as_a_whole() {
    let disks = Disks::new("target.raw");
    let [base, child] = place::paths(disks.dir.path(), ["base.vhdx", "child.vhdx"]);
    report::assert_done(&sync(&disks.source, &base, &[]).json());
    let [base_text, child_text] = [&base, &child].map(|path| path.to_str().expect("UTF-8"));
    let _made = cli::failback(["create", child_text, "--parent", base_text]).exits(0);
    let chain = || sync(&child, &disks.target, &["--source-parent", base_text]).json();
    report::assert_done(&chain());
    thread::sleep(SETTLE);
    assert_eq!(states(&chain()), ["trusted"; 2]);
    let file = File::options().write(true).open(&base).expect("open");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .expect("set");
    assert!(has_reason(&chain(), "map_rejected:parent_chain"));
}

#[test]
fn only_what_differs_is_read_of_a_disk_that_is_believed() {
    let disks = Disks::new("target.vhdx");
    report::assert_done(&disks.sync(&[]));

    edit(&disks.source, 9 << 20);
    let changed_source = disks.sync(&[]);
    edit(&disks.target, 9 << 20);
    let changed_target = disks.sync(&[]);

    assert!(has_reason(&changed_source, "map_rejected:mtime"));
    assert_eq!(states(&changed_source), ["rejected", "trusted"]);
    assert!(count(&changed_source, "/bytes/target_read") <= 2 << 20);
    assert_eq!(states(&changed_target), ["trusted", "rejected"]);
    assert!(count(&changed_target, "/bytes/source_read") <= 2 << 20);
    assert_equal_by_full_read(&disks.source, &disks.target);
}

#[test]
fn full_verification_and_no_map_read_everything() {
    let disks = Disks::new("target.raw");
    report::assert_done(&disks.sync(&[]));
    let read = |report: &Value| {
        assert_eq!(states(report), ["none"; 2]);
        assert_eq!(count(report, "/bytes/vouched_by_map"), 0);
        count(report, "/bytes/source_read").min(count(report, "/bytes/target_read"))
    };
    assert!(read(&disks.sync(&["--verify", "full"])) > DISK_LEN / 4);
    assert!(read(&disks.sync(&["--no-map"])) > DISK_LEN / 4);

    let full = disks.sync(&["--audit", "full"]);

    assert_eq!(states(&full), ["trusted"; 2]);
    let looked_at = count(&full, "/map/target/audited_blocks");
    assert!(
        (20..=64).contains(&looked_at),
        "all data blocks: {looked_at}"
    );
}

#[test]
fn no_map_leaves_no_map() {
    let disks = Disks::new("target.raw");
    report::assert_done(&disks.sync(&["--no-map"]));
    assert_eq!(states(&disks.sync(&[])), ["none"; 2]);
}

#[test]
fn maps_of_other_blocks_hashes_and_keys_are_not_believed() {
    let disks = Disks::new("target.raw");
    report::assert_done(&disks.sync(&[]));
    let reason = |more: &[&str], reason| {
        let report = disks.sync(more);
        report::assert_done(&report);
        assert!(has_reason(&report, reason), "{report}");
    };
    reason(&["--hash", "xxh3"], "map_rejected:hash");
    reason(&["--block-size", "64K"], "map_rejected:block_size");
    std::fs::remove_file(disks.dir.path().join(".failback/map.key")).expect("the key");
    reason(&["--block-size", "64K"], "map_rejected:mac");
    assert_eq!(
        states(&disks.sync(&["--block-size", "64K"])),
        ["trusted"; 2]
    );
}

// Goal: a plan leaves maps as they are, also those that it does not believe, and a sync those of
// which it cannot read the key: once it can, they stand for reads again. Method: a key that others
// can read, one that is gone, maps that are damaged; plans here, and of a disk behind an agent.
#[test]
fn a_plan_removes_no_map() {
    use std::os::unix::fs::PermissionsExt;
    let disks = Disks::new("target.raw");
    report::assert_done(&disks.sync(&[]));
    thread::sleep(SETTLE);
    let state = disks.dir.path().join(".failback");
    let maps = || -> Vec<_> {
        let kept = std::fs::read_dir(&state).expect("state");
        let maps = kept.map(|entry| entry.expect("entry").path().join("map"));
        maps.filter(|map| map.exists()).collect()
    };
    let bytes = || {
        maps()
            .iter()
            .map(std::fs::read)
            .collect::<Result<Vec<_>, _>>()
            .expect("maps")
    };
    let grant = format!("disk={}", disks.source.display());
    let agent = Agent::start(Via::Tcp, disks.dir.path(), &[grant]);
    let target = disks.target.to_str().expect("UTF-8");
    let plan_leaves_all = || {
        let before = bytes();
        assert_eq!(before.len(), 2);
        for source in [
            disks.source.to_str().expect("UTF-8"),
            &agent.endpoint("disk"),
        ] {
            let plan = cli::failback(["plan", source, target, "--json"]).exits(0);
            assert_eq!(states(&plan.json()), ["rejected"; 2]);
            assert!(bytes() == before, "a plan changed a map");
        }
    };
    let key = state.join("map.key");
    let mode =
        |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).expect("mode");
    mode(0o640);
    plan_leaves_all();
    assert_eq!(states(&disks.sync(&[])), ["rejected"; 2]);
    assert_eq!(maps().len(), 2);
    mode(0o600);
    assert_eq!(states(&disks.sync(&[])), ["trusted"; 2]);

    let away = disks.dir.path().join("key");
    std::fs::rename(&key, &away).expect("key");
    plan_leaves_all();
    std::fs::rename(&away, &key).expect("key");
    assert_eq!(states(&disks.sync(&[])), ["trusted"; 2]);

    // The first byte of the MAC: docs/formats.md.
    for map in maps() {
        let mut bytes = std::fs::read(&map).expect("map");
        bytes[112] ^= 1;
        std::fs::write(&map, bytes).expect("map");
    }
    plan_leaves_all();
    assert_eq!(states(&disks.sync(&[])), ["rejected"; 2]);
    assert_eq!(states(&disks.sync(&[])), ["trusted"; 2]);
}

#[test]
fn a_map_made_by_the_command_is_believed() {
    let disks = Disks::new("target.raw");
    report::assert_done(&disks.sync(&["--no-map"]));
    for path in [&disks.source, &disks.target] {
        let args = ["map", path.to_str().expect("UTF-8"), "--save", "--json"];
        let made = cli::failback(args).exits(0).json();
        assert_eq!(made["is_for_sync"], true);
    }
    assert_eq!(states(&disks.sync(&[])), ["trusted"; 2]);
}

// The whole check of an unchanged pair is one round trip and less than a KiB, at any size.
#[test]
fn an_unchanged_pair_costs_one_round_trip() {
    for (source, size) in [("1tib.vhdx", "1T"), ("64tib.vhdx", "64T")] {
        let disks = Disks::new("target.vhdx");
        let [source, target] = place::paths(disks.dir.path(), [source, "huge.vhdx"]);
        let path = source.to_str().expect("UTF-8");
        let _made = cli::failback(["create", path, "--size", size]).exits(0);
        for agent_is_source in [false, true] {
            let (here, there) = match agent_is_source {
                false => (&source, &target),
                true => (&target, &source),
            };
            let grant = format!("disk={}:rw,max=64T", there.display());
            let agent = Agent::start(Via::Tcp, disks.dir.path(), &[grant]);
            let slow = slow_link(agent.address());
            let endpoint = format!("tcp://{slow}/disk");
            let ends = match agent_is_source {
                false => [path, &endpoint],
                true => [&endpoint, here.to_str().expect("UTF-8")],
            };
            let within = (0..TRIES).any(|_| {
                // Missing at first.
                let _ = std::fs::remove_file(&target);
                let _ = std::fs::remove_dir_all(disks.dir.path().join(".failback"));
                report::assert_done(&cli::sync(ends[0], ends[1]).exits(0).json());
                thread::sleep(SETTLE);
                time_unchanged(ends) < 4 * DELAY
            });
            assert!(within, "more than one round trip, {TRIES} times");
        }
    }
}

/// How long a sync of two disks that are believed takes, of which each byte on the wire counts.
fn time_unchanged(ends: [&str; 2]) -> Duration {
    let started = Instant::now();
    let again = cli::sync(ends[0], ends[1]).exits(0).json();
    let took = started.elapsed();

    assert_eq!(states(&again), ["trusted"; 2], "{again}");
    let wire = count(&again, "/bytes/wire_out") + count(&again, "/bytes/wire_in");
    assert!(wire > 0 && wire < 1024, "{wire} bytes on the wire");
    assert!(took > 2 * DELAY, "{took:?}");
    took
}

/// A busy machine makes one run long, a round trip too many all of them.
const TRIES: usize = 5;

/// One way of [`slow_link`]; longer than all else that a check needs, also on a busy machine.
const DELAY: Duration = Duration::from_millis(300);

/// An address that leads to `agent`, each byte on its way for [`DELAY`].
fn slow_link(agent: &str) -> String {
    let agent = agent.trim_start_matches("tcp://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(&agent).expect("the agent");
            for (from, to) in [(&near, &far), (&far, &near)] {
                let from = from.try_clone().expect("clone");
                let to = to.try_clone().expect("clone");
                thread::spawn(move || carry_slowly(from, to));
            }
        }
    });
    address
}

fn carry_slowly(mut from: TcpStream, mut to: TcpStream) {
    let (queue, queued) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (came, bytes) in queued {
            thread::sleep(DELAY.saturating_sub(came.elapsed()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        drop(to.shutdown(std::net::Shutdown::Write));
    });
    let mut bytes = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if queue.send((Instant::now(), bytes[..len].to_vec())).is_err() {
            return;
        }
    }
}

// Goal: whatever moment a sync is killed at, no map is believed that says what is not there.
// Method: syncs of an edited source killed after random times; then one that runs to its end, and a
// comparison by full read.
#[test]
fn kills_leave_no_map_that_lies() {
    let disks = Disks::new("target.vhdx");
    report::assert_done(&disks.sync(&[]));
    let (source, target) = (disks.source.clone(), disks.target.clone());
    let paths = [&source, &target].map(|path| path.to_str().expect("UTF-8").to_owned());
    for round in 0..24_u64 {
        edit(&source, (round * 1_234_567) % (DISK_LEN - 4096));
        let stage = ["auto", "log"][usize::from(round % 2 == 1)];
        let args = ["sync", &paths[0], &paths[1], "--stage", stage];
        let mut running = cli::start(args);
        thread::sleep(Duration::from_millis(5 + round * 7));
        running.kill();
        drop(running.wait());
        if round % 4 == 3 {
            let _whole = sync(&source, &target, &["--stage", stage]);
            assert_equal_by_full_read(&source, &target);
        }
    }
}
