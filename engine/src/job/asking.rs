//! What is asked of a job from outside the process that runs it, and when that is refused.

use std::time::{Duration, Instant};

use super::history::History;
use super::journal::{Fact, Record};
use super::phase::{Ask, Outcome, Phase, Position};
use super::place::{Jobs, asks_left, forget_ask, leave_ask};
use super::report::JobReport;
use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result};

impl History<'_> {
    /// Whether not all of the source was read since the target was started.
    pub(super) fn has_unread(self) -> bool {
        let mut disks = self.spec().disks.iter();
        disks.any(|disk| self.unproven(&disk.id).is_some())
    }

    /// Where the job goes on when it is asked that now.
    ///
    /// # Errors
    /// `Refused` where that cannot be asked.
    pub(super) fn asked(self, ask: Ask) -> Result<Position> {
        let Some(next) = self.next(ask) else {
            return Err(self.not_allowed(ask));
        };
        if ask == Ask::Commit && self.has_unread() {
            let message = "the source is still being read: nothing is accepted before all of it \
                           is found equal";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        Ok(next)
    }

    /// What can be asked now.
    pub(super) fn allowed(self) -> Vec<Ask> {
        let waits = |ask: Ask| ask == Ask::Commit && self.has_unread();
        let can_be = |ask: &Ask| self.next(*ask).is_some() && !waits(*ask);
        Ask::ALL.into_iter().filter(can_be).collect()
    }

    fn next(self, ask: Ask) -> Option<Position> {
        let at = self.position();
        let next = at.next(Outcome::Asked(ask))?;
        // Who starts the target is not asked to, unless it was told to wait for that.
        let is_begun = ask.completes() && at.phase == Phase::StartingTarget;
        (!is_begun || self.is_held()).then_some(next)
    }

    fn not_allowed(self, ask: Ask) -> Error {
        let at = self.position();
        let allowed: Vec<_> = self.allowed().into_iter().map(Ask::typed).collect();
        let message = format!(
            "`{}` cannot be asked of a job that is {}{}; {}",
            ask.typed(),
            at.phase.name(),
            if at.is_suspended { ", suspended" } else { "" },
            match (at.phase.is_end(), allowed.is_empty()) {
                (true, _) => "it is over".to_owned(),
                (false, true) => "it ends by itself".to_owned(),
                (false, false) => format!("now: {}", allowed.join(", ")),
            }
        );
        Error::new(ErrorKind::Refused, message)
    }
}

/// The records of a job that another process may have.
///
/// # Errors
/// `Refused` where there is none; `Damaged`, `Io`.
pub fn look(jobs: &Jobs, name: &str) -> Result<Vec<Record>> {
    let records = super::journal::peek(&jobs.directory(name)?)?;
    records.ok_or_else(|| {
        let message = format!("no job is called `{name}`");
        Error::new(ErrorKind::Refused, message)
    })
}

/// Leaves an ask to the process that runs the job, and waits until that has taken it into the
/// journal, unless it waits for the end of a pass; how the job is then.
///
/// # Errors
/// `Refused` where that cannot be asked for, now or when it was heard; `InUse` when nobody hears
/// it; `Cancelled`.
pub fn ask_another(jobs: &Jobs, name: &str, ask: Ask, cancel: &CancelToken) -> Result<JobReport> {
    let records = look(jobs, name)?;
    let at = History(&records).position();
    let next = History(&records).asked(ask)?;
    let directory = jobs.directory(name)?;
    leave_ask(&directory, ask)?;
    if next == at {
        return jobs.report(name);
    }
    let until = Instant::now() + HEARD_WITHIN;
    while asks_left(&directory).any(|left| left == ask) {
        if cancel.is_cancelled() || Instant::now() > until {
            forget_ask(&directory, ask)?;
            let (kind, message) = match cancel.is_cancelled() {
                true => (ErrorKind::Cancelled, "cancelled"),
                false => (
                    ErrorKind::InUse,
                    "the process that has the job does not answer",
                ),
            };
            return Err(Error::new(kind, message));
        }
        std::thread::sleep(POLL);
    }
    let now = look(jobs, name)?;
    match was_heard(&records, &now, ask) {
        true => Ok(JobReport {
            worked_on: Some(jobs.is_worked_on(name)?),
            ..JobReport::of(&now)
        }),
        false => Err(not_heard(&now, ask)),
    }
}

/// Whether a job whose journal was `before` took the ask; completing is asked once, and stays.
fn was_heard(before: &[Record], now: &[Record], ask: Ask) -> bool {
    let is_same_job = before.first() == now.first();
    let since = match ask {
        ask if ask.completes() => Some(now),
        _ => now.get(before.len()..),
    };
    let is_it = |record: &Record| record.fact == Some(Fact::Asked { ask });
    is_same_job && since.is_some_and(|since| since.iter().any(is_it))
}

/// The process that has the job refused what it was asked for, and told whoever watches it why.
fn not_heard(now: &[Record], ask: Ask) -> Error {
    let why = History(now).asked(ask).err();
    why.unwrap_or_else(|| {
        let message = format!(
            "`{}` was refused by the process that has the job, which has gone on since",
            ask.name()
        );
        Error::new(ErrorKind::Refused, message)
    })
}

/// How often whoever asked looks.
const POLL: Duration = Duration::from_millis(50);
/// How long a process that runs a job may take to hear an ask: it is heard between steps, and most
/// steps end at once for one.
const HEARD_WITHIN: Duration = Duration::from_mins(2);
