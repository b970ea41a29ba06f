//! Goal: a person sees progress, a script sees none; `--json` and `--events` are for machines.
//! Method: the same sync through pipes and on a terminal that `script` plays.
#![cfg(unix)]

use std::fs;
use std::path::PathBuf;

use failback_tests::{cli, disk, place, skip_without};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn pipes_get_no_progress() {
    let disks = Disks::new();

    let run = cli::failback(["sync", &disks.source, &disks.target]).exits(0);

    assert_eq!(run.stderr, "");
    assert!(!run.stdout.contains(['\r', '\u{1b}']), "{:?}", run.stdout);
    assert!(!run.stdout.is_empty(), "results are for standard output");
}

#[test]
fn a_terminal_gets_progress() {
    skip_without!("script");
    let disks = Disks::new();

    let shown = cli::on_terminal(&["sync", &disks.source, &disks.target]);

    assert!(shown.contains('\u{1b}'), "{shown:?}");
    assert!(shown.contains("iB"), "bytes and rate are shown: {shown:?}");
}

#[test]
fn json_is_one_document() {
    let disks = Disks::new();

    let run = cli::sync(&disks.source, &disks.target).exits(0);

    assert_eq!(run.stderr, "");
    assert!(run.json().is_object());
}

#[test]
fn events_are_json_lines() {
    let disks = Disks::new();
    let events = disks.dir.path().join("events");
    let events = events.to_str().expect("UTF-8");

    let _ = cli::failback(["sync", &disks.source, &disks.target, "--events", events]).exits(0);

    let text = fs::read_to_string(events).expect("events");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect();
    assert!(!lines.is_empty());
    assert!(lines.iter().all(Value::is_object));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    skip_without!("bash");
    let disks = Disks::new();
    let binary = cli::binary();
    let line = format!("'{}' info '{}' | true", binary.display(), disks.source);

    let done = failback_tests::tools::output("bash", ["-c", &line]);

    assert!(!String::from_utf8_lossy(&done.stderr).contains("panicked"));
}

struct Disks {
    dir: TempDir,
    source: String,
    target: String,
}

impl Disks {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]).map(text);
        disk::write_raw(source.as_ref(), 256 << 20, 60, 1);
        disk::write_raw(target.as_ref(), 256 << 20, 60, 2);
        Self {
            dir,
            source,
            target,
        }
    }
}
