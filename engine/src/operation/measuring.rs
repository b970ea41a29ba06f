//! Measures both sides and the link between them, and says what either strategy would cost.

use std::time::Duration;

use failback_transport as wire;

use super::connection::Connection;
use super::copy::{CompressChoice, SyncRequest};
use super::planned::Prospect;
use super::questions::Heading;
use crate::disk::Source;
use crate::error::Result;
use crate::hash::Hasher;
use crate::plan::{
    Comparison, Cost, Costs, Facts, LinkFacts, Patience, Picks, Proof, Reading, SeenRates,
    SideFacts, Survey, SurveyTask, Way, compare, delta, float, full, read_sample, survey,
};
use crate::schedule::scope;
use crate::sync::scan_threads;

/// A disk with less in it is not sampled: either strategy is done before that would be.
const SAMPLED_MIN: u64 = 96 << 20;
/// A probe of the link on the way to a sync, which sends few bytes where few changed: one byte of
/// so many on the disk.
const PROBED_OF_ALLOCATED: u64 = 4096;

/// One side that is asked.
pub(super) enum Side<'a> {
    /// A disk of this host; and what is likely of it as a target.
    Local(&'a dyn Source, Prospect),
    /// A disk behind an agent.
    Remote(&'a mut Connection),
    /// A target of this host that is not there yet, on a disk of which this was seen.
    Missing(SeenRates),
}

/// What the costs depend on beside what is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) seed: u64,
    /// Whether a saved map stands for reading the source, and the target.
    pub(super) is_mapped: (bool, bool),
    /// The target is made by the sync.
    pub(super) is_new: bool,
    /// Somebody wants to know, and does not only wait for the sync to begin.
    pub(super) is_asked: bool,
}

/// What was measured, and what follows from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) seed: u64,
    pub(crate) comparison: Comparison,
    pub(crate) facts: Facts,
    /// Whether the extents of both disks were counted; else they are estimates.
    pub(crate) is_whole: bool,
    /// What earlier syncs saw of the target's disk; the rest of its rates follows from it.
    pub(crate) seen: SeenRates,
    pub(crate) costs: Costs,
}

/// Measures; `None` for a source with too little in it.
///
/// # Errors
/// Those of the disks and agents.
pub(super) fn measure(
    mut source: Side<'_>,
    mut target: Side<'_>,
    question: &Question,
    request: &SyncRequest,
) -> Result<Option<Measured>> {
    let seed = question.seed;
    let (found, other) = both(|| source.survey(seed), || target.survey(seed));
    let ((source_survey, _), (target_survey, likely)) = (found?, other?);
    if source_survey.allocated < SAMPLED_MIN {
        return Ok(None);
    }
    let probe_len = match question.is_asked {
        true => u64::MAX,
        false => source_survey.allocated / PROBED_OF_ALLOCATED,
    };
    let link = joined(
        source.probe(Heading::FromAgent, probe_len)?,
        target.probe(Heading::ToAgent, probe_len)?,
    );
    let link = link.map(|link| LinkFacts {
        rate: rate_of_all(link.rate, request),
        ..link
    });
    let level = level(request.compress, link.is_some());
    let all = source_survey.picks.clone();
    let mut look = |picks: &Picks| {
        let (found, other) = both(
            || source.sample(picks, level, request),
            || target.sample(picks, None, request),
        );
        let surveys = (&source_survey, &target_survey);
        let readings = (found?, other?);
        Ok(weigh(surveys, readings, (link, &likely), question, request))
    };
    let first = all.first();
    if !question.is_asked && first != all {
        let measured = look(&first)?;
        if is_clear(&measured, request) {
            return Ok(Some(measured));
        }
    }
    look(&all).map(Some)
}

/// Whether more pieces could not change the choice: it is the same at both ends of what may differ.
fn is_clear(measured: &Measured, request: &SyncRequest) -> bool {
    let Comparison {
        pieces,
        differing,
        interval,
        ..
    } = &measured.comparison;
    // A budget may lie anywhere between.
    if request.downtime_budget.is_some() {
        return false;
    }
    // None of 200 is less than 2 %: a delta's, or close.
    if *differing == 0 {
        return true;
    }
    let share = float(*differing) / float(*pieces);
    let is_full_better = |end: f64| {
        let facts = Facts {
            change: measured.facts.change.times(end / share),
            ..measured.facts
        };
        costs(&facts, request).is_full_better(request.objective)
    };
    is_full_better(interval.low) == is_full_better(interval.high)
}

fn costs(facts: &Facts, request: &SyncRequest) -> Costs {
    Costs {
        delta: cost(delta, facts, request.compress),
        full: cost(full, facts, request.compress),
    }
}

/// What the readings of both sides say of the whole.
fn weigh(
    (source_survey, target_survey): (&Survey, &Survey),
    (of_source, mut of_target): (Reading, Reading),
    (link, likely): (Option<LinkFacts>, &Prospect),
    question: &Question,
    request: &SyncRequest,
) -> Measured {
    if question.is_new {
        // What is not there reads as zeros.
        of_target.pieces = vec![Default::default(); of_source.pieces.len()];
    }
    let comparison = compare(
        (&of_source.pieces, &of_target.pieces),
        (&of_source.spans, &of_target.spans),
        request.block_size,
    );
    let side = |survey: &Survey, reading: &Reading, is_mapped| SideFacts {
        allocated: survey.allocated,
        scan_rate: reading.scan_rate(),
        is_mapped,
    };
    let facts = Facts {
        source: side(source_survey, &of_source, question.is_mapped.0),
        target: side(target_survey, &of_target, question.is_mapped.1),
        change: comparison.change,
        link,
        packing: of_source.packing(),
        disk: likely.seen.rates(),
        delta_way: way(request, likely.delta),
        full_way: way(request, likely.full),
        proof: match request.verify {
            wire::VerifyLevel::Changed => Proof::Changed,
            wire::VerifyLevel::Full => Proof::Full,
            wire::VerifyLevel::Off => Proof::Off,
        },
        block_size: request.block_size,
        hash_len: request.hash.digest_len(),
    };
    Measured {
        seed: question.seed,
        comparison,
        facts,
        is_whole: source_survey.is_whole && target_survey.is_whole,
        seen: likely.seen,
        costs: costs(&facts, request),
    }
}

impl Side<'_> {
    fn survey(&mut self, seed: u64) -> Result<(Survey, Prospect)> {
        match self {
            Self::Local(disk, likely) => Ok((survey(*disk, seed)?, *likely)),
            Self::Remote(connection) => connection.survey(seed),
            Self::Missing(seen) => {
                let empty = Survey {
                    is_whole: true,
                    ..Survey::default()
                };
                let file = Some(wire::Container::File);
                let likely = Prospect {
                    delta: file,
                    full: file,
                    seen: *seen,
                };
                Ok((empty, likely))
            }
        }
    }

    fn probe(&mut self, heading: Heading, len_max: u64) -> Result<Option<LinkFacts>> {
        match self {
            Self::Remote(connection) => connection.probe(heading, len_max).map(Some),
            Self::Local(..) | Self::Missing(_) => Ok(None),
        }
    }

    fn sample(
        &mut self,
        picks: &Picks,
        level: Option<i8>,
        request: &SyncRequest,
    ) -> Result<Reading> {
        match self {
            Self::Local(disk, _) => {
                let task = SurveyTask {
                    hasher: &Hasher::new(request.hash),
                    level,
                    threads: scan_threads(request.block_size),
                    patience: Patience::default(),
                };
                read_sample(*disk, picks, &task)
            }
            Self::Remote(connection) => connection.sample(picks, request.hash, level),
            Self::Missing(_) => Ok(Reading::default()),
        }
    }
}

/// Both at the same time: what they share is measured as it is shared.
fn both<A: Send, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
    scope(|scope| {
        let a = scope.spawn(a);
        let b = b();
        (a.join().expect("errors are values here"), b)
    })
}

/// Two links in a row, all of which carry the same bytes at the same time.
fn joined(a: Option<LinkFacts>, b: Option<LinkFacts>) -> Option<LinkFacts> {
    match (a, b) {
        (Some(a), Some(b)) => Some(LinkFacts {
            rate: a.rate.min(b.rate),
            round_trip: a.round_trip.saturating_add(b.round_trip).min(Duration::MAX),
        }),
        (one, other) => one.or(other),
    }
}

/// A source that may choose compresses while the link is what it waits for.
fn cost(of: fn(&Facts) -> Cost, facts: &Facts, compress: CompressChoice) -> Cost {
    let packed = of(facts);
    let raw = of(&Facts {
        packing: None,
        ..*facts
    });
    match compress {
        CompressChoice::Auto if raw.seconds < packed.seconds => raw,
        _ => packed,
    }
}

/// Of all connections of a session, of which one was probed: several are for links that let one
/// have only a part. A limit of this side is for all of them.
fn rate_of_all(rate: f64, request: &SyncRequest) -> f64 {
    let all = rate * f64::from(request.link.count);
    let limit = request.link.shape.bytes_per_second;
    limit.map_or(all, |limit| all.min(float(limit).max(rate)))
}

fn level(compress: CompressChoice, has_link: bool) -> Option<i8> {
    match compress {
        CompressChoice::Off => None,
        CompressChoice::Zstd(level) => Some(level),
        CompressChoice::Auto => has_link.then_some(1),
    }
}

/// How the target will be changed: as was asked for, else as is likely there.
fn way(request: &SyncRequest, likely: Option<wire::Container>) -> Way {
    let keeps_old = request.apply != wire::Apply::StageNoUndo;
    match request.container.or(likely) {
        _ if request.apply == wire::Apply::InPlace => Way::Once,
        Some(wire::Container::File | wire::Container::Clone) => Way::Once,
        Some(wire::Container::Log | wire::Container::Child) | None => Way::Logged { keeps_old },
    }
}
