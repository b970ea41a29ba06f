//! What is wrong with a VHD: every violation, not only the first.

use failback_vhdx::FileAt;

use super::anatomy::Anatomy;
use crate::error::{Error, ErrorKind, Result};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Odd, and got over: the disk reads right.
    Warning,
    /// The image is not opened.
    Error,
}

/// One violation of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Part of the image: `footer`, `footer copy`, `header`, `block table`, `locator`, `file`.
    pub structure: &'static str,
    /// Where in the file, in bytes from its start.
    pub at: Option<u64>,
    /// What should be so.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is so instead; one line, foreign text escaped.
    pub detail: String,
}

/// The rule that is broken by what is sound but beyond this release.
pub(super) const RULE_SUPPORTED: &str = "is supported by this release";

impl Finding {
    pub(super) fn error(
        structure: &'static str,
        at: u64,
        rule: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            structure,
            at: Some(at),
            rule,
            severity: Severity::Error,
            detail: detail.into(),
        }
    }

    pub(super) fn warning(
        structure: &'static str,
        at: u64,
        rule: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(structure, at, rule, detail)
        }
    }

    /// One line for an operator.
    #[must_use]
    pub fn line(&self) -> String {
        match self.at {
            Some(at) => format!("{} at {at:#x}: {}", self.structure, self.detail),
            None => format!("{}: {}", self.structure, self.detail),
        }
    }

    /// The error that ends opening the image.
    pub(super) fn into_error(self) -> Error {
        let kind = match self.rule {
            RULE_SUPPORTED => ErrorKind::Unsupported,
            _ => ErrorKind::Damaged,
        };
        let error = Error::new(kind, format!("VHD {}: {}", self.structure, self.detail));
        match self.at {
            Some(at) => error.at(at),
            None => error,
        }
    }
}

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
