//! Goal: cost follows the data, not the size of the disk: 64 TiB with 1 GiB of data in 1,024
//! places. Method: QEMU writes the places into an image that failback made; time and peak memory
//! are taken.
//!
//! The limits of the product are for a machine that does nothing else:
//! `cargo nextest run -p failback-tests --run-ignored all -j 1 huge_disk`. In CI time has slack.
#![cfg(unix)]

use std::path::PathBuf;
use std::time::Duration;

use failback_tests::agent::{Agent, Via};
use failback_tests::qemu::Format::Dynamic;
use failback_tests::{cli, place, qemu, report, skip_without};
use tempfile::TempDir;

const SIZE: u64 = 64 << 40;
const PLACES: u64 = 1_024;
const INFO_MAX: Duration = Duration::from_millis(200);
const FIRST_MAX: Duration = Duration::from_secs(5);
const SECOND_MAX: Duration = Duration::from_secs(2);
const PEAK_MAX: u64 = 256 << 20;

/// Other builds and tests share the machine in CI.
const SLACK_IN_CI: u32 = 3;

#[test]
fn cost_follows_the_data() {
    skip_without!("qemu-io");
    Huge::new().assert_bounds(SLACK_IN_CI);
}

#[test]
#[ignore = "the limits of the product; wants a quiet machine"]
fn cost_meets_the_limits_of_the_product() {
    skip_without!("qemu-io");
    Huge::new().assert_bounds(1);
}

#[test]
fn memory_of_an_agent_is_bounded() {
    skip_without!("qemu-io");
    let huge = Huge::new();
    let grant = format!("disk={}:rw,max=64T", huge.target.display());
    let agent = Agent::start(Via::Tcp, huge.dir.path(), &[grant]);

    let run = cli::sync(&huge.source, agent.endpoint("disk")).exits(0);

    report::assert_done(&run.json());
    assert!(
        run.peak_bytes <= PEAK_MAX,
        "client: {} MiB",
        run.peak_bytes >> 20
    );
    assert!(
        agent.peak_bytes() <= PEAK_MAX,
        "agent: {} MiB",
        agent.peak_bytes() >> 20
    );
}

struct Huge {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Huge {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [source, target] = place::paths(dir.path(), ["source.vhdx", "target.vhdx"]);
        let args = [
            "create".as_ref(),
            source.as_os_str(),
            "--size".as_ref(),
            "64T".as_ref(),
        ];
        let _ = cli::failback(args).exits(0);
        let places = (0..PLACES).map(|place| {
            let at = place * (SIZE / PLACES) + (place % 7) * (1 << 20);
            format!("write -q -P {} {at} 1M", place % 255 + 1)
        });
        qemu::io(&source, Dynamic(2), &places.collect::<Vec<_>>());
        Self {
            dir,
            source,
            target,
        }
    }

    fn assert_bounds(&self, slack: u32) {
        let info = cli::failback(["info".as_ref(), self.source.as_os_str(), "--json".as_ref()]);
        let info = info.exits(0);
        let first = cli::sync(&self.source, &self.target).exits(0);
        let second = cli::sync(&self.source, &self.target).exits(0);

        report::assert_done(&first.json());
        let second_report = second.json();
        report::assert_nothing_sent(&second_report);
        assert_eq!(first.json()["root"], second_report["root"]);
        let runs = [
            (&info, INFO_MAX),
            (&first, FIRST_MAX),
            (&second, SECOND_MAX),
        ];
        for (run, most) in runs {
            assert!(run.took <= most * slack, "{:?}, {most:?} at most", run.took);
            assert!(run.peak_bytes <= PEAK_MAX, "{} MiB", run.peak_bytes >> 20);
        }
    }
}
