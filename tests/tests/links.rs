//! Goal: a limit on the rate of a connection holds for whoever names it, and the disk is right.
//! Method: real processes on loopback TCP; the time that the bytes on the link take at least.
#![cfg(unix)]

use failback_tests::agent::{Agent, Via};
use failback_tests::{cli, disk, report};
use tempfile::TempDir;

const DISK_LEN: u64 = 12 << 20;
const RATE: f64 = (8 << 20) as f64;
const RATE_TEXT: &str = "8M";

/// A full copy to an agent; the report, and that the disk is the source's.
fn copy(client: &[&str], server: &[&str]) -> serde_json::Value {
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("new.raw"), dir.path().join("old.raw"));
    disk::write_raw(&source, DISK_LEN, 100, 9);
    let grant = format!("disk={}:rw,max=1G", target.display());
    let agent = Agent::start_with(Via::Tcp, dir.path(), &[grant], server);
    let mut args = vec!["sync".to_owned(), source.display().to_string()];
    args.push(agent.endpoint("disk"));
    args.extend(["--json", "--compress", "off"].map(str::to_owned));
    args.extend(client.iter().copied().map(str::to_owned));
    let report = cli::failback(args).exits(0).json();
    report::assert_done(&report);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
    report
}

/// What the copy took of the time that its bytes need at that rate.
fn ratio(report: &serde_json::Value) -> f64 {
    let bytes = report::count(report, "/bytes/wire_out") as f64;
    report["seconds"]["total"].as_f64().unwrap() / (bytes / RATE)
}

#[test]
fn a_client_and_an_agent_keep_to_their_limit() {
    let limit = ["--limit-rate", RATE_TEXT];
    for (client, server) in [(&limit[..], &[][..]), (&[], &limit)] {
        let ratio = ratio(&copy(client, server));
        // The sockets hold some bytes that the limited end has not yet taken.
        assert!(
            ratio > 0.7,
            "{ratio} of the time it should take: {client:?}"
        );
        assert!(
            ratio < 3.0,
            "{ratio} of the time it should take: {client:?}"
        );
    }
}

#[test]
fn both_ends_may_be_far_and_slow() {
    let far = ["--limit-rate", "64M", "--link-delay", "20ms"];
    let report = copy(&far, &far);
    // Hello and Open go together; then Start, the end and its answer: two round trips.
    assert!(report["seconds"]["total"].as_f64().unwrap() > 0.08);
}

#[test]
fn a_verify_is_limited_too() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.raw");
    disk::write_raw(&path, DISK_LEN, 100, 9);
    let agent = Agent::start(Via::Unix, dir.path(), &[format!("a={}", path.display())]);
    let args = ["verify", &path.display().to_string(), &agent.endpoint("a")].map(str::to_owned);
    let more = ["--limit-rate", "16K", "--block-size", "64K"].map(str::to_owned);
    let begun = std::time::Instant::now();
    let run = cli::failback(args.into_iter().chain(more));
    drop(run.exits(0));
    // 192 hashes are 6 KiB.
    assert!(begun.elapsed().as_secs_f64() > 0.3);
}
