//! Results on stdout, errors as one line on stderr, exit codes.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is where a command prints"
)]

use std::io::Write;
use std::process::ExitCode;

use failback_engine::operation::{
    ImageCheck, ImageInfo, MapReport, MergeReport, RecoveryReport, VhdInfo,
};
use failback_engine::report::{Outcome, Report};
use failback_engine::{Error, ErrorKind, Remedy, one_line};
use serde::Serialize;

use crate::plan_output;
use crate::size::show;

/// Exit code of a wrong command line.
pub(crate) const EXIT_USAGE: u8 = 2;
const EXIT_DIFFERENT: u8 = 1;
const EXIT_IO: u8 = 6;
/// Exit code of a check that found errors: the command did what it was asked for.
const EXIT_DAMAGED: u8 = 1;

/// The exit code of a failure: whose fault it was.
fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => EXIT_USAGE,
        ErrorKind::GeometryMismatch
        | ErrorKind::InUse
        | ErrorKind::ReadOnly
        | ErrorKind::NotGranted
        | ErrorKind::Refused => 3,
        ErrorKind::Damaged | ErrorKind::Unsupported => 4,
        ErrorKind::PeerGone | ErrorKind::Protocol => 5,
        ErrorKind::Cancelled => 7,
        ErrorKind::VerifyFailed => 8,
        _ => EXIT_IO,
    }
}

/// The same by the name that reports give it.
pub(crate) fn code_of_name(name: &str) -> u8 {
    code_of(ErrorKind::of_name(name))
}

/// Prints an error that nobody has printed yet, and turns the result into an exit code.
pub(crate) fn exit_of(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let Some(error) = error.downcast_ref::<Error>() else {
                complain(&format!("{error:#}"));
                return ExitCode::from(EXIT_IO);
            };
            complain(&(error.chain() + advice(error.remedy())));
            ExitCode::from(code_of(error.kind()))
        }
    }
}

/// One line on stderr.
pub(crate) fn complain(line: &str) {
    eprintln!("error: {}", one_line(line));
}

/// How the engine's way out is asked for on the command line.
fn advice(remedy: Option<Remedy>) -> &'static str {
    match remedy {
        Some(Remedy::SkipSiblingCheck) => "; --no-sibling-check is your word that it may break",
        Some(Remedy::NameFormat) => "; or name a format with --target-format",
        Some(Remedy::OpenAsRaw) => {
            "; --format raw, in sync and verify --source-format raw or --target-format raw, takes \
             the file's own bytes"
        }
        Some(Remedy::AcceptNew) => "; failback commit lets go of what an undo would need",
        _ => "",
    }
}

/// Prints what became of a sync that was brought to an end.
pub(crate) fn recovered(report: &RecoveryReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let before = report.before.unwrap_or("none");
    let state = report.state.unwrap_or("none");
    writeln!(out, "{}: {before} -> {state}", report.target)?;
    if report.written + report.verified > 0 {
        let (written, verified) = (show(report.written), show(report.verified));
        let from = report.verified_from.unwrap_or("medium");
        writeln!(
            out,
            "  written    {written}, read back {verified} from {from}"
        )?;
    }
    if state == "staging" {
        writeln!(
            out,
            "  the source is needed: the same sync goes on where it was"
        )?;
    }
    Ok(out.flush()?)
}

/// One document on stdout. A closed pipe is an error of writing like any other.
pub(crate) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Somebody who has read enough closes the pipe (`| head -1`): what was to be told is no failure
/// then.
///
/// # Errors
/// Any other.
pub(crate) fn unless_closed(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    let Err(error) = printed else {
        return Ok(());
    };
    let written = error.downcast_ref::<std::io::Error>();
    let as_json = error.downcast_ref::<serde_json::Error>();
    let kind = written
        .map(std::io::Error::kind)
        .or_else(|| as_json.and_then(serde_json::Error::io_error_kind));
    match kind {
        Some(std::io::ErrorKind::BrokenPipe) => Ok(()),
        _ => Err(error),
    }
}

/// One JSON object on a line of stdout.
pub(crate) fn line(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Prints a report, and its error if it has one, and says how to exit.
pub(crate) fn report(report: &Report, json: bool) -> anyhow::Result<u8> {
    if json {
        document(report)?;
    } else if report.error.is_none() {
        match report.command {
            "plan" => plan_output::print(report)?,
            _ => print_report(report)?,
        }
    }
    if let Some(error) = &report.error {
        complain(&(error.message.clone() + advice(report.remedy())));
    }
    Ok(match (report.error_kind(), report.outcome) {
        (Some(kind), _) => code_of(kind),
        (None, Outcome::Different) => EXIT_DIFFERENT,
        (None, _) => 0,
    })
}

fn print_report(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (bytes, blocks, seconds) = (&report.bytes, &report.blocks, &report.seconds);
    writeln!(
        out,
        "{}: {} -> {}",
        report.outcome.name(),
        report.source.endpoint,
        report.target.endpoint
    )?;
    if let Some(strategy) = report.strategy {
        writeln!(
            out,
            "  strategy   {strategy} ({})",
            report.reasons.join(", ")
        )?;
    } else if !report.reasons.is_empty() {
        writeln!(out, "  reasons    {}", report.reasons.join(", "))?;
    }
    writeln!(
        out,
        "  blocks     {} of {} KiB: {} hashed, {} unallocated, {} differ, {} made zero",
        blocks.total,
        report.root_block_size >> 10,
        blocks.hashed,
        blocks.skipped_unallocated,
        blocks.differing,
        blocks.zeroed
    )?;
    let replans = &report.replans;
    if replans.count > 0 {
        writeln!(
            out,
            "  replanned  {} times: {} in {} regions sent whole ({})",
            replans.count,
            show(replans.whole_bytes),
            replans.whole_regions,
            replans.reasons.join(", ")
        )?;
    }
    writeln!(
        out,
        "  bytes      read {} + {}, changed {}, sent {}, link {} out {} in, written {}",
        show(bytes.source_read),
        show(bytes.target_read),
        show(bytes.changed),
        show(bytes.sent),
        show(bytes.wire_out),
        show(bytes.wire_in),
        show(bytes.written)
    )?;
    match report.verified_from {
        Some(from) => writeln!(
            out,
            "  verified   {} read back from {from}",
            show(bytes.verified)
        )?,
        None if report.outcome == Outcome::Unverified => {
            writeln!(out, "  verified   no (--verify off)")?;
        }
        None => {}
    }
    if let Some(root) = &report.root.source {
        let remark = if report.non_cryptographic {
            " (non_cryptographic)"
        } else {
            ""
        };
        writeln!(out, "  root       {} {root}{remark}", report.hash.name())?;
    }
    writeln!(
        out,
        "  seconds    {:.2} (plan {:.2}, copy {:.2}, verify {:.2})",
        seconds.total, seconds.plan, seconds.copy, seconds.verify
    )
}

/// Prints what an image is.
pub(crate) fn info(info: &ImageInfo) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", info.path)?;
    writeln!(out, "  format        {}", info.format)?;
    writeln!(
        out,
        "  virtual size  {} ({} bytes)",
        show(info.virtual_size),
        info.virtual_size
    )?;
    writeln!(
        out,
        "  file          {}, {} allocated",
        show(info.file_size),
        show(info.file_allocated)
    )?;
    if let Some(sector) = info.logical_sector_size {
        writeln!(out, "  sector        {sector} bytes")?;
    }
    writeln!(out, "  identity      {}", info.identity)?;
    if let Some(state) = info.state {
        let mixed = if info.is_mixed {
            ": neither old nor new, do not start it"
        } else {
            ""
        };
        writeln!(out, "  state         {state}{mixed}")?;
    }
    for warning in &info.state_warnings {
        writeln!(out, "  warning       {}", one_line(warning))?;
    }
    for parent in &info.chain {
        match &parent.path {
            Some(path) => writeln!(out, "  parent        {path}")?,
            None => writeln!(out, "  parent        not looked at: {}", parent.named)?,
        }
        writeln!(out, "                {}", parent.linkage)?;
    }
    if let Some(vhdx) = &info.vhdx {
        let block = info.block_size.unwrap_or(0).into();
        writeln!(out, "  kind          {}, {} blocks", vhdx.kind, show(block))?;
        writeln!(
            out,
            "  blocks        {} of {} allocated",
            vhdx.blocks_allocated, vhdx.blocks_total
        )?;
        match vhdx.log_entries {
            0 => writeln!(out, "  log           {}", vhdx.log)?,
            count => writeln!(
                out,
                "  log           {} in memory ({count} entries)",
                vhdx.log
            )?,
        }
        writeln!(out, "  creator       {}", vhdx.creator)?;
        for warning in &vhdx.warnings {
            writeln!(out, "  warning       {}", one_line(warning))?;
        }
    }
    if let Some(vhd) = &info.vhd {
        vhd_info(&mut out, vhd, info.block_size)?;
    }
    Ok(())
}

fn vhd_info(out: &mut impl Write, vhd: &VhdInfo, block_size: Option<u32>) -> std::io::Result<()> {
    let [cylinders, heads, sectors] = vhd.geometry;
    match block_size {
        Some(block) => writeln!(
            out,
            "  kind          {}, {} blocks",
            vhd.kind,
            show(block.into())
        )?,
        None => writeln!(out, "  kind          {}", vhd.kind)?,
    }
    if let (Some(total), Some(allocated)) = (vhd.blocks_total, vhd.blocks_allocated) {
        writeln!(out, "  blocks        {allocated} of {total} allocated")?;
    }
    writeln!(out, "  disk id       {}", vhd.disk_id)?;
    writeln!(out, "  geometry      {cylinders}/{heads}/{sectors}")?;
    writeln!(out, "  size taken of {}", vhd.size_rule)?;
    writeln!(out, "  creator       {}", vhd.creator)?;
    if let Some(name) = &vhd.parent_name {
        writeln!(out, "  parent        {name}")?;
    }
    for path in &vhd.parent_paths {
        writeln!(out, "  parent path   {path}")?;
    }
    for warning in &vhd.warnings {
        writeln!(out, "  warning       {}", one_line(warning))?;
    }
    Ok(())
}

/// Prints how a merge ended.
pub(crate) fn merged(merged: &MergeReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} -> {}",
        merged.outcome, merged.path, merged.parent
    )?;
    writeln!(
        out,
        "  {} copied, {} made zero in {:.2} s; {} is not needed any more",
        show(merged.copied),
        show(merged.zeroed),
        merged.seconds,
        merged.path
    )?;
    Ok(())
}

/// Prints what a check found, a line for each finding and one for the verdict, and says how to
/// exit.
pub(crate) fn check(check: &ImageCheck, json: bool) -> anyhow::Result<u8> {
    match json {
        true => document(check)?,
        false => print_check(check)?,
    }
    Ok(match check.is_sound() {
        true => 0,
        false => EXIT_DAMAGED,
    })
}

fn print_check(check: &ImageCheck) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for finding in &check.findings {
        let place = finding
            .offset
            .map_or(String::new(), |at| format!(" at {at:#x}"));
        writeln!(
            out,
            "{}: {}{place}: {} [{}]",
            finding.severity,
            finding.structure,
            one_line(&finding.detail),
            finding.rule
        )?;
    }
    if check.omitted > 0 {
        writeln!(out, "and {} findings more", check.omitted)?;
    }
    let kind = check.summary.kind.unwrap_or("unknown kind");
    let path = one_line(&check.path);
    let (outcome, format, errors) = (check.outcome, &check.format, check.errors);
    writeln!(out, "{outcome}: {path}: {format}, {kind}, {errors} errors")?;
    out.flush()
}

/// Prints a map.
pub(crate) fn map(map: &MapReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let remark = if map.non_cryptographic {
        " (non_cryptographic)"
    } else {
        ""
    };
    writeln!(out, "{}  {}{remark}", map.root, map.path)?;
    writeln!(
        out,
        "  {} {} blocks of {} KiB: {} hashed, {} unallocated, {} zero; {} read in {:.2} s",
        map.blocks_total,
        map.hash.name(),
        map.root_block_size >> 10,
        map.blocks_hashed,
        map.blocks_skipped_unallocated,
        map.blocks_zero,
        show(map.bytes_read),
        map.seconds
    )?;
    if let Some(path) = &map.saved_as {
        writeln!(out, "  saved as {path}")?;
    }
    Ok(())
}

/// One line on stdout, at once: somebody may wait for it.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// One line on stderr that is no error.
pub(crate) fn note(text: &str) {
    eprintln!("{}", one_line(text));
}
