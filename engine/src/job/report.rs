//! What is told of a job: the document that `failback job show --json` prints.

use serde::Serialize;

use super::ending::{KEPT, restored_item};
use super::history::History;
use super::journal::{DiskPlan, DowntimePart, Fact, Moved, Record, begun_of};
use super::phase::Way;
use super::preflight::Finding;
use crate::operation::Writes;

/// Version of the report's shape.
pub const JOB_REPORT_SCHEMA: &str = "failback.job/1";

/// A job, as its journal has it. Fields are published in docs/report.md and keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct JobReport {
    /// `failback.job/1`.
    pub schema: &'static str,
    /// What the job is called.
    pub name: String,
    /// The pair.
    pub pair: String,
    /// Key that it was started with.
    pub key: Option<String>,
    /// Phase that it is in.
    pub phase: &'static str,
    /// It failed there, and waits.
    pub suspended: bool,
    /// Whether a process works on it; `null`: nobody looked.
    pub worked_on: Option<bool>,
    /// Why it stands.
    pub error: Option<JobFailure>,
    /// It stands before the start of the target, as it was told to, until it is completed.
    pub held: bool,
    /// Its machine stands still on both sides because of it.
    pub off: bool,
    /// What can be asked of it now; `hold` is `complete --hold`.
    pub allowed: Vec<&'static str>,
    /// Epoch of the pair that the job made last, or began with.
    pub epoch: u64,
    /// Who is in charge; `null`: nobody may start the machine, or it is not known to this job.
    pub authority: Option<String>,
    /// `delta` or `full`; `null` before it was chosen.
    pub strategy: Option<&'static str>,
    /// Reason codes of the choice.
    pub reasons: Vec<String>,
    /// What the choice rests on, disk by disk.
    pub plans: Vec<DiskPlan>,
    /// What the last preflight found.
    pub findings: Vec<Finding>,
    /// Disks.
    pub disks: Vec<DiskReport>,
    /// Passes from snapshots, while the source ran.
    pub passes: Vec<PassReport>,
    /// Downtime.
    pub downtime: Downtime,
    /// When the job goes on by itself, as long as the process that suspended it lives.
    pub retry: Option<RetryReport>,
    /// What is asked when nobody asks for anything before.
    pub deadline: Option<DeadlineReport>,
    /// What a commit deletes or lets go of, in words; empty once the job is over.
    pub commit_releases: Vec<String>,
    /// What happened, in order.
    pub timeline: Vec<Moment>,
}

/// Why a job stands.
#[derive(Clone, Debug, Serialize)]
pub struct JobFailure {
    /// Kind of the error.
    pub kind: String,
    /// One line.
    pub message: String,
    /// Trying again may help by itself.
    pub is_transient: bool,
}

/// A disk of a job.
#[derive(Clone, Debug, Serialize)]
pub struct DiskReport {
    /// What it is called.
    pub id: String,
    /// The image that is read.
    pub source: String,
    /// The image that is made equal.
    pub target: String,
    /// Root of the stopped source, hexadecimal; `null` before it was stopped and read.
    pub root: Option<String>,
    /// State of the target in a word: once it was applied as a sync has it, then `old` when it was
    /// brought back, `kept` when it is the new disk still because a guest had written to it.
    pub state: Option<String>,
    /// Payload bytes of all passes and the final copy.
    pub sent: u64,
    /// Not all of the source's disk was read yet, and a commit waits for it.
    pub unread: bool,
    /// What the target's guest had written when an undo took it away; `null`: none did.
    pub lost: Option<Writes>,
    /// What was moved after the source had stopped.
    pub final_copy: Option<Moved>,
}

/// A pass.
#[derive(Clone, Debug, Serialize)]
pub struct PassReport {
    /// From 1.
    pub pass: u32,
    /// Seconds that it took.
    pub seconds: f64,
    /// Each disk.
    pub disks: Vec<Moved>,
}

/// Seconds from the request to stop the source until the target runs.
#[derive(Clone, Debug, Serialize)]
pub struct Downtime {
    /// What the policy allows; `null`: nothing was said.
    pub budget: Option<f64>,
    /// As it was expected last, before the source was stopped.
    pub predicted: Option<f64>,
    /// As it was.
    pub measured: Option<f64>,
    /// For how much of it the job stood because it was told to; `null`: it was not.
    pub held: Option<f64>,
    /// What the prediction is made of, and what each part rests on.
    pub parts: Vec<DowntimePart>,
    /// What it came to, part by part, as far as it is over.
    pub measured_parts: Vec<MeasuredPart>,
}

/// A part of a downtime, as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredPart {
    /// `stop`, `copy`, `apply`, `start`.
    pub part: &'static str,
    /// Seconds.
    pub seconds: f64,
}

/// A suspended job that goes on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryReport {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// How often that happened since the job last got on, from 1.
    pub attempt: u32,
}

/// A deadline.
#[derive(Clone, Debug, Serialize)]
pub struct DeadlineReport {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What will be asked.
    pub ask: &'static str,
}

/// A record of the journal.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Milliseconds since 1970, by the clock of the host that ran the job.
    pub at_ms: u64,
    /// Phase from then on.
    pub phase: &'static str,
    /// It stood.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// What there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fact: Option<Fact>,
}

impl JobReport {
    /// The definition of the job of these records.
    #[must_use]
    pub fn spec_of(records: &[Record]) -> super::JobSpec {
        begun_of(records).spec.clone()
    }

    /// What the records of a job come to.
    #[must_use]
    pub fn of(records: &[Record]) -> Self {
        let history = History(records);
        let begun = begun_of(records);
        let spec = &begun.spec;
        let at = history.position();
        let (epoch, authority) = history.epoch().unwrap_or((begun.epoch, None));
        let chosen = history.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Chosen { reasons, plans, .. } => Some((reasons.clone(), plans.clone())),
            _ => None,
        });
        let (reasons, plans) = chosen.unwrap_or_default();
        let passes = history.passes();
        Self {
            schema: JOB_REPORT_SCHEMA,
            name: spec.name.clone(),
            pair: spec.pair_name().to_owned(),
            key: begun.key.clone(),
            phase: at.phase.name(),
            suspended: at.is_suspended,
            worked_on: None,
            error: history.failure().and_then(failure),
            held: history.is_held(),
            off: history.is_off(),
            allowed: (history.allowed().into_iter())
                .map(super::Ask::name)
                .collect(),
            epoch,
            authority: authority.map(str::to_owned),
            strategy: history.way().map(|way| match way {
                Way::Delta => "delta",
                Way::Full => "full",
            }),
            reasons,
            plans,
            findings: history.findings(),
            disks: spec
                .disks
                .iter()
                .map(|disk| disk_of(history, disk))
                .collect(),
            passes: passes
                .into_iter()
                .map(|pass| PassReport {
                    pass: pass.number,
                    seconds: pass.seconds,
                    disks: pass.disks,
                })
                .collect(),
            commit_releases: history.would_release(),
            downtime: Downtime {
                budget: spec.policy.downtime_budget.map(|it| it.as_secs_f64()),
                predicted: history.predicted(),
                measured: history.downtime(),
                held: history.held(),
                parts: history.predicted_parts().to_vec(),
                measured_parts: (history.measured_parts().into_iter())
                    .map(|(part, seconds)| MeasuredPart { part, seconds })
                    .collect(),
            },
            retry: history
                .retry()
                .map(|(at_ms, attempt)| RetryReport { at_ms, attempt }),
            deadline: history.deadline().map(|(at_ms, ask)| DeadlineReport {
                at_ms,
                ask: ask.name(),
            }),
            timeline: records
                .iter()
                .map(|record| Moment {
                    at_ms: record.at_ms,
                    phase: record.position.phase.name(),
                    suspended: record.position.is_suspended,
                    fact: record.fact.clone(),
                })
                .collect(),
        }
    }
}

impl super::Jobs {
    /// What is known of the job of that name, and whether a process works on it.
    ///
    /// # Errors
    /// As [`look`](super::look).
    pub fn report(&self, name: &str) -> crate::error::Result<JobReport> {
        // Asked first: a process that ends meanwhile leaves records that are newer.
        let worked_on = Some(self.is_worked_on(name)?);
        Ok(JobReport {
            worked_on,
            ..JobReport::of(&super::look(self, name)?)
        })
    }
}

/// A moment of a report as people read it: RFC 3339, in UTC, whole seconds.
#[must_use]
pub fn moment(at_ms: u64) -> String {
    let since = std::time::Duration::from_secs((at_ms / 1000).min(LAST_SECOND));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// The same in letters and digits alone, as part of a file's name: `20261129T090000Z`.
pub(super) fn compact_moment(at_ms: u64) -> String {
    let mut text = moment(at_ms);
    text.retain(|c| c.is_ascii_alphanumeric());
    text
}

/// The end of the year 9999, which is the last that can be written so.
const LAST_SECOND: u64 = 253_402_300_799;

fn disk_of(history: History<'_>, disk: &super::DiskSpec) -> DiskReport {
    let last = history.sealed(&disk.id).cloned();
    let sent_before: u64 = history
        .passes()
        .iter()
        .flat_map(|pass| &pass.disks)
        .filter(|moved| moved.disk == disk.id)
        .map(|moved| moved.sent)
        .sum();
    let item = restored_item(&disk.id);
    let state = history.facts().rev().find_map(|(_, fact)| match fact {
        Fact::Item { item: of, said } if *of == item => Some(match said.starts_with(KEPT) {
            true => "kept".to_owned(),
            false => "old".to_owned(),
        }),
        Fact::Applied { disk: of, word, .. } if *of == disk.id => Some(word.clone()),
        _ => None,
    });
    DiskReport {
        id: disk.id.clone(),
        source: (history.spec().source_of(disk))
            .map_or_else(|_| String::new(), |at| at.to_string()),
        target: disk.target.display().to_string(),
        root: last.as_ref().and_then(|moved| moved.root.clone()),
        state,
        unread: history.unproven(&disk.id).is_some(),
        lost: history.lost(&disk.id).cloned(),
        sent: sent_before + last.as_ref().map_or(0, |moved| moved.sent),
        final_copy: last,
    }
}

fn failure(fact: &Fact) -> Option<JobFailure> {
    match fact {
        Fact::Failed {
            kind,
            message,
            is_transient,
        } => Some(JobFailure {
            kind: kind.clone(),
            message: message.clone(),
            is_transient: *is_transient,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: moments are told in words that any program can read, also absurd ones. Method: a known
    // one, the first, and the last that a number can name.
    #[test]
    fn moments_are_told_in_words() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(1_795_989_600_999), "2026-11-29T22:00:00Z");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(compact_moment(1_795_989_600_999), "20261129T220000Z");
    }
}
