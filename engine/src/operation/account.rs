//! What a job tells of itself: the report, filled in.

use std::time::Instant;

use failback_transport as wire;

use super::maps::MapStanding;
use super::sides::SessionOutcome;
use crate::endpoint::Endpoint;
use crate::hash::HashKind;
use crate::plan::BlockPlan;
use crate::report::{
    Blocks, Bytes, Maps, Outcome, Predicted, REPORT_SCHEMA, Replans, Report, Roots, Seconds, Side,
};
use crate::units::BlockSize;

pub(super) fn new_report(
    command: &'static str,
    source: &Endpoint,
    target: &Endpoint,
    hash: HashKind,
    block_size: BlockSize,
) -> Report {
    Report {
        schema: REPORT_SCHEMA,
        command,
        outcome: Outcome::Failed,
        strategy: None,
        reasons: Vec::new(),
        source: Side::named(source),
        target: Side::named(target),
        bytes: Bytes::default(),
        blocks: Blocks::default(),
        hash,
        non_cryptographic: hash == HashKind::Xxh3,
        root_block_size: block_size.as_u32(),
        root: Roots::default(),
        verified_from: None,
        apply: None,
        stage: None,
        undo: None,
        predicted: Predicted::default(),
        plan: None,
        replans: Replans::default(),
        seconds: Seconds::default(),
        map: Maps::default(),
        error: None,
        error_kind: None,
        remedy: None,
    }
}

pub(super) fn tell(report: &mut Report, outcome: &SessionOutcome, started: Instant) {
    let SessionOutcome {
        end,
        result,
        wire,
        target,
    } = outcome;
    report.bytes = Bytes {
        source_read: end.source_read,
        target_read: result.target_read,
        changed: end.changed_bytes,
        sent: end.sent_bytes,
        sent_raw: end.raw_bytes,
        wire_out: wire.0,
        wire_in: wire.1,
        written: result.written,
        verified: result.verified,
        vouched_by_map: end.vouched_bytes + result.vouched_bytes,
    };
    report.map.source.vouched_bytes = end.vouched_bytes;
    report.map.target.vouched_bytes = result.vouched_bytes;
    let notes = crate::commit::NOTES.iter().zip(0..);
    let notes = notes.filter(|(_, bit)| result.resume_notes >> bit & 1 == 1);
    report.reasons.extend(notes.map(|(reason, _)| *reason));
    report.blocks = Blocks {
        total: report
            .source
            .virtual_size
            .div_ceil(u64::from(report.root_block_size)),
        hashed: end.hashed_blocks,
        skipped_unallocated: end.skipped_blocks,
        differing: end.differing_blocks,
        // A delta knows which blocks held data; a full copy knows only what the target gave up.
        zeroed: if end.zeroed_blocks > 0 {
            end.zeroed_blocks
        } else {
            result.zeroed_blocks
        },
        resumed: result.resumed_blocks,
    };
    report.replans = Replans {
        count: end.replans,
        whole_regions: end.whole_regions,
        whole_bytes: end.whole_bytes,
        reasons: match end.whole_regions {
            0 => Vec::new(),
            _ => BlockPlan::Whole.reasons().to_vec(),
        },
    };
    report.root = Roots {
        source: end.root.map(|root| root.to_string()),
        target: result.root.map(|root| root.to_string()),
    };
    report.stage = result.container.map(container_name);
    report.verified_from = match result.verified_from {
        _ if result.verified == 0 => None,
        wire::VerifiedFrom::None => None,
        wire::VerifiedFrom::Medium => Some("medium"),
        wire::VerifiedFrom::Cache => Some("cache"),
        wire::VerifiedFrom::Server => Some("server"),
    };
    if let Some(info) = target {
        report.target.describe(info);
    }
    #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
    let verify = result.verify_micros as f64 / 1e6;
    report.seconds.verify = verify;
    report.seconds.copy = (started.elapsed().as_secs_f64() - report.seconds.plan - verify).max(0.0);
}

pub(super) fn apply_name(apply: wire::Apply) -> &'static str {
    match apply {
        wire::Apply::InPlace => "in_place",
        wire::Apply::Stage | wire::Apply::StageKeepUndo | wire::Apply::StageNoUndo => "stage",
    }
}

fn container_name(container: wire::Container) -> &'static str {
    match container {
        wire::Container::Log => "log",
        wire::Container::File => "file",
        wire::Container::Clone => "clone",
        wire::Container::Child => "child",
    }
}

pub(super) fn undo_name(apply: wire::Apply) -> &'static str {
    match apply {
        wire::Apply::Stage => "until_verified",
        wire::Apply::StageKeepUndo => "kept",
        wire::Apply::InPlace | wire::Apply::StageNoUndo => "none",
    }
}

/// Both disks are what their maps say, and these say the same: nothing was read but for the audit.
pub(super) fn tell_vouched(
    report: &mut Report,
    (source, target): (&MapStanding, &MapStanding),
    wire: (u64, u64),
) {
    let vouched = |standing: &MapStanding, len: u64| {
        let block_len = u64::from(report.root_block_size);
        standing.data_blocks.saturating_mul(block_len).min(len)
    };
    let of_source = vouched(source, report.source.virtual_size);
    let of_target = vouched(target, report.target.virtual_size);
    report.map.source = source.report(of_source);
    report.map.target = target.report(of_target);
    report.bytes = Bytes {
        wire_out: wire.0,
        wire_in: wire.1,
        vouched_by_map: of_source + of_target,
        ..Bytes::default()
    };
    let total = report.source.virtual_size;
    report.blocks.total = total.div_ceil(u64::from(report.root_block_size));
    report.root = Roots {
        source: source.root.map(|root| root.to_string()),
        target: target.root.map(|root| root.to_string()),
    };
}
