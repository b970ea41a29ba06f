//! `check`: all that is wrong with an image. Takes no lock and writes nothing.

use std::path::Path;
use std::sync::Arc;

use failback_vhdx::{CheckOptions, CheckSummary, FileAt, Finding, ParentIdentity, Severity};
use serde::Serialize;

use crate::disk::vhd::{self, VhdImage};
use crate::disk::{Format, probe, vhdx_error};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::system::{Access, HostFile};

/// What `failback check` prints. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct ImageCheck {
    /// `failback.check/1`.
    pub schema: &'static str,
    /// As it was named.
    pub path: String,
    /// `vhdx`, `vhd`.
    pub format: String,
    /// `sound` without an error among the findings, else `damaged`.
    pub outcome: &'static str,
    /// What is not as it should be, in the order of the structures.
    pub findings: Vec<CheckFinding>,
    /// Findings that are not listed, since there are too many.
    pub omitted: u64,
    /// Findings that are errors, listed or not.
    pub errors: u64,
    /// What the image is made of, as far as it could be read.
    pub summary: ImageSummary,
}

impl ImageCheck {
    /// Whether no error was found.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.errors == 0
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct CheckFinding {
    /// Which structure of the format.
    pub structure: &'static str,
    /// Byte offset in the file, where there is one.
    pub offset: Option<u64>,
    /// Which rule is broken; names do not change between releases.
    pub rule: &'static str,
    /// `note`, `warning` or `error`.
    pub severity: &'static str,
    /// What was found, for people.
    pub detail: String,
}

/// What the image is made of. What could not be read counts 0.
#[derive(Clone, Debug, Serialize)]
pub struct ImageSummary {
    /// `fixed`, `dynamic` or `differencing`; `null` where that could not be read.
    pub kind: Option<&'static str>,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Whole entries of a log that is in use.
    pub log_entries_valid: u64,
    /// Those of them that have to be replayed.
    pub log_entries_active: u64,
    /// Blocks of the disk that were never written.
    pub blocks_not_present: u64,
    /// Blocks of the disk with undefined content.
    pub blocks_undefined: u64,
    /// Blocks of the disk that are zero.
    pub blocks_zero: u64,
    /// Blocks of the disk that were discarded.
    pub blocks_unmapped: u64,
    /// Blocks of the disk that are stored in the file.
    pub blocks_present: u64,
    /// Blocks of the disk that are stored in part.
    pub blocks_partial: u64,
    /// Blocks of the disk in a state without meaning.
    pub blocks_invalid: u64,
    /// Sector bitmap blocks in the file.
    pub bitmap_blocks: u64,
    /// Bytes in whole MiB that nothing uses.
    pub unreferenced: u64,
    /// Runs of such MiB.
    pub unreferenced_ranges: u64,
    /// Bytes behind the last whole MiB.
    pub trailing: u64,
}

/// Checks the image at `path`, and its link to the image at `parent` where one is given.
///
/// # Errors
/// `Unsupported` for what is no image that can be checked, and for a parent that is none;
/// `Damaged` for a parent that does not say who it is; `Refused`, `Io`. What is wrong with the
/// image itself is in the report.
pub fn check(path: &Path, parent: Option<&Path>) -> Result<ImageCheck> {
    let parent = parent.map(parent_identity).transpose()?;
    let file = Arc::new(HostFile::open(path, Access::Inspect)?);
    match probe(&file)? {
        Format::Vhdx => {
            let mut options = CheckOptions::default();
            options.parent = parent;
            let report = failback_vhdx::check(&*file, &options);
            let report = report.map_err(|e| vhdx_error(&e, &file))?;
            Ok(ImageCheck {
                schema: "failback.check/1",
                path: path.display().to_string(),
                format: Format::Vhdx.to_string(),
                outcome: if report.is_sound() {
                    "sound"
                } else {
                    "damaged"
                },
                findings: report.findings.iter().map(finding).collect(),
                omitted: report.omitted,
                errors: report.errors,
                summary: summary(&report.summary),
            })
        }
        Format::Vhd => {
            let findings = vhd::check(&*file).map_err(|e| e.path(path))?;
            let errors = findings.iter().filter(|f| f.severity == Severity::Error);
            let errors = errors.count() as u64;
            let len = file
                .len()
                .map_err(|e| Error::io(e, "read length").path(path))?;
            Ok(ImageCheck {
                schema: "failback.check/1",
                path: path.display().to_string(),
                format: Format::Vhd.to_string(),
                outcome: if errors == 0 { "sound" } else { "damaged" },
                findings: findings.iter().map(finding).collect(),
                omitted: 0,
                errors,
                summary: vhd_summary(&file, len),
            })
        }
        Format::Raw => Err(unsupported(path, "is no image with a structure to check")),
        Format::Foreign(name) => {
            let message = format!("is a {name} image, which is not supported");
            Err(unsupported(path, &message))
        }
    }
}

fn parent_identity(path: &Path) -> Result<ParentIdentity> {
    let file = Arc::new(HostFile::open(path, Access::Inspect)?);
    if probe(&file)? != Format::Vhdx {
        return Err(unsupported(path, "is no VHDX, so no parent of one"));
    }
    let report = failback_vhdx::check(&*file, &CheckOptions::default());
    let report = report.map_err(|e| vhdx_error(&e, &file))?;
    report.identity.ok_or_else(|| {
        let message = "does not say who it is, so no child can be compared with it; check it first";
        Error::new(ErrorKind::Damaged, message).path(path)
    })
}

fn unsupported(path: &Path, message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message).path(path)
}

fn finding(found: &Finding) -> CheckFinding {
    CheckFinding {
        structure: found.structure,
        offset: found.at,
        rule: found.rule,
        severity: match found.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        },
        detail: one_line(&found.detail),
    }
}

fn vhd_summary(file: &Arc<HostFile>, file_size: u64) -> ImageSummary {
    let mut sum = ImageSummary {
        file_size,
        ..summary(&CheckSummary::default())
    };
    // A damaged image has no more to tell than its findings.
    if let Ok(image) = VhdImage::inspect(file.clone()) {
        sum.kind = Some(image.kind().name());
        if let Some((total, stored)) = image.block_counts() {
            (sum.blocks_not_present, sum.blocks_present) = (total - stored, stored);
        }
    }
    sum
}

fn summary(found: &CheckSummary) -> ImageSummary {
    let blocks = &found.blocks;
    ImageSummary {
        kind: found.kind,
        file_size: found.file_len,
        log_entries_valid: found.log_entries_valid,
        log_entries_active: found.log_entries_active,
        blocks_not_present: blocks.not_present,
        blocks_undefined: blocks.undefined,
        blocks_zero: blocks.zero,
        blocks_unmapped: blocks.unmapped,
        blocks_present: blocks.present,
        blocks_partial: blocks.partial,
        blocks_invalid: blocks.invalid,
        bitmap_blocks: found.bitmap_blocks,
        unreferenced: found.unreferenced_len,
        unreferenced_ranges: found.unreferenced_ranges,
        trailing: found.trailing_len,
    }
}
