//! Whether all that a job will need is there: rules with ids, and what each found. Changes nothing.

use serde::Serialize;

use super::profile::{Profile, Seen};
use super::run::Sides;
use super::spec::{DiskSpec, JobSpec};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::machine::Power;
use crate::operation::{self, ImageInfo};
use crate::step::Step;
use crate::system;

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Id of the rule.
    pub rule: String,
    /// The disk; empty for the machine.
    pub disk: String,
    /// Whether a job can go on.
    pub holds: bool,
    /// In words.
    pub said: String,
    /// Where the rule is from, when it is a platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Looks at everything; what does not hold is among the findings.
///
/// # Errors
/// Where a side cannot be asked at all.
pub(super) fn examine(spec: &JobSpec, sides: &Sides, step: &Step<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut find = |rule: &str, disk: &str, holds, said: String| {
        found.push(Finding {
            rule: rule.to_owned(),
            disk: disk.to_owned(),
            holds,
            said,
            source: None,
        });
    };
    let source = sides.source.machine().power(step)?;
    find("source_reached", "", true, format!("it is {source}"));
    let target = sides.target.power(step)?;
    let said = format!("the target's machine is {target}");
    find("target_off", "", target == Power::Off, said);
    let mut seen = Vec::new();
    for disk in &spec.disks {
        let source = match spec.source_of(disk)? {
            Endpoint::Path(path) => {
                let open = disk.open(disk.source_format.as_deref())?;
                Some(operation::info(&path, &open, None)?)
            }
            // The agent tells when it is planned.
            _ => None,
        };
        let target = match disk.target.exists() {
            true => {
                let open = disk.open(disk.target_format.as_deref())?;
                Some(operation::info(&disk.target, &open, None)?)
            }
            false => None,
        };
        let (is_free, said) = standing_of(disk)?;
        find("target_free", &disk.id, is_free, said);
        for (rule, holds, said) in of_disk(disk, source.as_ref(), target.as_ref()) {
            find(rule, &disk.id, holds, said);
        }
        if spec.policy.profile.is_some() {
            seen.extend(see(spec, disk, (source.as_ref(), target.as_ref()))?);
        }
    }
    if let Some(profile) = &spec.policy.profile {
        found.extend(Profile::named(profile)?.examine(&seen));
    }
    Ok(found)
}

/// What a profile is held against: the target's image, which nobody uses now, else the source's.
fn see(
    spec: &JobSpec,
    disk: &DiskSpec,
    (source, target): (Option<&ImageInfo>, Option<&ImageInfo>),
) -> Result<Option<Seen>> {
    if let Some(target) = target {
        let open = disk.open(disk.target_format.as_deref())?;
        let at = (disk.target.as_path(), &open);
        return Ok(Some(Seen::of(disk, target, source, at)));
    }
    match (source, spec.source_of(disk)?) {
        (Some(source), Endpoint::Path(path)) => {
            let open = disk.open(disk.source_format.as_deref())?;
            Ok(Some(Seen::of(disk, source, None, (&path, &open))))
        }
        _ => Ok(None),
    }
}

/// Whether no sync to the target is unfinished or waits to be accepted: a job that is given up
/// brings back what it staged itself, and nothing else.
fn standing_of(disk: &DiskSpec) -> Result<(bool, String)> {
    let standing = operation::standing(&disk.target, None)?;
    Ok(match standing.filter(|standing| !standing.is_over) {
        None => (true, "no sync to the target is unfinished".to_owned()),
        Some(standing) => {
            let word = standing.word.name();
            let said =
                format!("an earlier sync to the target is {word}: recover, roll back or commit it");
            (false, said)
        }
    })
}

type Rule = (&'static str, bool, String);

fn of_disk(disk: &DiskSpec, source: Option<&ImageInfo>, target: Option<&ImageInfo>) -> Vec<Rule> {
    let mut found = Vec::new();
    if let Some(wanted) = &disk.identity {
        let is = target.and_then(disk_id);
        let said = match is {
            Some(is) => format!("the target is {is}, {wanted} is wanted"),
            None => "there is no target".to_owned(),
        };
        found.push(("identity", is == Some(wanted.as_str()), said));
    }
    if let (Some(source), Some(target)) = (source, target) {
        let (a, b) = (source.virtual_size, target.virtual_size);
        found.push(("size", a == b, format!("source {a} bytes, target {b}")));
    }
    if let Some(source) = source {
        // A delta needs no more than a full copy, and what it will come to is not known yet.
        let needed = if target.is_some() {
            0
        } else {
            source.file_allocated
        };
        if let Some(free) = system::free_beside(&disk.target) {
            let said = format!("{needed} bytes are needed, {free} are free");
            found.push(("space", free >= needed, said));
        }
    }
    found
}

/// What lasts of a disk, whatever is written to it; only images have it.
fn disk_id(info: &ImageInfo) -> Option<&str> {
    let vhdx = info.vhdx.as_ref().map(|vhdx| vhdx.disk_id.as_str());
    vhdx.or(info.vhd.as_ref().map(|vhd| vhd.disk_id.as_str()))
}
