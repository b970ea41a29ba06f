//! What a job's records come to.

use super::fence::Times;
use super::journal::{DowntimePart, Fact, Moved, Record, begun_of};
use super::phase::{Ask, Phase, Position, Way};
use super::preflight::Finding;
use super::spec::JobSpec;
use crate::operation::{Left, Writes};

/// A pass that ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pass {
    pub(crate) number: u32,
    pub(crate) seconds: f64,
    pub(crate) disks: Vec<Moved>,
}

/// The records, read once more from the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History<'a>(pub(crate) &'a [Record]);

impl<'a> History<'a> {
    pub(crate) fn spec(self) -> &'a JobSpec {
        &begun_of(self.0).spec
    }

    pub(crate) fn position(self) -> Position {
        self.0.last().expect("a journal has an entry").position
    }

    /// All facts with their times, in order.
    pub(crate) fn facts(self) -> impl DoubleEndedIterator<Item = (u64, &'a Fact)> {
        let with_fact = |record: &'a Record| Some((record.at_ms, record.fact.as_ref()?));
        self.0.iter().filter_map(with_fact)
    }

    /// The way that was chosen.
    pub(crate) fn way(self) -> Option<Way> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Chosen { way, .. } => Some(*way),
            _ => None,
        })
    }

    /// Passes that ended, in order.
    pub(crate) fn passes(self) -> Vec<Pass> {
        let pass = |(_, fact): (u64, &'a Fact)| match fact {
            Fact::PassEnded {
                pass,
                seconds,
                disks,
            } => Some(Pass {
                number: *pass,
                seconds: *seconds,
                disks: disks.clone(),
            }),
            _ => None,
        };
        self.facts().filter_map(pass).collect()
    }

    /// Passes of which snapshots may exist, ascending.
    pub(crate) fn frozen(self) -> Vec<u32> {
        let mut frozen = Vec::new();
        for (_, fact) in self.facts() {
            match fact {
                Fact::PassBegins { pass } if !frozen.contains(pass) => frozen.push(*pass),
                Fact::Released { pass } => frozen.retain(|known| known != pass),
                _ => {}
            }
        }
        frozen
    }

    /// What the last pass left of a disk.
    pub(crate) fn left(self, disk: &str) -> Option<Left> {
        let last = self.passes().pop()?;
        let moved = last.disks.into_iter().find(|moved| moved.disk == disk)?;
        Some(Left {
            root: moved.root?,
            mark: moved.mark?,
        })
    }

    /// The root that rests on a hint, as long as not all of the stopped disk was read.
    pub(crate) fn unproven(self, disk: &str) -> Option<&'a str> {
        let mut newest_first = self.facts().rev();
        newest_first.find_map(|(_, fact)| match fact {
            Fact::Scanned { disk: of, .. } if of == disk => Some(None),
            Fact::Final { moved } if moved.disk == disk => {
                Some(moved.root.as_deref().filter(|_| moved.hinted))
            }
            _ => None,
        })?
    }

    /// Whether anything may have been staged for a target.
    pub(crate) fn has_staged(self) -> bool {
        let stages = |phase| {
            matches!(
                phase,
                Phase::Presync | Phase::FinalDelta | Phase::FullDownload
            )
        };
        self.0.iter().any(|record| stages(record.position.phase))
    }

    /// How completing was asked for last, if it was.
    fn completion(self) -> Option<Ask> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Asked { ask } if ask.completes() => Some(*ask),
            _ => None,
        })
    }

    /// Whether the source is to be stopped, once it is time.
    pub(crate) fn is_completing(self) -> bool {
        self.completion().is_some()
    }

    /// Whether the job is to stand before the target is started.
    pub(crate) fn is_to_hold(self) -> bool {
        self.completion() == Some(Ask::Hold)
    }

    /// Whether it stands there now, for no other reason.
    pub(crate) fn is_held(self) -> bool {
        self.is_to_hold() && self.position() == Position::at(Phase::StartingTarget)
    }

    /// Seconds of the downtime for which the job stood because it was told to.
    pub(crate) fn held(self) -> Option<f64> {
        let (mut is_to_hold, mut from, mut held) = (false, None, None);
        for record in self.0 {
            let is_there = record.position == Position::at(Phase::StartingTarget);
            if let Some(Fact::Asked { ask }) = &record.fact
                && ask.completes()
            {
                is_to_hold = *ask == Ask::Hold;
            }
            match (is_to_hold && is_there, from) {
                (true, None) => from = Some(record.at_ms),
                (false, Some(since)) => {
                    held = Some(held.unwrap_or(0.0) + seconds_between(since, record.at_ms));
                    from = None;
                }
                _ => {}
            }
        }
        held
    }

    /// The downtime expected last, seconds.
    pub(crate) fn predicted(self) -> Option<f64> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Predicted { downtime, .. } => Some(*downtime),
            _ => None,
        })
    }

    /// Whether nobody has to be asked before the source is stopped: the downtime is foreseen, and
    /// within the budget where there is one.
    pub(crate) fn may_stop_by_itself(self) -> bool {
        let budget = self.spec().policy.downtime_budget;
        let is_within = |predicted| budget.is_none_or(|budget| predicted <= budget.as_secs_f64());
        self.predicted().is_some_and(is_within)
    }

    /// What a commit would delete or let go of, in words; empty once it is over.
    pub(crate) fn would_release(self) -> Vec<String> {
        let spec = self.spec();
        if self.position().phase.is_end() {
            return Vec::new();
        }
        let undo = spec.disks.iter().map(|disk| {
            let target = disk.target.display();
            format!("what brings back the old disk `{}` ({target})", disk.id)
        });
        let machine = spec.policy.delete_source_machine.then(|| {
            let side = spec.side_of_source();
            format!("the machine of side `{side}`")
        });
        let disks = spec.disks.iter().map(|disk| {
            let source = disk.source.as_deref().unwrap_or("its agent's");
            format!("the source's disk `{}` ({source})", disk.id)
        });
        let disks = disks.filter(|_| spec.policy.delete_source_disks);
        undo.chain(machine).chain(disks).collect()
    }

    /// What the downtime expected last is made of.
    pub(crate) fn predicted_parts(self) -> &'a [DowntimePart] {
        let parts = self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Predicted { parts, .. } => Some(parts.as_slice()),
            _ => None,
        });
        parts.unwrap_or_default()
    }

    /// What the downtime came to, part by part as it is predicted; those that are over.
    pub(crate) fn measured_parts(self) -> Vec<(&'static str, f64)> {
        let target = self.spec().side_of_target();
        let (mut from, mut parts): (Option<u64>, Vec<(&'static str, f64)>) = (None, Vec::new());
        let mut before = Phase::Created;
        for record in self.0 {
            let (at, phase) = (record.at_ms, record.position.phase);
            let mut ends = |part| {
                if let Some(since) = from.replace(at) {
                    parts.push((part, seconds_between(since, at)));
                }
            };
            if phase != before {
                match phase {
                    Phase::Sealing => ends("copy"),
                    Phase::StartingTarget => ends("apply"),
                    _ => {}
                }
                before = phase;
            }
            match &record.fact {
                // Of the last try: what was given back is no part of it.
                Some(Fact::Stopping { .. }) => (from, parts) = (Some(at), Vec::new()),
                Some(Fact::Stopped { .. }) => ends("stop"),
                // It may have been held before.
                Some(Fact::Epoch { authority, .. }) if authority.as_deref() == Some(target) => {
                    from = Some(at);
                }
                Some(Fact::Started { side, .. }) if side == target => {
                    ends("start");
                    from = None;
                }
                _ => {}
            }
        }
        parts
    }

    /// How long the machines took in this job, where nothing got in the way.
    pub(crate) fn times(self) -> Times {
        let mut times = Times::default();
        let (mut stopping, mut starting) = (None, None);
        for record in self.0 {
            if record.position.is_suspended {
                // Somebody's patience is no machine's time.
                (stopping, starting) = (None, None);
            }
            let seconds = |from: u64| seconds_between(from, record.at_ms);
            match &record.fact {
                Some(Fact::Stopping { was_on }) => stopping = was_on.then_some(record.at_ms),
                Some(Fact::Stopped { .. }) => times.stop = stopping.take().map(seconds),
                Some(Fact::Epoch { authority, .. }) => {
                    let is_target = authority.as_deref() == Some(self.spec().side_of_target());
                    starting = is_target.then_some(record.at_ms);
                }
                Some(Fact::Started { .. }) => {
                    times.start = starting.take().map(seconds).or(times.start);
                }
                _ => {}
            }
        }
        times
    }

    /// When the source was asked to stop; `None` where it was given back since, to whoever is its
    /// owner: it is asked again then.
    pub(crate) fn stopping(self) -> Option<u64> {
        let side = self.spec().side_of_source();
        let mut newest_first = self.facts().rev();
        newest_first.find_map(|(at, fact)| match fact {
            Fact::Stopping { .. } => Some(Some(at)),
            Fact::Epoch { authority, .. } if authority.as_deref() == Some(side) => Some(None),
            _ => None,
        })?
    }

    /// Whether the machine stands still on both sides because of this job, or is about to: it ran,
    /// was stopped, and neither side was started since.
    pub(crate) fn is_off(self) -> bool {
        let mut newest_first = self.facts().rev();
        let is_off = newest_first.find_map(|(_, fact)| match fact {
            Fact::Stopping { .. } => Some(true),
            Fact::Item { item, .. } if item == STOP_TARGET => Some(true),
            Fact::Started { .. } => Some(false),
            _ => None,
        });
        self.was_on() && is_off == Some(true) && !self.position().phase.is_end()
    }

    /// Whether the source is in charge again, and was not seen to start.
    pub(crate) fn is_giving_back(self) -> bool {
        let side = self.spec().side_of_source();
        let mut newest_first = self.facts().rev();
        let is_begun = newest_first.find_map(|(_, fact)| match fact {
            Fact::Epoch { authority, .. } => Some(authority.as_deref() == Some(side)),
            Fact::Started { .. } | Fact::Stopping { .. } => Some(false),
            _ => None,
        });
        self.has_stopped() && self.was_on() && is_begun == Some(true)
    }

    /// Whether what cannot be reached is to be left: a commit was asked for once more while it
    /// stood.
    pub(crate) fn leaves_the_rest(self) -> bool {
        let newest_first = self.0.iter().rev();
        let of_now = newest_first.take_while(|record| record.position.phase == Phase::Releasing);
        let is_asked =
            |record: &&Record| matches!(record.fact, Some(Fact::Asked { ask: Ask::Commit }));
        of_now.filter(is_asked).count() > 1
    }

    /// Whether the source was ever asked to stop.
    pub(crate) fn has_stopped(self) -> bool {
        self.facts()
            .any(|(_, fact)| matches!(fact, Fact::Stopping { .. }))
    }

    /// Whether the source ran when this job first stopped it: that is what a way back leads to,
    /// however often it was stopped since.
    pub(crate) fn was_on(self) -> bool {
        self.facts()
            .any(|(_, fact)| matches!(fact, Fact::Stopping { was_on: true }))
    }

    /// When a guest was asked to shut down that was not seen to do so, nor started again.
    pub(crate) fn asked_to_stop(self) -> Option<u64> {
        let side = self.spec().side_of_source();
        let mut newest_first = self.facts().rev();
        newest_first.find_map(|(at, fact)| match fact {
            Fact::Stopping { was_on } => Some(was_on.then_some(at)),
            Fact::Stopped { .. } => Some(None),
            Fact::Started { side: started, .. } if started == side => Some(None),
            _ => None,
        })?
    }

    /// The stopped source's disk, as it was found.
    pub(crate) fn quiet(self, disk: &str) -> Option<&'a str> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Quiet { disk: of, identity } if of == disk => Some(identity.as_str()),
            _ => None,
        })
    }

    /// What was moved last of the stopped disk.
    pub(crate) fn sealed(self, disk: &str) -> Option<&'a Moved> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Final { moved } if moved.disk == disk => Some(moved),
            _ => None,
        })
    }

    /// A target as it was when it was applied.
    pub(crate) fn applied(self, disk: &str) -> Option<&'a str> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Applied {
                disk: of, identity, ..
            } if of == disk => identity.as_deref(),
            _ => None,
        })
    }

    /// What an undo takes away of a disk, once that was looked at.
    pub(crate) fn lost(self, disk: &str) -> Option<&'a Writes> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Lost { disk: of, writes } if of == disk => Some(writes),
            _ => None,
        })
    }

    /// Epoch that the job made last.
    pub(crate) fn epoch(self) -> Option<(u64, Option<&'a str>)> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Epoch { epoch, authority } => Some((*epoch, authority.as_deref())),
            _ => None,
        })
    }

    /// Whether an item is done with.
    pub(crate) fn is_item_done(self, wanted: &str) -> bool {
        self.said_of(wanted).is_some()
    }

    /// How it went with an item that is done with.
    pub(crate) fn said_of(self, wanted: &str) -> Option<&'a str> {
        self.facts().find_map(|(_, fact)| match fact {
            Fact::Item { item, said } if item == wanted => Some(said.as_str()),
            _ => None,
        })
    }

    /// What is asked when nobody asks for anything before. Who asked for a commit that could not be
    /// does not want the job to go back by itself.
    pub(crate) fn deadline(self) -> Option<(u64, Ask)> {
        self.facts().rev().find_map(|(_, fact)| match fact {
            Fact::Deadline { at_ms, ask } => Some(Some((*at_ms, *ask))),
            Fact::Asked { ask: Ask::Commit } => Some(None),
            _ => None,
        })?
    }

    /// Whether a deadline was ever set.
    pub(crate) fn has_deadline(self) -> bool {
        self.facts()
            .any(|(_, fact)| matches!(fact, Fact::Deadline { .. }))
    }

    /// When the target's side was first put in charge: from then on its guest may have run, also
    /// where its start was not seen to succeed.
    pub(crate) fn handed_over(self) -> Option<u64> {
        let side = self.spec().side_of_target();
        self.facts().find_map(|(at, fact)| match fact {
            Fact::Epoch { authority, .. } if authority.as_deref() == Some(side) => Some(at),
            _ => None,
        })
    }

    /// When the target was started.
    pub(crate) fn target_started(self) -> Option<u64> {
        let side = self.spec().side_of_target();
        self.facts().rev().find_map(|(at, fact)| match fact {
            Fact::Started { side: started, .. } if started == side => Some(at),
            _ => None,
        })
    }

    /// Seconds from the request to stop the source until the target was started.
    pub(crate) fn downtime(self) -> Option<f64> {
        let started = self.target_started()?;
        let stopping = self.facts().rev().find_map(|(at, fact)| match fact {
            Fact::Stopping { .. } => Some(at),
            _ => None,
        })?;
        Some(seconds_between(stopping, started))
    }

    /// What the last preflight found.
    pub(crate) fn findings(self) -> Vec<Finding> {
        let is_of_preflight = |record: &&Record| record.position == Position::at(Phase::Preflight);
        let newest_first = self.0.iter().rev();
        let of_preflight = newest_first
            .skip_while(|record| !is_of_preflight(record))
            .take_while(is_of_preflight);
        let mut findings: Vec<_> = of_preflight
            .filter_map(|record| match record.fact.clone()? {
                Fact::Checked {
                    rule,
                    disk,
                    holds,
                    said,
                    source,
                } => Some(Finding {
                    rule,
                    disk,
                    holds,
                    said,
                    source,
                }),
                _ => None,
            })
            .collect();
        findings.reverse();
        findings
    }

    /// Why the job stands, if it does.
    pub(crate) fn failure(self) -> Option<&'a Fact> {
        let is_suspended = |record: &&Record| record.position.is_suspended;
        let mut of_now = self.0.iter().rev().take_while(is_suspended);
        of_now.find_map(|record| {
            let fact = record.fact.as_ref();
            fact.filter(|fact| matches!(fact, Fact::Failed { .. }))
        })
    }

    /// How often it went on by itself since it got to this phase.
    pub(crate) fn retries(self) -> u32 {
        let phase = self.position().phase;
        let newest_first = self.0.iter().rev();
        let of_now = newest_first.take_while(|record| record.position.phase == phase);
        let is_retry = |record: &&Record| matches!(record.fact, Some(Fact::Retry { .. }));
        u32::try_from(of_now.filter(is_retry).count()).unwrap_or(u32::MAX)
    }

    /// When the job goes on by itself, if it stands and will, and how often it did.
    pub(crate) fn retry(self) -> Option<(u64, u32)> {
        let last = self.0.last().expect("a journal has an entry");
        match last.fact {
            Some(Fact::Retry { at_ms, attempt }) if last.position.is_suspended => {
                Some((at_ms, attempt))
            }
            _ => None,
        }
    }
}

/// The item of stopping the target for an undo.
pub(super) const STOP_TARGET: &str = "stop:target";

fn seconds_between(from_ms: u64, to_ms: u64) -> f64 {
    std::time::Duration::from_millis(to_ms.saturating_sub(from_ms)).as_secs_f64()
}
