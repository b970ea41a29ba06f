//! Goal: over many rounds nothing is lost: what a test wrote to the source at any time is on the
//! target, however often syncs were killed in between. Method: mutate, sync, kill, resume, verify;
//! the expected content is carried over in memory from the first round on, so that a write that was
//! lost once shows in every later round. Raw and VHDX, one process and two, random options.
//!
//! `FAILBACK_SOAK_SECONDS=N` goes on for N seconds. A failure names its seed; `FAILBACK_SOAK_SEED`
//! takes one.
#![cfg(unix)]
#![allow(clippy::print_stderr, reason = "the count of rounds is asked for")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use failback_tests::agent::{Agent, Via};
use failback_tests::cli;
use failback_tests::kill::{Tally, count_from, wait_until_free};
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::scene::args_of;
use failback_tests::{place, qemu, skip_without, state};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

const SECONDS_IN_CI: usize = 12;
const MIB: usize = 1 << 20;
const DISK_LEN: usize = 24 * MIB;
/// Longer than most syncs of such a disk take.
const KILL_WITHIN: Duration = Duration::from_millis(250);
/// Options that a sync may have.
const OPTIONS: &[&[&str]] = &[
    &[],
    &[],
    &["--no-undo"],
    &["--verify", "full"],
    &["--hash", "xxh3"],
    &["--compress", "zstd:3"],
    &["--block-size", "64K"],
    &["--strategy", "full"],
    &["--stage", "log"],
    &["--apply", "in-place"],
];

#[test]
fn nothing_is_lost_over_many_rounds() {
    skip_without!("qemu-img");
    let seconds = count_from("FAILBACK_SOAK_SECONDS", SECONDS_IN_CI) as u64;
    let seed = count_from("FAILBACK_SOAK_SEED", 1) as u64;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disks = [Raw, Dynamic(1)].map(|format| Disk::new(format, &mut rng));
    let mut tally = Tally::default();

    while Instant::now() < until {
        for disk in &mut disks {
            disk.round(&mut tally, seed, &mut rng);
        }
    }

    eprintln!("{seconds} s, seed {seed}:\n{}", tally.table());
    assert!(
        tally.of(&["rounds"]) > 1 && tally.of(&["kills"]) > 0,
        "{}",
        tally.table()
    );
}

/// A source, its target, and what both must hold.
struct Disk {
    dir: TempDir,
    format: Format,
    source: PathBuf,
    target: PathBuf,
    expected: Vec<u8>,
    rounds: usize,
}

impl Disk {
    fn new(format: Format, rng: &mut StdRng) -> Self {
        let dir = place::in_memory();
        let [source, target] = place::paths(dir.path(), ["source.raw", "target"]);
        let mut expected = vec![0; DISK_LEN];
        rng.fill(&mut expected[..DISK_LEN / 3]);
        fs::write(&source, &expected).expect("source");
        qemu::create(&target, format, DISK_LEN as u64);
        Self {
            dir,
            format,
            source,
            target,
            expected,
            rounds: 0,
        }
    }

    fn round(&mut self, tally: &mut Tally, seed: u64, rng: &mut StdRng) {
        self.rounds += 1;
        let mut story = format!("seed {seed}, {:?}, round {}", self.format, self.rounds);
        self.mutate(rng);
        for _ in 0..rng.random_range(0..3) {
            let ended = self.sync(Some(KILL_WITHIN.mul_f64(rng.random())), &mut story, rng);
            tally.add(if ended == Some(0) {
                "ended before the kill"
            } else {
                "kills"
            });
            tally.add(&format!("found {}", state::look(&self.target).name()));
            // The source goes on meanwhile, as a machine that runs does between two passes.
            if rng.random_range(0..3) == 0 {
                self.mutate(rng);
            }
        }
        let ended = self.sync(None, &mut story, rng);
        assert_eq!(ended, Some(0), "{story}");
        self.assert_expected(&story);
        tally.add("rounds");
    }

    /// Random bytes, zeros and single bytes at random places of the source.
    fn mutate(&mut self, rng: &mut StdRng) {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&self.source)
            .expect("source");
        for _ in 0..rng.random_range(1..24) {
            let len = match rng.random_range(0..4) {
                0 => 1,
                1 => 4096,
                2 => rng.random_range(1..70_000),
                _ => rng.random_range(1..2 * MIB),
            };
            let at = rng.random_range(0..DISK_LEN - len);
            let piece = &mut self.expected[at..at + len];
            match rng.random_range(0..3) {
                0 => piece.fill(0),
                _ => rng.fill(piece),
            }
            file.write_all_at(piece, at as u64).expect("change");
        }
    }

    /// A sync with random options, killed after a while if that is given; its exit code.
    fn sync(&self, kill: Option<Duration>, story: &mut String, rng: &mut StdRng) -> Option<i32> {
        let options = OPTIONS[rng.random_range(0..OPTIONS.len())];
        let agent = rng.random::<bool>().then(|| {
            let sockets = tempfile::tempdir_in(self.dir.path()).expect("folder of a socket");
            let grant = format!("disk={}:rw", self.target.display());
            Agent::start(Via::Unix, &sockets.keep(), &[grant])
        });
        let target = match &agent {
            None => self.target.clone(),
            Some(agent) => PathBuf::from(agent.endpoint("disk")),
        };
        *story += &format!("; {options:?}, agent {}, killed {kill:?}", agent.is_some());
        let mut run = cli::start(args_of("sync", &[&self.source, &target], options));
        let mut agent = agent;
        if let Some(delay) = kill {
            thread::sleep(delay);
            match agent.as_mut().filter(|_| rng.random()) {
                Some(agent) => agent.kill(),
                None => run.kill(),
            }
        }
        let run = run.wait();
        drop(agent);
        wait_until_free(&self.target);
        let is_right = match kill {
            None => run.code == Some(0),
            // A killed agent is a peer that went away.
            Some(_) => matches!(run.code, None | Some(0 | 5)),
        };
        assert!(is_right, "{story}: {:?}\n{}", run.code, run.stderr);
        run.code
    }

    fn assert_expected(&self, story: &str) {
        let expected = self.dir.path().join("expected.raw");
        fs::write(&expected, &self.expected).expect("expected content");
        let same = qemu::compare((&self.target, self.format), (&expected, Raw));
        assert_eq!(same, Ok(()), "{story}");
        let look = state::look(&self.target);
        assert!(!look.is_mixed, "{story}: {look:?}");
    }
}
