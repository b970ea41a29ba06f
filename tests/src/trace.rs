//! Runs under strace, which kills the process at a chosen system call or makes the call fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cli::{self, Run};
use crate::scene::Scene;

/// Calls that change something.
pub const CHANGING: &[&str] = &[
    "write",
    "pwrite64",
    "pwritev2",
    "fsync",
    "fdatasync",
    "msync",
    "rename",
    "ftruncate",
    "fallocate",
    "unlink",
];

/// One system call of a run: the `nth` of a thread, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Name of the call.
    pub call: &'static str,
    /// Which one.
    pub nth: usize,
}

/// What happens there.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process is killed.
    Kill,
    /// The call fails with this error (`EIO`) and does nothing.
    Error(&'static str),
}

/// All points of an undisturbed sync.
///
/// # Panics
///
/// When strace does not work here, or the sync fails.
pub fn points(scene: &Scene, calls: &'static [&'static str]) -> Vec<Point> {
    scene.reset();
    let log = scene.dir().join("strace.log");
    let trace = format!("--trace={}", calls.join(","));
    let mut options = vec!["-o", text(&log), &trace];
    options.extend(paths(scene, calls));
    let _ = traced(scene, &options).exits(0);
    let log = fs::read_to_string(&log).expect("log of strace");
    let most = most_of_a_thread(&log);
    let of = |call: &&'static str| {
        let most = most.get(*call).copied().unwrap_or(0);
        let call = *call;
        (1..=most).map(move |nth| Point { call, nth })
    };
    calls.iter().flat_map(of).collect()
}

impl Fault {
    /// The error's name; none of a kill.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "",
            Self::Error(name) => name,
        }
    }
}

/// Runs a sync that meets a fault; whether it did.
///
/// # Panics
///
/// When strace cannot be started, or the sync hangs.
pub fn sync_with(scene: &Scene, point: Point, fault: Fault) -> (Run, bool) {
    let Point { call, nth } = point;
    let what = match fault {
        Fault::Kill => "signal=KILL".to_owned(),
        Fault::Error(name) => format!("error={name}"),
    };
    let inject = format!("--inject={call}:{what}:when={nth}");
    let trace = format!("--trace={call}");
    let log = scene.dir().join("injected.log");
    let mut options = vec!["-o", text(&log), &trace, &inject];
    options.extend(paths(scene, &[call]));
    let run = traced(scene, &options);
    let log = fs::read_to_string(&log).expect("log of strace");
    let is_injected = match fault {
        Fault::Kill => run.code.is_none(),
        Fault::Error(_) => log.contains("(INJECTED)"),
    };
    (run, is_injected)
}

/// Reads count only where they are reads of the disks: the loader of programs reads, too.
fn paths<'a>(scene: &'a Scene, calls: &[&str]) -> Vec<&'a str> {
    match calls.contains(&"pread64") {
        true => vec!["-P", text(&scene.source), "-P", text(&scene.target)],
        false => Vec::new(),
    }
}

/// About `count` of the points, spread evenly over each call; each call's first and last.
pub fn spread(points: &[Point], count: usize) -> Vec<Point> {
    let step = points.len().div_ceil(count.max(1)).max(1);
    let is_edge = |at: usize| {
        at == 0
            || at + 1 == points.len()
            || points[at].call != points[at - 1].call
            || points[at].call != points[at + 1].call
    };
    let chosen = (0..points.len()).filter(|at| at % step == 0 || is_edge(*at));
    chosen.map(|at| points[at]).collect()
}

fn traced(scene: &Scene, options: &[&str]) -> Run {
    // Without --seccomp-bpf: calls would be counted in another way.
    let mut args: Vec<String> = ["-f", "-qq"]
        .iter()
        .chain(options)
        .map(|s| (*s).into())
        .collect();
    args.push(text(&cli::binary()).into());
    args.extend(scene.sync_args(&["--json"]));
    cli::run_program("strace", &args)
}

/// Calls by name, in the thread that makes most of them: strace counts for each thread.
fn most_of_a_thread(log: &str) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let mut words = line.split_whitespace();
        let thread = words.next().unwrap_or_default();
        if let Some((call, _)) = words.next().and_then(|word| word.split_once('(')) {
            *counts.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((_, call), count) in counts {
        let known = most.entry(call.to_owned()).or_default();
        *known = count.max(*known);
    }
    most
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
