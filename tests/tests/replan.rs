//! Goal: a delta changes its plan for the blocks that differ where that pays, says so, and nowhere
//! else. Method: real processes over loopback TCP, disks of six regions; events and report.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use failback_tests::agent::{Agent, Via};
use failback_tests::schema::assert_valid;
use failback_tests::{cli, disk, place, report};
use serde_json::Value;
use tempfile::TempDir;

const REGION_LEN: u64 = 64 << 20;
const DISK_LEN: u64 = 6 * REGION_LEN;

struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    /// A target full of noise, and a source that is its copy until `change` was there.
    fn of(change: impl Fn(&Path)) -> Self {
        let dir = TempDir::new().expect("temporary folder");
        let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
        fs::write(&target, noise(1, DISK_LEN)).expect("disk");
        fs::copy(&target, &source).expect("copy");
        change(&source);
        Self {
            dir,
            source,
            target,
        }
    }

    /// A delta through an agent for the target: its report, and its changes of plan.
    fn sync(&self, more: &[&str]) -> (Value, Vec<Value>) {
        let grant = format!("disk={}:rw", self.target.display());
        let agent = Agent::start(Via::Tcp, self.dir.path(), &[grant]);
        let events = self.dir.path().join("events");
        let [source, path] = [&self.source, &events].map(|path| path.to_str().expect("UTF-8"));
        let endpoint = agent.endpoint("disk");
        let args = [
            "sync",
            source,
            &endpoint,
            "--json",
            "--strategy",
            "delta",
            "--events",
            path,
        ];
        let run = cli::failback(args.into_iter().chain(more.iter().copied()));
        let report = run.exits(0).json();
        report::assert_done(&report);
        assert_valid("report", &report);
        let told = fs::read_to_string(&events).expect("events");
        let told = told
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let replans: Vec<Value> = told
            .filter(|event: &Value| event["event"] == "replan")
            .collect();
        replans
            .iter()
            .for_each(|event| assert_valid("events", event));
        assert_eq!(report["replans"]["count"], replans.len(), "{report}");
        let equal = fs::read(&self.source).ok() == fs::read(&self.target).ok();
        assert!(equal, "the disks differ");
        (report, replans)
    }
}

/// Bytes that do not shrink; no page of one seed is one of another.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len / 8).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().collect()
}

/// One half is new.
fn half_new() -> Disks {
    Disks::of(|source| place::scribble(source, 0, &noise(2, DISK_LEN / 2)))
}

// Goal: the half that is new is sent whole, but for its beginning, by which that is known, and the
// other half is not. Method: one event there and one back.
#[test]
fn a_half_that_is_new_is_sent_whole() {
    let (report, replans) = half_new().sync(&["--apply", "in-place"]);
    let plans: Vec<_> = replans.iter().map(|event| event["plan"].clone()).collect();
    assert_eq!(plans, ["whole", "differences"], "{replans:?}");
    let reasons = Value::from(vec!["sampled_change_rate", "link_faster_than_scan"]);
    assert_eq!(replans[0]["reasons"], reasons);
    assert_eq!(report["replans"]["reasons"], reasons);
    let from = |index: usize| replans[index]["from"].as_u64().expect("a number");
    assert!(from(0) < DISK_LEN / 2, "{replans:?}");
    assert!(
        from(1) > from(0) && from(1) <= DISK_LEN / 2 + REGION_LEN,
        "{replans:?}"
    );
    let whole = report::count(&report, "/replans/whole_bytes");
    let is_most = (REGION_LEN / 2..DISK_LEN / 2).contains(&whole);
    assert!(is_most, "{report}");
    assert!(report::count(&report, "/replans/whole_regions") >= 1);
    // All of it differs: nothing travels that a comparison would have spared.
    assert_eq!(report::count(&report, "/bytes/sent"), DISK_LEN / 2);
}

// Goal: the same, kept in a log and read back. Method: the defaults.
#[test]
fn what_is_sent_whole_is_staged_like_anything() {
    let (report, replans) = half_new().sync(&[]);
    assert!((1..=2).contains(&replans.len()), "{replans:?}");
    assert!(report::count(&report, "/replans/whole_bytes") > 0);
    assert_eq!(report::count(&report, "/bytes/verified"), DISK_LEN / 2);
}

// Goal: who wants few bytes gets no such plan. Method: the same disks.
#[test]
fn by_bytes_nothing_is_sent_whole() {
    let (report, replans) = half_new().sync(&["--optimize", "transfer"]);
    assert_eq!(replans, [] as [Value; 0]);
    assert_eq!(report::count(&report, "/replans/whole_bytes"), 0);
}

// Goal: scattered changes change no plan. Method: one block of 64 KiB in a hundred.
#[test]
fn one_per_cent_here_and_there_is_no_reason() {
    let disks = Disks::of(|source| disk::write_changes(source, &disk::changes(DISK_LEN, 61, 3)));
    let (report, replans) = disks.sync(&[]);
    assert_eq!(replans, [] as [Value; 0]);
    assert_eq!(report::count(&report, "/bytes/changed"), 61 * 4096);
}
