//! Goal: a connection that is cut at any byte, or in which any bit is flipped, leaves the old disk,
//! the new one, or one that is marked; the same sync then ends equal and sends no more than it
//! must; nothing hangs. Method: a middleman on the loopback between `sync` and `serve`; a recorded
//! sync small enough to be harmed at each of its bytes; a larger one for what is sent again.
//!
//! `FAILBACK_CUTS=N` cuts at N bytes of each direction, `FAILBACK_FLIPS=N` flips a bit in N bytes
//! of each; more than there are takes all. `FAILBACK_FLIP_BITS=1` flips each of a byte's bits.
#![cfg(unix)]
#![allow(
    clippy::print_stderr,
    reason = "the count of what was found is asked for"
)]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{self, Run};
use failback_tests::kill::{Tally, count_from, wait_until_free};
use failback_tests::middleman::{DIRECTIONS, Direction, Harm, Middleman};
use failback_tests::qemu::Format::{self, Dynamic, Raw};
use failback_tests::report::count;
use failback_tests::scene::{Scene, args_of};
use failback_tests::{disk, place, qemu, skip_without, state};
use tempfile::TempDir;

/// Bytes of each direction at which a small sync is harmed in CI.
const CUTS_IN_CI: usize = 110;
const FLIPS_IN_CI: usize = 90;
/// Syncs that are harmed at the same time: some of them wait.
const LANES: usize = 6;
const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 12;
/// A peer that is silent in the middle of a frame is given up by then: the idle limit and a bit.
const ENDS_WITHIN: Duration = Duration::from_secs(75);
/// In CI nobody waits for that; what waits is killed instead, and counted.
const PATIENCE_IN_CI: Duration = Duration::from_secs(8);
const MIB: u64 = 1 << 20;
/// What at most is sent again.
const WINDOW: u64 = 16 * MIB;

#[test]
fn a_sync_cut_at_every_byte_resumes_to_a_raw_target() {
    skip_without!("qemu-img");
    assert_cuts_are_harmless(Raw);
}

#[test]
fn a_sync_cut_at_every_byte_resumes_to_a_vhdx() {
    skip_without!("qemu-img");
    assert_cuts_are_harmless(Dynamic(1));
}

#[test]
fn every_flipped_bit_on_the_wire_fails_closed() {
    skip_without!("qemu-img");
    let wanted = count_from("FAILBACK_FLIPS", FLIPS_IN_CI);
    let all_bits = env::var_os("FAILBACK_FLIP_BITS").is_some();
    let flips = |direction, at: u64| {
        let rotating = u8::try_from(at % 8).expect("below eight");
        let bits = if all_bits {
            0..8
        } else {
            rotating..rotating + 1
        };
        bits.map(move |bit| Harm::Flip(direction, at, bit))
            .collect()
    };

    let patience = match env::var_os("FAILBACK_FLIPS") {
        None => PATIENCE_IN_CI,
        Some(_) => ENDS_WITHIN,
    };

    let tally = harm_everywhere(Raw, wanted, flips, |lane, harm| {
        let run = lane.sync_within(Some(harm), patience);
        let is_patient = patience == ENDS_WITHIN;
        assert!(run.code.is_some() || !is_patient, "{harm:?}: hangs");
        assert!(matches!(run.code, None | Some(0 | 5)), "{harm:?}: {run:?}");
        run
    });

    eprintln!("flipped:\n{}", tally.table());
    assert!(tally.of(&["exit 5"]) > 0);
}

#[test]
fn a_cut_sync_sends_at_most_a_window_again() {
    skip_without!("qemu-img");
    let scene = Scene::new(Dynamic(1), 70);
    let agent = Agent::start(Via::Tcp, scene.dir(), &[scene.grant()]);
    let middleman = Middleman::before(agent.address());
    let sync = || {
        let endpoint = PathBuf::from(middleman.endpoint("disk"));
        cli::failback(args_of(
            "sync",
            &[&scene.source, &endpoint],
            &["--json", "--compress", "off"],
        ))
    };
    let whole = count(&sync().exits(0).json(), "/bytes/sent");
    let steps = (1..=8).map(|part| whole * part / 9);

    steps.for_each(|at| {
        scene.reset();
        middleman.harm_next(Some(Harm::Cut(Direction::ToAgent, at)));
        let _ = sync().exits(5);
        wait_until_free(&scene.target);
        // What came within the first window may be lost before any of it was staged.
        let found = scene.look("cut");
        let found = found.name();
        let is_early = at <= WINDOW && found == "none";
        assert!(found == "staging" || is_early, "cut at {at}: {found}");
        let again = count(&sync().exits(0).json(), "/bytes/sent");

        scene.assert_new("resumed");
        assert!(
            again <= whole - at + WINDOW,
            "{again} of {whole}, cut at {at}"
        );
        eprintln!("cut after {at} of {whole}: {again} sent");
    });
}

fn assert_cuts_are_harmless(format: Format) {
    let wanted = count_from("FAILBACK_CUTS", CUTS_IN_CI);
    let cuts = |direction, at| vec![Harm::Cut(direction, at)];

    let tally = harm_everywhere(format, wanted, cuts, |lane, harm| {
        let run = lane.sync(Some(harm));
        // The last bytes are a farewell that nobody needs.
        assert!(matches!(run.code, Some(0 | 5)), "{harm:?}: {run:?}");
        run
    });

    eprintln!("{format:?}, cut:\n{}", tally.table());
    let (failed, ended) = (tally.of(&["exit 5"]), tally.of(&["exit 0"]));
    assert!(failed > ended, "{}", tally.table());
}

/// Harms a sync at about `wanted` bytes of each direction, looks at the target, and lets the same
/// sync end.
fn harm_everywhere(
    format: Format,
    wanted: usize,
    harms_at: impl Fn(Direction, u64) -> Vec<Harm>,
    harm: impl Fn(&Lane, Harm) -> Run + Sync,
) -> Tally {
    let first = Lane::new(format);
    let whole = first.sync(None).exits(0).json();
    let whole_sent = count(&whole, "/bytes/sent");
    let harms: Vec<Harm> = DIRECTIONS
        .into_iter()
        .flat_map(|direction| {
            let len = first.middleman.passed(direction);
            let step = usize::try_from(len).expect("short").div_ceil(wanted.max(1));
            eprintln!("{direction:?}: {len} bytes, each {step}.");
            (0..len).step_by(step.max(1)).map(move |at| (direction, at))
        })
        .flat_map(|(direction, at)| harms_at(direction, at))
        .collect();
    let (rest, tally) = (Mutex::new(harms.into_iter()), Mutex::new(Tally::default()));
    let next = || rest.lock().expect("no panic under it").next();
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                let lane = Lane::new(format);
                while let Some(this) = next() {
                    lane.reset();
                    let run = harm(&lane, this);
                    lane.wait_for_late_agent();
                    let word = lane.look(&run, this);
                    let again = lane.sync(None);
                    assert_eq!(again.code, Some(0), "{this:?}\n{}", again.stderr);
                    // An agent answers a moment before it lets go.
                    wait_until_free(&lane.target);
                    lane.assert_new(this);
                    let sent = count(&again.json(), "/bytes/sent");
                    assert!(sent <= whole_sent, "{this:?}: {sent} of {whole_sent}");
                    let mut tally = tally.lock().expect("no panic under it");
                    tally.add(&match run.code {
                        None => "killed".to_owned(),
                        Some(code) => format!("exit {code}"),
                    });
                    tally.add(&word);
                }
            });
        }
    });
    tally.into_inner().expect("no panic under it")
}

/// A small sync that can be repeated, with an agent and somebody before it.
struct Lane {
    _dir: TempDir,
    _agent: Agent,
    middleman: Middleman,
    source: PathBuf,
    target: PathBuf,
    old: Vec<u8>,
    old_root: String,
    new_root: String,
}

impl Lane {
    fn new(format: Format) -> Self {
        // Nothing here is about flushes.
        let dir = place::in_memory();
        let path = |name: &str| dir.path().join(name);
        let (old, source, target) = (path("old.raw"), path("source.raw"), path("target"));
        let bytes: Vec<u8> = (0..BLOCKS * BLOCK).map(byte_of_old).collect();
        fs::write(&old, &bytes).expect("old disk");
        fs::write(&source, bytes).expect("source");
        // Pages that pack well: there are few bytes to be harmed.
        let pages = [3, 4, 40, 100, 101].map(|page| disk::Change {
            at: page * disk::PAGE_LEN as u64,
            page: vec![u8::try_from(page).expect("small"); disk::PAGE_LEN],
        });
        disk::write_changes(&source, &pages);
        // A block of zeros where there was data.
        let zeros = disk::Change {
            at: 8 * BLOCK,
            page: vec![0; usize::try_from(BLOCK).expect("small")],
        };
        disk::write_changes(&source, &[zeros]);
        qemu::convert(&old, &target, format);
        let agent = Agent::start(
            Via::Tcp,
            dir.path(),
            &[format!("disk={}:rw", target.display())],
        );
        Self {
            middleman: Middleman::before(agent.address()),
            old: fs::read(&target).expect("target"),
            old_root: state::root_of(&old),
            new_root: state::root_of(&source),
            _agent: agent,
            _dir: dir,
            source,
            target,
        }
    }

    fn reset(&self) {
        // Missing at first.
        let _ = fs::remove_dir_all(self.target.with_file_name(".failback"));
        fs::remove_file(&self.target).expect("target");
        fs::write(&self.target, &self.old).expect("target");
    }

    fn sync(&self, harm: Option<Harm>) -> Run {
        self.sync_within(harm, cli::RUN_MAX)
    }

    /// Killed when it takes longer.
    fn sync_within(&self, harm: Option<Harm>, patience: Duration) -> Run {
        self.middleman.harm_next(harm);
        let endpoint = PathBuf::from(self.middleman.endpoint("disk"));
        let more = ["--json", "--block-size", "64K", "--compress", "zstd:3"];
        let mut run = cli::start(args_of("sync", &[&self.source, &endpoint], &more));
        let until = Instant::now() + patience;
        while Instant::now() < until && !run.has_ended() {
            thread::sleep(Duration::from_millis(1));
        }
        run.kill();
        run.wait()
    }

    /// Waits until the agent has let go; one whose peer has gone may only now have got as far as to
    /// open the target.
    fn wait_for_late_agent(&self) {
        let from = Instant::now();
        loop {
            wait_until_free(&self.target);
            let map = cli::failback(args_of("map", &[&self.target], &["--json"]));
            if map.code != Some(3) || from.elapsed() > cli::RUN_MAX {
                return;
            }
        }
    }

    /// The word, which must be true; a sync that said that all is well must have made it so.
    fn look(&self, run: &Run, harm: Harm) -> String {
        let context = format!("{harm:?}, exit {:?}", run.code);
        let look = state::look_true(&self.target, &self.old_root, &self.new_root, &context);
        if run.code == Some(0) {
            self.assert_new(harm);
        }
        look.name().to_owned()
    }

    fn assert_new(&self, harm: Harm) {
        assert_eq!(state::root_of(&self.target), self.new_root, "{harm:?}");
    }
}

fn byte_of_old(at: u64) -> u8 {
    u8::try_from(at / disk::PAGE_LEN as u64 % 251).expect("small") | 1
}
