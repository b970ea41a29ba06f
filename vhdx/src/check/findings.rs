//! The list of findings, which has a limit for each severity: no flood of notes hides an error.

use super::{Finding, Severity};

#[derive(Debug)]
pub(super) struct Findings {
    list: Vec<Finding>,
    /// Of each severity, how many were found.
    found: [u64; 3],
    /// Of each severity, how many are kept.
    max: usize,
    omitted: u64,
}

impl Findings {
    pub(super) fn new(max: usize) -> Self {
        Self {
            list: Vec::new(),
            found: [0; 3],
            max,
            omitted: 0,
        }
    }

    /// Adds a finding. Its text is only made when it is kept.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        structure: &'static str,
        at: impl Into<Option<u64>>,
        rule: &'static str,
        detail: impl FnOnce() -> String,
    ) {
        let found = &mut self.found[severity as usize];
        let is_kept = *found < self.max as u64;
        *found += 1;
        if !is_kept {
            self.omitted += 1;
            return;
        }
        self.list.push(Finding {
            structure,
            at: at.into(),
            rule,
            severity,
            detail: detail(),
        });
    }

    pub(super) fn error(
        &mut self,
        structure: &'static str,
        at: impl Into<Option<u64>>,
        rule: &'static str,
        detail: impl FnOnce() -> String,
    ) {
        self.add(Severity::Error, structure, at, rule, detail);
    }

    pub(super) fn warning(
        &mut self,
        structure: &'static str,
        at: impl Into<Option<u64>>,
        rule: &'static str,
        detail: impl FnOnce() -> String,
    ) {
        self.add(Severity::Warning, structure, at, rule, detail);
    }

    pub(super) fn note(
        &mut self,
        structure: &'static str,
        at: impl Into<Option<u64>>,
        rule: &'static str,
        detail: impl FnOnce() -> String,
    ) {
        self.add(Severity::Note, structure, at, rule, detail);
    }

    pub(super) fn error_count(&self) -> u64 {
        self.found[Severity::Error as usize]
    }

    /// The findings that are kept, how many are not, and how many are errors.
    pub(super) fn into_parts(self) -> (Vec<Finding>, u64, u64) {
        let errors = self.error_count();
        (self.list, self.omitted, errors)
    }
}

#[cfg(test)]
mod tests {
    // Goal: a flood is counted and hides nothing worse. Method: a limit of two.
    use super::*;

    #[test]
    fn notes_do_not_push_out_errors() {
        let mut findings = Findings::new(2);
        for at in 0..5 {
            findings.note("file", at, "n", String::new);
        }
        findings.error("BAT", 7, "e", String::new);
        let (list, omitted, errors) = findings.into_parts();
        assert_eq!((list.len(), omitted, errors), (3, 3, 1));
        assert_eq!((list[2].rule, list[2].at), ("e", Some(7)));
    }
}
