//! The way of a failback job, as a pure function: where it is, what happened, where it goes on.
//!
//! ```text
//! created -> preflight -> planning -+-delta-> presync <-> waiting -complete-+-> stopping_source
//!                                   +-full-------------> waiting -complete--+
//! stopping_source -> final_delta | full_download -> sealing -> applying -> verifying
//!     -> starting_target -> commit_pending -commit-> releasing -> finished
//! stopping_source .. sealing -given back-> waiting, suspended: the source runs again
//! releasing -taken back-> commit_pending, suspended: nothing was let go of yet
//! created .. sealing -cancel-> cancelling -> cancelled
//! applying .. commit_pending -undo-> undoing -> undone
//! any but an end: failed -> the same, suspended -> resume, cancel, undo
//! ```
//! Entering `applying` is the COMMIT of all disks together: before it each target is old, and after
//! it each can be completed from its own state, or brought back.

use serde::{Deserialize, Serialize};

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Written down, and nothing else.
    Created,
    /// Looks whether all that it will need is there.
    Preflight,
    /// Chooses between delta and full.
    Planning,
    /// Copies what differs, from snapshots, while the source runs.
    Presync,
    /// Waits to be completed; keeps warm.
    Waiting,
    /// Stops the source, and proves that it is stopped.
    StoppingSource,
    /// Copies what the last pass has not.
    FinalDelta,
    /// Copies everything.
    FullDownload,
    /// Makes sure that every target is complete and equal.
    Sealing,
    /// Makes the targets what was staged.
    Applying,
    /// Makes sure that they are.
    Verifying,
    /// Hands over, and starts the target.
    StartingTarget,
    /// The target runs; the source is kept.
    CommitPending,
    /// Lets go of what an undo would need.
    Releasing,
    /// Over: the target is in charge.
    Finished,
    /// Brings targets and source back, after COMMIT.
    Undoing,
    /// Over: as before the job.
    Undone,
    /// Brings targets and source back, before COMMIT.
    Cancelling,
    /// Over: as before the job.
    Cancelled,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 19] = [
        Self::Created,
        Self::Preflight,
        Self::Planning,
        Self::Presync,
        Self::Waiting,
        Self::StoppingSource,
        Self::FinalDelta,
        Self::FullDownload,
        Self::Sealing,
        Self::Applying,
        Self::Verifying,
        Self::StartingTarget,
        Self::CommitPending,
        Self::Releasing,
        Self::Finished,
        Self::Undoing,
        Self::Undone,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The word in journals and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Preflight => "preflight",
            Self::Planning => "planning",
            Self::Presync => "presync",
            Self::Waiting => "waiting",
            Self::StoppingSource => "stopping_source",
            Self::FinalDelta => "final_delta",
            Self::FullDownload => "full_download",
            Self::Sealing => "sealing",
            Self::Applying => "applying",
            Self::Verifying => "verifying",
            Self::StartingTarget => "starting_target",
            Self::CommitPending => "commit_pending",
            Self::Releasing => "releasing",
            Self::Finished => "finished",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the job is over.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Finished | Self::Undone | Self::Cancelled)
    }

    /// Whether the COMMIT of all disks is durable.
    #[must_use]
    pub fn is_committed(self) -> bool {
        matches!(
            self,
            Self::Applying
                | Self::Verifying
                | Self::StartingTarget
                | Self::CommitPending
                | Self::Releasing
                | Self::Finished
                | Self::Undoing
                | Self::Undone
        )
    }
}

/// How targets are made equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Passes while the source runs, and what they left after it stopped.
    Delta,
    /// Everything, after it stopped.
    Full,
}

/// What an operator, a policy or a program asks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Complete failover: stop the source, start the target. Of a job that holds: go on.
    Complete,
    /// The same, and stand right before the target is started until completing is asked for.
    Hold,
    /// Give up before COMMIT.
    Cancel,
    /// Accept the target.
    Commit,
    /// Back to the source, after COMMIT.
    Undo,
    /// Try again what failed.
    Resume,
}

impl Ask {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::Complete,
        Self::Hold,
        Self::Cancel,
        Self::Commit,
        Self::Undo,
        Self::Resume,
    ];

    /// Whether it asks for the end of the passes.
    #[must_use]
    pub fn completes(self) -> bool {
        matches!(self, Self::Complete | Self::Hold)
    }

    /// As an operator types it after `failback job`.
    #[must_use]
    pub fn typed(self) -> &'static str {
        match self {
            Self::Hold => "complete --hold",
            ask => ask.name(),
        }
    }

    /// The word in journals and reports, and the verb of `failback job`: `hold` is
    /// `complete --hold`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Hold => "hold",
            Self::Cancel => "cancel",
            Self::Commit => "commit",
            Self::Undo => "undo",
            Self::Resume => "resume",
        }
    }
}

/// What happened in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did what it is there for.
    Done,
    /// So did planning or stopping, and the copy goes this way.
    Go(Way),
    /// Waiting wants another pass.
    PassWanted,
    /// It failed, and the source runs again: all begins anew with stopping it.
    GivenBack,
    /// A commit cannot be, and nothing was let go of: the target waits to be accepted as before.
    TakenBack,
    /// Somebody asked.
    Asked(Ask),
    /// It failed: nothing goes on by itself.
    Failed,
}

impl Outcome {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::Done,
        Self::Go(Way::Delta),
        Self::Go(Way::Full),
        Self::PassWanted,
        Self::GivenBack,
        Self::TakenBack,
        Self::Failed,
        Self::Asked(Ask::Complete),
        Self::Asked(Ask::Hold),
        Self::Asked(Ask::Cancel),
        Self::Asked(Ask::Commit),
        Self::Asked(Ask::Undo),
        Self::Asked(Ask::Resume),
    ];
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// What it is doing.
    pub phase: Phase,
    /// It failed there, and waits to be resumed, cancelled or undone.
    #[serde(default)]
    pub is_suspended: bool,
}

impl Position {
    /// At the beginning of `phase`.
    #[must_use]
    pub fn at(phase: Phase) -> Self {
        Self {
            phase,
            is_suspended: false,
        }
    }

    /// Where the job goes on; `None`: that cannot happen there, and an ask is refused.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Option<Self> {
        match (self.is_suspended, outcome) {
            _ if self.phase.is_end() => None,
            (_, Outcome::Asked(ask)) => self.asked(ask),
            // Nothing happens by itself.
            (true, _) => None,
            (false, Outcome::Failed) => Some(Self {
                is_suspended: true,
                ..self
            }),
            (false, Outcome::GivenBack) => {
                use Phase as P;
                let is_stopped = matches!(
                    self.phase,
                    P::StoppingSource | P::FinalDelta | P::FullDownload | P::Sealing
                );
                is_stopped.then_some(Self {
                    phase: P::Waiting,
                    is_suspended: true,
                })
            }
            (false, Outcome::TakenBack) => (self.phase == Phase::Releasing).then_some(Self {
                phase: Phase::CommitPending,
                is_suspended: true,
            }),
            (false, outcome) => self.went_on(outcome).map(Self::at),
        }
    }

    /// What can be asked now.
    #[must_use]
    pub fn allowed(self) -> Vec<Ask> {
        let is_allowed = |ask: &Ask| self.next(Outcome::Asked(*ask)).is_some();
        Ask::ALL.into_iter().filter(is_allowed).collect()
    }

    fn went_on(self, outcome: Outcome) -> Option<Phase> {
        use Phase as P;
        let done = |phase| (outcome == Outcome::Done).then_some(phase);
        match (self.phase, outcome) {
            (P::Planning, Outcome::Go(Way::Delta)) => Some(P::Presync),
            (P::Planning, Outcome::Go(Way::Full)) => Some(P::Waiting),
            (P::StoppingSource, Outcome::Go(Way::Delta)) => Some(P::FinalDelta),
            (P::StoppingSource, Outcome::Go(Way::Full)) => Some(P::FullDownload),
            (P::Waiting, Outcome::PassWanted) => Some(P::Presync),
            (P::Created, _) => done(P::Preflight),
            (P::Preflight, _) => done(P::Planning),
            (P::Presync, _) => done(P::Waiting),
            (P::FinalDelta | P::FullDownload, _) => done(P::Sealing),
            (P::Sealing, _) => done(P::Applying),
            (P::Applying, _) => done(P::Verifying),
            (P::Verifying, _) => done(P::StartingTarget),
            (P::StartingTarget, _) => done(P::CommitPending),
            (P::Releasing, _) => done(P::Finished),
            (P::Undoing, _) => done(P::Undone),
            (P::Cancelling, _) => done(P::Cancelled),
            _ => None,
        }
    }

    fn asked(self, ask: Ask) -> Option<Self> {
        use Phase as P;
        let is_begun_end = matches!(self.phase, P::Releasing | P::Undoing | P::Cancelling);
        match ask {
            Ask::Resume => self.is_suspended.then(|| Self::at(self.phase)),
            Ask::Cancel => {
                let can = !self.phase.is_committed() && !is_begun_end;
                can.then(|| Self::at(P::Cancelling))
            }
            Ask::Undo => {
                let can = self.phase.is_committed() && !is_begun_end;
                can.then(|| Self::at(P::Undoing))
            }
            Ask::Commit => {
                // Once more: what cannot be reached is left.
                let can = match self.phase {
                    P::CommitPending => !self.is_suspended,
                    P::Releasing => self.is_suspended,
                    _ => false,
                };
                can.then(|| Self::at(P::Releasing))
            }
            Ask::Complete | Ask::Hold if self.is_suspended => None,
            // On the way there: whether it holds before the start. The journal knows what was
            // asked.
            Ask::Complete | Ask::Hold
                if self.phase >= P::StoppingSource && self.phase <= P::StartingTarget =>
            {
                Some(self)
            }
            Ask::Complete | Ask::Hold => match self.phase {
                P::Waiting => Some(Self::at(P::StoppingSource)),
                // Noted, and done when it waits.
                P::Created | P::Preflight | P::Planning | P::Presync => Some(self),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions() -> Vec<Position> {
        let each = |phase| {
            [false, true].map(|is_suspended| Position {
                phase,
                is_suspended,
            })
        };
        Phase::ALL.into_iter().flat_map(each).collect()
    }

    // Goal: the whole machine, as a picture that a change has to change. Method: every position
    // with every outcome, the allowed ones in words.
    #[test]
    fn the_table_of_all_pairs() {
        let mut lines = Vec::new();
        for at in positions() {
            let word = |p: Position| match p.is_suspended {
                true => format!("{}!", p.phase.name()),
                false => p.phase.name().to_owned(),
            };
            let ways = Outcome::ALL.into_iter().filter_map(|outcome| {
                let next = at.next(outcome)?;
                let said = match outcome {
                    Outcome::Done => "done",
                    Outcome::Go(Way::Delta) => "delta",
                    Outcome::Go(Way::Full) => "full",
                    Outcome::PassWanted => "pass",
                    Outcome::GivenBack => "given_back",
                    Outcome::TakenBack => "taken_back",
                    Outcome::Failed => "failed",
                    Outcome::Asked(ask) => ask.name(),
                };
                Some(format!("{said}={}", word(next)))
            });
            let ways: Vec<_> = ways.collect();
            let line = format!("{}: {}", word(at), ways.join(" "));
            lines.push(line.trim_end().to_owned());
        }
        assert_eq!(lines.join("\n"), include_str!("phase.table").trim_end());
    }

    // Goal: no job is stuck, and none ends mixed. Method: from every position that can be reached
    // an end can be reached; COMMIT is passed only by `sealing`, and cancelled by nobody.
    #[test]
    fn every_position_leads_to_an_end() {
        let next = |at: Position| Outcome::ALL.into_iter().filter_map(move |o| at.next(o));
        for at in positions() {
            let mut seen = vec![at];
            let mut left = vec![at];
            while let Some(from) = left.pop() {
                for to in next(from)
                    .filter(|to| !seen.contains(to))
                    .collect::<Vec<_>>()
                {
                    seen.push(to);
                    left.push(to);
                }
            }
            assert!(seen.iter().any(|p| p.phase.is_end()), "{at:?} is stuck");
            for to in next(at) {
                let passes_commit = !at.phase.is_committed() && to.phase.is_committed();
                assert!(
                    !passes_commit || at.phase == Phase::Sealing,
                    "{at:?} {to:?}"
                );
                let goes_back = at.phase.is_committed() && !to.phase.is_committed();
                assert!(!goes_back, "{at:?} {to:?}");
            }
        }
    }
}
