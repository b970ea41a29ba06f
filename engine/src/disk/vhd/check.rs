//! What is wrong with a VHD: every violation, not only the first.
//!
//! Findings have the shape of those of a VHDX. Their structures are `footer`, `footer copy`,
//! `header`, `block table`, `locator` and `file`; docs/operating.md lists the rules.

use failback_vhdx::{FileAt, Finding, Severity};

use super::anatomy::Anatomy;
use crate::error::{Error, ErrorKind, Result};

/// Looks at every structure of the VHD in `file` and lists each violation. Reads footers, header,
/// locators and the block table; no content, and no parent. Writes nothing.
///
/// # Errors
/// `Io` when the file cannot be read.
pub fn check(file: &dyn FileAt) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Some(anatomy) = Anatomy::read(file, &mut findings)? {
        anatomy.find_loose_ends(file, &mut findings)?;
    }
    Ok(findings)
}

/// For what keeps the image from being opened.
pub(super) fn error(
    structure: &'static str,
    at: u64,
    rule: &'static str,
    detail: impl Into<String>,
) -> Finding {
    Finding {
        structure,
        at: Some(at),
        rule,
        severity: Severity::Error,
        detail: detail.into(),
    }
}

/// For what is odd, and got over: the disk reads right.
pub(super) fn warning(
    structure: &'static str,
    at: u64,
    rule: &'static str,
    detail: impl Into<String>,
) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..error(structure, at, rule, detail)
    }
}

/// One line for an operator.
pub(super) fn line(finding: &Finding) -> String {
    match finding.at {
        Some(at) => format!("{} at {at:#x}: {}", finding.structure, finding.detail),
        None => format!("{}: {}", finding.structure, finding.detail),
    }
}

/// The error that ends opening the image.
pub(super) fn into_error(finding: &Finding) -> Error {
    let kind = match RULES_OF_THIS_RELEASE.contains(&finding.rule) {
        true => ErrorKind::Unsupported,
        false => ErrorKind::Damaged,
    };
    let message = format!("VHD {}: {}", finding.structure, finding.detail);
    let error = Error::new(kind, message);
    match finding.at {
        Some(at) => error.at(at),
        None => error,
    }
}

/// The rules that a sound image can break: it is beyond what this release knows or holds.
const RULES_OF_THIS_RELEASE: [&str; 6] = [
    "footer-version",
    "footer-kind",
    "footer-size-beyond-limit",
    "header-version",
    "block-size-beyond-limit",
    "table-beyond-limit",
];
