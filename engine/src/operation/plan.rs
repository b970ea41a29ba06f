//! The choice between delta and full. Pure: looks at facts, does no I/O.

use failback_transport::Task;

use crate::disk::DiskInfo;
use crate::error::{Error, ErrorKind, Result};

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The engine chooses.
    #[default]
    Auto,
    /// Compare, send what differs.
    Delta,
    /// Send everything, compare nothing.
    Full,
}

/// How a sync is done, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// [`Task::Delta`] or [`Task::Full`].
    pub task: Task,
    /// Reason codes.
    pub reasons: Vec<&'static str>,
}

impl Plan {
    /// The name of the choice in reports.
    #[must_use]
    pub fn strategy(&self) -> &'static str {
        match self.task {
            Task::Full => "full",
            _ => "delta",
        }
    }
}

/// Chooses. Facts: whether the target is new, and whether a saved map of a side is believed.
#[must_use]
pub fn choose(wanted: Strategy, target_is_new: bool, has_map: bool) -> Plan {
    let missing = target_is_new.then_some("target_missing");
    let (task, reason) = match (wanted, target_is_new) {
        (Strategy::Delta, _) => (Task::Delta, Some("operator_forced")),
        (Strategy::Full, _) => (Task::Full, Some("operator_forced")),
        (Strategy::Auto, true) => (Task::Full, None),
        (Strategy::Auto, false) if has_map => (Task::Delta, None),
        (Strategy::Auto, false) => (Task::Delta, Some("no_base_map")),
    };
    // A full copy reads all of the source whatever is known of it.
    let trusted = (has_map && task == Task::Delta).then_some("map_trusted");
    Plan {
        task,
        reasons: missing.into_iter().chain(reason).chain(trusted).collect(),
    }
}

/// Refuses disks that cannot become equal.
///
/// # Errors
/// `GeometryMismatch` for different lengths, or different sectors where both formats state one.
pub(super) fn check_fit(source: &DiskInfo, target: &DiskInfo) -> Result<()> {
    let mismatch = |message: String| Err(Error::new(ErrorKind::GeometryMismatch, message));
    if source.virtual_size != target.virtual_size {
        return mismatch(format!(
            "the disks differ in length: source has {} bytes, target {}",
            source.virtual_size, target.virtual_size
        ));
    }
    match (source.logical_sector_size, target.logical_sector_size) {
        (Some(a), Some(b)) if a != b => mismatch(format!(
            "the disks differ in sector size: source has {a} bytes, target {b}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the choice and its reasons. Method: every case of the table.
    #[test]
    fn choices() {
        let table = [
            (Strategy::Auto, true, Task::Full, vec!["target_missing"]),
            (Strategy::Auto, false, Task::Delta, vec!["no_base_map"]),
            (
                Strategy::Delta,
                true,
                Task::Delta,
                vec!["target_missing", "operator_forced"],
            ),
            (Strategy::Full, false, Task::Full, vec!["operator_forced"]),
        ];
        for (wanted, is_new, task, reasons) in table {
            assert_eq!(choose(wanted, is_new, false), Plan { task, reasons });
        }
        let reasons = |wanted, is_new| choose(wanted, is_new, true).reasons;
        assert_eq!(reasons(Strategy::Auto, false), ["map_trusted"]);
        assert_eq!(
            reasons(Strategy::Delta, false),
            ["operator_forced", "map_trusted"]
        );
        assert_eq!(reasons(Strategy::Full, false), ["operator_forced"]);
    }
}
