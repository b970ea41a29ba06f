//! Sudden ends: when a process is killed, and what was then found.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use crate::agent::{Agent, Via};
use crate::cli::{self, Running};
use crate::scene::{Scene, args_of};
use crate::{place, state};

/// Entries of a journal whose last is COMMIT, and one more for each word after it.
const PAGES_AT_COMMIT: u64 = 3;
const PAGES_AT_SEAL: u64 = 2;
/// Tries to cut a sync at one word.
const CUTS_MAX: usize = 200;
const PAGES_AT_DONE: u64 = 6;
/// How often the journal is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Of a hundred kills, how many wait for COMMIT first.
const AFTER_COMMIT_PERCENT: u32 = 75;
/// So many kills may come too late, beyond as many as did not.
const LATE_MAX: usize = 20;
/// A kill that came too late shortens the next waits, one that did not lengthens them again: in the
/// long run at most one of five comes too late.
const PACE_DOWN: f64 = 0.7;
const PACE_UP: f64 = 1.1;

/// How a sync runs.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    /// One process.
    Local,
    /// An agent has the target, another process the source.
    TwoProcesses,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Whoever has the source.
    Source,
    /// Whoever has the target.
    Target,
}

/// How long an undisturbed sync took, and its last steps.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    whole: Duration,
    from_commit_to_done: Duration,
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// So many entries are in the journal.
    pages: u64,
    /// And so much time has passed then.
    delay: Duration,
}

/// How fast runs are, compared to the one that was measured: others use the machine, too, and a
/// measure that was taken while they did would let most kills come too late.
#[derive(Clone, Copy, Debug)]
struct Pace(f64);

impl Pace {
    fn learn(&mut self, is_met: bool) {
        self.0 = match is_met {
            true => (self.0 * PACE_UP).min(1.0),
            false => self.0 * PACE_DOWN,
        };
    }
}

impl Timeline {
    fn at(self, pace: Pace) -> Self {
        Self {
            whole: self.whole.mul_f64(pace.0),
            from_commit_to_done: self.from_commit_to_done.mul_f64(pace.0),
        }
    }
}

impl Moment {
    fn draw(rng: &mut StdRng, timeline: Timeline, may_wait: bool) -> Self {
        let is_late = may_wait && rng.random_range(0..100) < AFTER_COMMIT_PERCENT;
        let part: f64 = rng.random_range(0.0..1.0);
        match is_late {
            true => Self {
                pages: PAGES_AT_COMMIT,
                // Rather early than late: no two runs take the same time.
                delay: timeline.from_commit_to_done.mul_f64(part * part),
            },
            false => Self {
                pages: 0,
                delay: timeline.whole.mul_f64(part),
            },
        }
    }

    /// Waits for it, or for the end of the run.
    fn wait(self, target: &Path, run: &mut Running) {
        while state::journal_pages(target) < self.pages && !run.has_ended() {
            thread::sleep(LOOK_EVERY);
        }
        let from = Instant::now();
        while from.elapsed() < self.delay && !run.has_ended() {
            thread::sleep(LOOK_EVERY.min(self.delay));
        }
    }
}

/// A sync that goes on; with an agent when there are two processes.
struct Sync {
    agent: Option<Agent>,
    run: Running,
}

impl Sync {
    fn start(scene: &Scene, setting: Setting) -> Self {
        let agent = match setting {
            Setting::Local => None,
            // A folder of its own for each socket: a killed agent leaves its socket behind.
            Setting::TwoProcesses => Some(Agent::start(Via::Unix, &fresh(scene), &[scene.grant()])),
        };
        let run = match &agent {
            None => cli::start(scene.sync_args(&["--json"])),
            Some(agent) => {
                let target = PathBuf::from(agent.endpoint("disk"));
                let more = [&["--json"], scene.way].concat();
                cli::start(args_of("sync", &[&scene.source, &target], &more))
            }
        };
        Self { agent, run }
    }

    /// Kills one side and waits until nobody has the target any more. Whether the sync still ran.
    fn kill(mut self, scene: &Scene, victim: Victim) -> bool {
        match (&mut self.agent, victim) {
            (Some(agent), Victim::Target) => agent.kill(),
            _ => self.run.kill(),
        }
        let run = self.run.wait();
        assert!(
            [None, Some(0), Some(5)].contains(&run.code),
            "{:?} {}",
            run.code,
            run.stderr
        );
        wait_until_free(&scene.target);
        // Killed itself, or told that its peer was gone.
        run.code != Some(0)
    }
}

fn fresh(scene: &Scene) -> PathBuf {
    let dir = tempfile::tempdir_in(scene.dir()).expect("folder of a socket");
    dir.keep()
}

/// Waits until nobody holds the target or its state.
///
/// # Panics
///
/// When that takes longer than any run.
pub fn wait_until_free(target: &Path) {
    let from = Instant::now();
    let lock = || state::directory(target).map(|directory| directory.join("lock"));
    while place::is_locked(target) || lock().is_some_and(|lock| place::is_locked(&lock)) {
        assert!(from.elapsed() < cli::RUN_MAX, "held for ever");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a sync undisturbed.
///
/// # Panics
///
/// When it fails.
pub fn measure(scene: &Scene, setting: Setting) -> Timeline {
    scene.reset();
    let from = Instant::now();
    let mut sync = Sync::start(scene, setting);
    let mut at_commit = None;
    let mut at_done = None;
    while !sync.run.has_ended() {
        let pages = state::journal_pages(&scene.target);
        let now = from.elapsed();
        at_commit = at_commit.or((pages >= PAGES_AT_COMMIT).then_some(now));
        at_done = at_done.or((pages >= PAGES_AT_DONE).then_some(now));
        thread::sleep(LOOK_EVERY);
    }
    let whole = from.elapsed();
    let _ = sync.run.wait().exits(0);
    let commit = at_commit.unwrap_or(whole / 2);
    Timeline {
        whole,
        from_commit_to_done: at_done.unwrap_or(whole).saturating_sub(commit),
    }
}

/// Runs a sync of one process and kills it as soon as `is_it` says so; again from the start until
/// the state has this word then.
///
/// # Panics
///
/// When that does not come about in many tries.
pub fn cut(scene: &Scene, word: &str, more: &[&str], is_it: impl Fn(&Scene) -> bool) {
    for _ in 0..CUTS_MAX {
        scene.reset();
        cut_once(scene, more, &is_it);
        if state::look(&scene.target).name() == word {
            return;
        }
    }
    panic!("never cut at {word}");
}

/// Runs a sync as it stands and kills it as soon as `is_it` says so.
///
/// # Panics
///
/// When it cannot be started.
pub fn cut_once(scene: &Scene, more: &[&str], is_it: impl Fn(&Scene) -> bool) {
    let mut run = cli::start(scene.sync_args(more));
    while !is_it(scene) && !run.has_ended() {
        thread::sleep(LOOK_EVERY / 4);
    }
    run.kill();
    run.wait();
}

/// Cuts a sync in which so many bytes are staged.
///
/// # Panics
///
/// As [`cut`].
pub fn cut_when_staged(scene: &Scene, bytes: u64, more: &[&str]) {
    cut(scene, "staging", more, |scene| {
        let stage = std::fs::metadata(scene.state_file("stage"));
        stage.is_ok_and(|stage| stage.len() >= bytes)
    });
}

/// Cuts a sync after SEAL and before COMMIT.
///
/// # Panics
///
/// As [`cut`].
pub fn cut_when_sealed(scene: &Scene, more: &[&str]) {
    cut(scene, "staged", more, |scene| {
        state::journal_pages(&scene.target) >= PAGES_AT_SEAL
    });
}

/// How often which word was found.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    words: BTreeMap<String, usize>,
    late: usize,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, word: &str) {
        *self.words.entry(word.to_owned()).or_default() += 1;
    }

    /// One more kill, which counts only if it met a process that still ran.
    ///
    /// # Panics
    ///
    /// When most come too late: nothing is tested then.
    pub fn add_kill(&mut self, is_met: bool, word: &str) {
        match is_met {
            true => self.add(word),
            false => self.late += 1,
        }
        assert!(self.late <= LATE_MAX + self.total(), "{}", self.table());
    }

    /// All of another one.
    pub fn add_all(&mut self, other: &Self) {
        for (word, count) in &other.words {
            *self.words.entry(word.clone()).or_default() += count;
        }
        self.late += other.late;
    }

    /// How often one of these was found.
    pub fn of(&self, words: &[&str]) -> usize {
        words.iter().filter_map(|word| self.words.get(*word)).sum()
    }

    /// How often anything was.
    pub fn total(&self) -> usize {
        self.words.values().sum()
    }

    /// Kills that came when the process had ended.
    pub fn late(&self) -> usize {
        self.late
    }

    /// A line for each word.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let late = ("(too late)", &self.late);
        let words = self
            .words
            .iter()
            .map(|(word, count)| (word.as_str(), count));
        for (word, count) in words.chain((self.late > 0).then_some(late)) {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "  {word:<16} {count:>6}");
        }
        table
    }
}

/// Kills `count` syncs that run, looks at the target after each, and lets the sync end after every
/// first or second kill.
///
/// # Panics
///
/// When a promise is broken.
pub fn kill_syncs(scene: &Scene, setting: Setting, count: usize, rng: &mut StdRng) -> Tally {
    // The first run warms the machine up: its times are those of no other.
    let _ = measure(scene, setting);
    let timeline = measure(scene, setting);
    let mut pace = Pace(1.0);
    let mut tally = Tally::default();
    while tally.total() < count {
        scene.reset();
        let mut story = String::new();
        for kill in 0..rng.random_range(1..=2) {
            let moment = Moment::draw(rng, timeline.at(pace), kill == 0);
            // After COMMIT the source is not needed any more: that is of less interest.
            let victim = match rng.random_range(0..if moment.pages > 0 { 8 } else { 2 }) {
                0 => Victim::Source,
                _ => Victim::Target,
            };
            let _ = write!(story, "{setting:?}: killed {victim:?} at {moment:?}; ");
            let mut sync = Sync::start(scene, setting);
            moment.wait(&scene.target, &mut sync.run);
            let is_met = sync.kill(scene, victim);
            let look = scene.look(&story);
            let _ = write!(story, "was {}; ", look.name());
            tally.add_kill(is_met, look.name());
            pace.learn(is_met);
        }
        scene.assert_ends_equal(&story);
    }
    tally
}

/// Kills `count` roll-backs that run, looks at the target after each, and brings it back to the old
/// disk.
///
/// # Panics
///
/// When a promise is broken.
pub fn kill_roll_backs(scene: &Scene, count: usize, rng: &mut StdRng) -> Tally {
    let keep = || scene.sync(&["--keep-undo"]).exits(0);
    scene.reset();
    let _ = keep();
    let whole = scene.end_by("rollback").exits(0).took;
    let mut pace = Pace(1.0);
    let mut tally = Tally::default();
    while tally.total() < count {
        scene.reset();
        let _ = keep();
        let delay = whole.mul_f64(pace.0 * rng.random_range(0.0..1.0));
        let story = format!("rollback killed after {delay:?}");
        let mut run = cli::start(args_of("rollback", &[&scene.target], &[]));
        thread::sleep(delay);
        run.kill();
        let is_met = run.wait().code.is_none();
        let look = scene.look(&story);
        tally.add_kill(is_met, look.name());
        pace.learn(is_met);
        let _ = scene.end_by("recover").exits(0);
        // It ends what was begun; what was not begun, or had ended, stays.
        let code = match scene.look(&story).name() {
            "old_restored" => 3,
            _ => 0,
        };
        let _ = scene.end_by("rollback").exits(code);
        scene.assert_old(&story);
        scene.assert_ends_equal(&story);
    }
    tally
}

/// What an operator may run on a target, whatever state it is in.
const STEPS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("sync", &["--keep-undo"]),
    ("sync", &["--no-undo"]),
    ("sync", &["--apply", "in-place"]),
    ("sync", &["--verify", "full"]),
    ("recover", &[]),
    ("rollback", &[]),
    ("commit", &[]),
];
/// Steps from the old disk on, before the sync that has to end well.
const STEPS_OF_A_WALK: usize = 6;

/// Runs and kills commands in random order, looks at the target after each of `count`, and lets
/// the sync end after some.
///
/// # Panics
///
/// When a promise is broken.
pub fn kill_walks(scene: &Scene, count: usize, rng: &mut StdRng) -> Tally {
    let timeline = measure(scene, Setting::Local);
    let mut pace = Pace(1.0);
    let mut tally = Tally::default();
    while tally.total() < count {
        scene.reset();
        let mut story = String::new();
        for _ in 0..STEPS_OF_A_WALK {
            let (command, more) = STEPS[rng.random_range(0..STEPS.len())];
            // The others are short, and many of them are refused.
            let within = match command {
                "sync" => timeline.whole,
                _ => timeline.whole / 8,
            };
            let delay = within.mul_f64(pace.0 * rng.random_range(0.0..1.0));
            let _ = write!(story, "{command} {more:?} killed after {delay:?}; ");
            let mut run = match command {
                "sync" => cli::start(scene.sync_args(more)),
                _ => cli::start(args_of(command, &[&scene.target], more)),
            };
            let from = Instant::now();
            while from.elapsed() < delay && !run.has_ended() {
                thread::sleep(LOOK_EVERY);
            }
            run.kill();
            let done = run.wait();
            let _ = write!(story, "code {:?}, ", done.code);
            assert!(
                [None, Some(0), Some(3)].contains(&done.code),
                "{story}{}",
                done.stderr
            );
            let look = scene.look(&story);
            let _ = write!(story, "was {look:?}; ");
            // Nothing was killed of a command that was refused, nor did it come too late.
            if done.code != Some(3) {
                let is_met = done.code.is_none();
                tally.add_kill(is_met, look.name());
                pace.learn(is_met);
            }
            if look.name() == "done" {
                break;
            }
        }
        // Ends what waits to be accepted; anything else is refused.
        scene.end_by("recover");
        scene.end_by("commit");
        scene.assert_ends_equal(&story);
    }
    tally
}

/// The number in an environment variable, or the one for CI.
///
/// # Panics
///
/// When it is no number.
pub fn count_from(variable: &str, in_ci: usize) -> usize {
    let text = env::var(variable).unwrap_or_default();
    match text.is_empty() {
        true => in_ci,
        false => text.parse().expect("a count"),
    }
}
