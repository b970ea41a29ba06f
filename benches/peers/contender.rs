//! One of those that are compared.

use std::fmt;
use std::io::{Error, Result};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use crate::Run;
use crate::disk::Place;

/// What a contender finds where the target goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// The older disk, or nothing, as the case says.
    Target,
    /// Nothing: it always writes a new file.
    Nothing,
}

/// A way to make the target equal to the source.
#[derive(Clone)]
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Commands that it needs.
    pub(crate) tools: Vec<&'static str>,
    pub(crate) reads: Reads,
    pub(crate) run: Arc<dyn Fn(&Place) -> Run>,
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Seconds of a run, and what else it said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    /// Processor time, user and system, of all processes.
    pub(crate) cpu_seconds: f64,
    /// Both directions, where the contender tells.
    pub(crate) wire_bytes: Option<u64>,
}

impl Contender {
    pub(crate) fn new(
        name: impl Into<String>,
        tools: &[&'static str],
        run: impl Fn(&Place) -> Run + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            tools: tools.to_vec(),
            reads: Reads::Target,
            run: Arc::new(run),
        }
    }

    pub(crate) fn from_nothing(mut self) -> Self {
        self.reads = Reads::Nothing;
        self
    }

    /// One run with its processor time.
    pub(crate) fn measure(&self, place: &Place) -> Run {
        let before = cpu_seconds();
        let outcome = (self.run)(place)?;
        Ok(Outcome {
            cpu_seconds: cpu_seconds() - before,
            ..outcome
        })
    }
}

/// Runs `work`, flushes the target, and says how long both took.
pub(crate) fn timed<T>(place: &Place, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let started = Instant::now();
    let done = work()?;
    place.flush()?;
    Ok((started.elapsed().as_secs_f64(), done))
}

/// Ends well, or is an error with what it said.
pub(crate) fn succeed(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("{command:?}: {said}")))
}

fn cpu_seconds() -> f64 {
    let of = |who| {
        let usage = getrusage(who).expect("resource usage can be asked for");
        [usage.user_time(), usage.system_time()].map(|time| {
            let micros = u32::try_from(time.tv_usec()).expect("less than a second");
            let seconds = u32::try_from(time.tv_sec()).expect("some hours");
            f64::from(seconds) + f64::from(micros) / 1e6
        })
    };
    let both = [of(UsageWho::RUSAGE_SELF), of(UsageWho::RUSAGE_CHILDREN)];
    both.concat().iter().sum()
}
