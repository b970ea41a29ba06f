//! Runs seeds, each twice, and says how a failure is seen again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use failback_engine::schedule::{Trace, simulate};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::history::{Planted, Tally, live};

/// How to see it again.
pub(crate) fn reproduction(seed: u64) -> String {
    format!("FAILBACK_SEED={seed} cargo nextest run -p failback-tests -E 'test(simulated_seed)'")
}

/// The threads of a simulation wait for each other for good: so would this process.
pub(crate) fn hang(state: &str) -> ! {
    // The thread that notices it is any of the simulation's: the others tell which seeds run.
    let running = RUNNING
        .lock()
        .map(|seeds| seeds.clone())
        .unwrap_or_default();
    for seed in running {
        eprintln!("a simulation hangs; it is this one: {}", reproduction(seed));
    }
    eprintln!("{state}");
    std::process::abort();
}

static RUNNING: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_default())
}

/// One run of a seed: what happened, and what came of it.
pub(crate) fn run(seed: u64, planted: Planted) -> (Result<Tally, String>, Trace) {
    let running = |change: &dyn Fn(&mut Vec<u64>)| {
        if let Ok(mut seeds) = RUNNING.lock() {
            change(&mut seeds);
        }
    };
    running(&|seeds| seeds.push(seed));
    let ended = catch_unwind(AssertUnwindSafe(|| {
        simulate(seed, hang, || live(seed, planted))
    }));
    running(&|seeds| seeds.retain(|other| *other != seed));
    match ended {
        Ok(ended) => ended,
        Err(panic) => (Err(text_of(panic.as_ref())), Trace::default()),
    }
}

/// Keeps this thread, and those it begins, on one of the cores it may use: the threads of a
/// simulation never run at the same time, and hand their turn on in half the time there.
pub(crate) fn stay_on_one_core(number: usize) {
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| allowed.is_set(*core))
        .collect();
    let Some(core) = cores.get(number % cores.len().max(1)) else {
        return;
    };
    let mut one = CpuSet::new();
    one.set(*core);
    // It is only faster; nobody misses it.
    let _ = sched_setaffinity(None, &one);
}

/// Two runs of a seed, which have to be the same.
pub(crate) fn run_twice(seed: u64, planted: Planted) -> Result<(Tally, Trace), String> {
    let (first, trace) = run(seed, planted);
    let (second, again) = run(seed, planted);
    if let Some(difference) = trace.first_difference(&again) {
        return Err(format!("two runs differ: {difference:?}"));
    }
    match (first, second) {
        (Ok(tally), Ok(other)) if tally == other => Ok((tally, trace)),
        (Ok(_), Ok(_)) => Err("two runs came to different ends".into()),
        (Err(broken), _) | (_, Err(broken)) => Err(broken),
    }
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub(crate) struct Campaign {
    pub(crate) seeds: u64,
    pub(crate) steps: u64,
    pub(crate) tally: Tally,
    /// The first few that broke a promise.
    pub(crate) broken: Vec<(u64, String)>,
}

/// Of so many that broke a promise each is told.
const TOLD_MAX: usize = 20;

/// Runs all seeds from `first` on, on so many threads.
pub(crate) fn campaign(first: u64, count: u64, threads: usize) -> Campaign {
    let (next, campaign) = (AtomicU64::new(0), Mutex::new(Campaign::default()));
    std::thread::scope(|scope| {
        for worker in 0..threads {
            let (next, campaign) = (&next, &campaign);
            scope.spawn(move || {
                stay_on_one_core(worker);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let seed = first + number;
                    let ended = run_twice(seed, Planted::Nothing);
                    let mut campaign = campaign.lock().expect("nobody panics with it");
                    if campaign.broken.len() >= TOLD_MAX {
                        return;
                    }
                    campaign.take_in(seed, ended);
                }
            });
        }
    });
    campaign.into_inner().expect("nobody panics with it")
}

impl Campaign {
    fn take_in(&mut self, seed: u64, ended: Result<(Tally, Trace), String>) {
        self.seeds += 1;
        match ended {
            Ok((tally, trace)) => {
                self.tally.add(&tally);
                self.steps += trace.steps;
            }
            Err(broken) => {
                println!("{}\n    {broken}", reproduction(seed));
                self.broken.push((seed, broken));
            }
        }
        if self.seeds.is_multiple_of(1000) {
            println!(
                "{} seeds, {} steps, {:?}",
                self.seeds, self.steps, self.tally
            );
        }
    }
}
