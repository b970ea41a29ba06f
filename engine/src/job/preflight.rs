//! Whether all that a job will need is there: rules with ids, and what each found. Changes nothing.

use std::path::Path;

use serde::Serialize;

use super::online::full_anyway;
use super::overlap::Place;
use super::profile::{Profile, Seen};
use super::run::Sides;
use super::spec::{DiskSpec, JobSpec, SnapshotSpec};
use crate::disk::{OpenOptions, children_of, open_source};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::machine::{Machine, Power};
use crate::operation::{self, ImageInfo};
use crate::plan::Strategy;
use crate::state::{refuse_owned, state_directory};
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

/// Looks at everything; what does not hold is among the findings. `owner`: the directory of the job
/// that looks; `None`: none does.
///
/// # Errors
/// Where a side cannot be asked at all.
pub(super) fn examine(
    spec: &JobSpec,
    sides: &Sides,
    owner: Option<&Path>,
    step: &Step<'_>,
) -> Result<Vec<Finding>> {
    let mut found = machines(spec, sides);
    // Who cannot be asked is not asked: what is missing says why.
    let are_there = found.iter().all(|it| it.holds || !it.rule.ends_with(HOOKS));
    if !are_there {
        return Ok(found);
    }
    let source = sides.source.machine().power(step)?;
    found.push(finding(
        "source_reached",
        "",
        true,
        format!("it is {source}"),
    ));
    found.extend(freezes(spec, source));
    found.extend(all_disks(spec, sides.source.disks(step)?));
    if let Some(directory) = &spec.policy.export_on_undo {
        let is_there = directory.is_dir();
        let said = match is_there {
            true => "the directory of export_on_undo is there",
            false => "the directory of export_on_undo is not there",
        };
        found.push(finding("export_place", "", is_there, said.to_owned()));
    }
    found.extend(examine_again(spec, sides, step)?);
    let mut seen = Vec::new();
    for disk in &spec.disks {
        let source = match spec.source_of(disk)? {
            Endpoint::Path(path) => {
                let open = disk.open(disk.source_format.as_deref())?;
                let (is_top, said) = childless(&path, &open)?;
                found.push(finding("source_checkpoints", &disk.id, is_top, said));
                Some(operation::info(&path, &open, None)?)
            }
            // The agent tells when it is planned.
            _ => None,
        };
        let target = target_of(disk)?;
        let (is_free, said) = standing_of(disk, owner)?;
        found.push(finding("target_free", &disk.id, is_free, said));
        let (may_write, said) = writable(disk)?;
        found.push(finding("target_writable", &disk.id, may_write, said));
        let of_disk = [
            size(source.as_ref(), target.as_ref()),
            space(spec, disk, (source.as_ref(), target.as_ref())),
        ];
        for (rule, holds, said) in of_disk.into_iter().flatten() {
            found.push(finding(rule, &disk.id, holds, said));
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

/// The rules that are quick to ask and may have changed since the preflight: the target's machine
/// is off; its images are those that are wanted, nobody writes to them, and they are not the
/// source's. Looked at again right before the source is stopped: from then on the machine stands
/// still until the job is over.
///
/// # Errors
/// Where the target's machine, or one of its images, cannot be asked at all.
pub(super) fn examine_again(
    spec: &JobSpec,
    sides: &Sides,
    step: &Step<'_>,
) -> Result<Vec<Finding>> {
    let target = sides.target.power(step)?;
    let said = format!("the target's machine is {target}");
    let mut found = vec![finding("target_off", "", target == Power::Off, said)];
    for disk in &spec.disks {
        let (is_distinct, said) = distinct(spec, disk)?;
        found.push(finding("distinct", &disk.id, is_distinct, said));
        let target = target_of(disk)?;
        if let Some(wanted) = &disk.identity {
            let (is_wanted, said) = identity(wanted, target.as_ref());
            found.push(finding("identity", &disk.id, is_wanted, said));
        }
        if target.is_some() {
            let (is_unused, said) = unused(disk)?;
            found.push(finding("target_unused", &disk.id, is_unused, said));
            let (is_top, said) =
                childless(&disk.target, &disk.open(disk.target_format.as_deref())?)?;
            found.push(finding("target_checkpoints", &disk.id, is_top, said));
        }
    }
    Ok(found)
}

/// # Errors
/// `Refused`, with all that does not hold.
pub(super) fn refuse_broken(findings: &[Finding]) -> Result<()> {
    let broken = findings.iter().filter(|finding| !finding.holds);
    let said: Vec<_> = broken
        .map(
            |Finding {
                 rule, disk, said, ..
             }| match disk.is_empty() {
                true => format!("{rule}: {said}"),
                false => format!("{rule} of disk `{disk}`: {said}"),
            },
        )
        .collect();
    match said.is_empty() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Refused, said.join("; "))),
    }
}

fn finding(rule: &str, disk: &str, holds: bool, said: String) -> Finding {
    Finding {
        rule: rule.to_owned(),
        disk: disk.to_owned(),
        holds,
        said,
        source: None,
    }
}

/// Whether disks can be read while their machine runs, where they have to be. A program that embeds
/// this, and an agent, have their own ways.
fn freezes(spec: &JobSpec, power: Power) -> Option<Finding> {
    let side = &spec.source;
    let says = side.machine.is_some() && side.snapshots.is_none();
    let has_to = power == Power::On && full_anyway(spec).is_none();
    (says && has_to).then(|| {
        let said = "the source runs, and nothing says how its disks are frozen: give \
                    [source.snapshots], stop it first, or copy everything with strategy = \"full\"";
        finding("source_snapshots", "", false, said.to_owned())
    })
}

/// Whether the machines can do what the job will come to, as far as that can be told without asking
/// them. An agent says nothing of its machine.
fn machines(spec: &JobSpec, sides: &Sides) -> Vec<Finding> {
    let (source, target) = (sides.source.machine(), sides.target.as_ref());
    let mut found = Vec::new();
    for (rule, machine, side) in [
        ("source_hooks", source, &spec.source),
        ("target_hooks", target, &spec.target),
    ] {
        let mut faults = machine.faults();
        let own = [("probe", &side.probe), ("delete_disk", &side.delete_disk)];
        let faulty = own.into_iter();
        faults.extend(faulty.filter_map(|(name, hook)| hook.as_ref()?.fault(name)));
        if let Some(SnapshotSpec::Hooks(hooks)) = &side.snapshots {
            faults.extend(hooks.faults());
        }
        let said = match faults.is_empty() {
            true => "what the machine needs is there".to_owned(),
            false => faults.join("; "),
        };
        found.push(finding(rule, "", faults.is_empty(), said));
    }
    let can = |machine: &dyn Machine, what: &str| !machine.lacks().contains(&what);
    let (asks, forces) = (can(source, "shut_down"), can(source, "power_off"));
    let (holds, said) = match (asks, spec.policy.force_stop && forces) {
        (true, _) => (true, "the source can be shut down"),
        (false, true) => (true, "the source can only have its power taken away"),
        (false, false) => (
            false,
            "nothing says how the source is shut down, or, with force_stop, has its power taken \
             away",
        ),
    };
    found.push(finding("source_stops", "", holds, said.to_owned()));
    let (holds, said) = match can(target, "shut_down") || can(target, "power_off") {
        true => (true, "the target can be stopped for an undo"),
        false => (
            false,
            "nothing says how the target is stopped, as an undo has to",
        ),
    };
    found.push(finding("target_stops", "", holds, said.to_owned()));
    if spec.policy.delete_source_machine {
        let (holds, said) = match can(source, "delete") {
            true => (true, "the source's machine can be deleted"),
            false => (false, "nothing says how the source's machine is deleted"),
        };
        found.push(finding("source_deletes", "", holds, said.to_owned()));
    }
    // What a program deletes by, it knows.
    let says = spec.source.machine.is_some();
    if spec.policy.delete_source_disks && says && spec.source.delete_disk.is_none() {
        let said = "nothing says how the source's disks are deleted".to_owned();
        found.push(finding("source_deletes", "", false, said));
    }
    found
}

/// Half a machine does not come home.
fn all_disks(spec: &JobSpec, known: Option<Vec<String>>) -> Option<Finding> {
    let known = known?;
    let is_named = |id: &&String| spec.disks.iter().any(|disk| disk.id == **id);
    let left: Vec<_> = known.iter().filter(|id| !is_named(id)).cloned().collect();
    let ids = spec.disks.iter().map(|disk| &disk.id);
    let unknown: Vec<_> = ids.filter(|id| !known.contains(id)).cloned().collect();
    let mut said = Vec::new();
    if !left.is_empty() {
        said.push(format!("the job leaves out: {}", left.join(", ")));
    }
    if !unknown.is_empty() {
        said.push(format!("the machine does not have: {}", unknown.join(", ")));
    }
    let holds = said.is_empty();
    if holds {
        said.push(format!("all {} disks of the machine", known.len()));
    }
    Some(finding("all_disks", "", holds, said.join("; ")))
}

/// `None` where there is none.
fn target_of(disk: &DiskSpec) -> Result<Option<ImageInfo>> {
    match disk.target.exists() {
        true => {
            let open = disk.open(disk.target_format.as_deref())?;
            operation::info(&disk.target, &open, None).map(Some)
        }
        false => Ok(None),
    }
}

/// Whether the target is no disk that the job reads, by whatever name.
fn distinct(spec: &JobSpec, disk: &DiskSpec) -> Result<(bool, String)> {
    let place = Place::of(&Endpoint::Path(disk.target.clone()));
    for other in &spec.disks {
        let source = spec.source_of(other)?;
        let is_same = match &source {
            Endpoint::Path(path) => system::is_same_file(path, &disk.target),
            _ => false,
        };
        if is_same || Place::of(&source) == place {
            return Ok((false, format!("the target is the source of `{}`", other.id)));
        }
    }
    Ok((true, "the target is no source".to_owned()))
}

fn unused(disk: &DiskSpec) -> Result<(bool, String)> {
    let open = disk.open(disk.target_format.as_deref())?;
    match open_source(&disk.target, &open) {
        Ok(_) => Ok((true, "nobody writes to the target".to_owned())),
        Err(error) if error.kind() == ErrorKind::InUse => Ok((false, error.chain())),
        Err(error) => Err(error),
    }
}

/// Whether no other image stands on this one: a machine with a checkpoint runs from another file,
/// and a checkpoint whose parent is written to is lost.
fn childless(path: &Path, open: &OpenOptions) -> Result<(bool, String)> {
    if open.skip_sibling_check {
        return Ok((true, "not looked for, as the definition says".to_owned()));
    }
    let children = children_of(path, open)?;
    Ok(match children.paths.first() {
        None if children.notes.is_empty() => (true, "no checkpoint stands on it".to_owned()),
        None => {
            let count = children.notes.len();
            let named = &children.notes[..count.min(NOTES_NAMED_MAX)];
            let mut said = format!(
                "no checkpoint is known to stand on it; not all was seen: {}",
                named.join("; ")
            );
            if count > named.len() {
                said.push_str(&format!("; and {} more", count - named.len()));
            }
            (true, said)
        }
        Some(child) => {
            let child = one_line(&child.to_string_lossy());
            let said = format!("{child} stands on it: merge or delete that first");
            (false, said)
        }
    })
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
fn standing_of(disk: &DiskSpec, owner: Option<&Path>) -> Result<(bool, String)> {
    if let Err(owned) = refuse_owned(&disk.target, owner) {
        return match owned.kind() {
            ErrorKind::Refused => Ok((false, owned.chain())),
            _ => Err(owned),
        };
    }
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

fn identity(wanted: &str, target: Option<&ImageInfo>) -> (bool, String) {
    match target.map(disk_id) {
        Some(Some(is)) => {
            let holds = plain(is).eq_ignore_ascii_case(plain(wanted));
            (holds, format!("the target is {is}, {wanted} is wanted"))
        }
        Some(None) => {
            let said = format!("the target is raw and has no id, {wanted} is wanted");
            (false, said)
        }
        None => (false, format!("there is no target, {wanted} is wanted")),
    }
}

/// Whether the target's state can be kept where it belongs, and the target itself be written.
fn writable(disk: &DiskSpec) -> Result<(bool, String)> {
    let state = state_directory(&disk.target, None)?;
    // What is missing of it is made.
    let place = state.ancestors().find(|path| path.exists());
    let target = Some(disk.target.as_path()).filter(|path| path.exists());
    let mut there = [place, target].into_iter().flatten();
    Ok(match there.find(|path| !system::may_write(path)) {
        None => (true, "it may be written to".to_owned()),
        Some(path) => (
            false,
            format!("this user may not write to {}", path.display()),
        ),
    })
}

/// A GUID without the braces that Windows prints around it.
fn plain(id: &str) -> &str {
    let id = id.trim();
    let inner = id.strip_prefix('{').and_then(|id| id.strip_suffix('}'));
    inner.unwrap_or(id)
}

fn size(source: Option<&ImageInfo>, target: Option<&ImageInfo>) -> Option<Rule> {
    let (a, b) = (source?.virtual_size, target?.virtual_size);
    Some(("size", a == b, format!("source {a} bytes, target {b}")))
}

/// A full copy needs room for all of it. What a delta needs is not known before the disks were
/// compared.
fn space(
    spec: &JobSpec,
    disk: &DiskSpec,
    (source, target): (Option<&ImageInfo>, Option<&ImageInfo>),
) -> Option<Rule> {
    let free = system::free_beside(&disk.target)?;
    let is_full = target.is_none() || spec.policy.strategy == Strategy::Full;
    let (needed, said) = match source.filter(|_| is_full) {
        Some(source) => {
            let needed = source.file_allocated.max(FREE_MIN);
            (
                needed,
                format!(
                    "{needed} bytes are needed, {free} are free beside {}",
                    disk.target.display()
                ),
            )
        }
        None => {
            let said = format!(
                "{free} bytes are free beside {}; {FREE_MIN} are needed at least, and room for \
                 what differs, which is not known yet",
                disk.target.display()
            );
            (FREE_MIN, said)
        }
    };
    Some(("space", free >= needed, said))
}

/// What lasts of a disk, whatever is written to it; only images have it.
fn disk_id(info: &ImageInfo) -> Option<&str> {
    let vhdx = info.vhdx.as_ref().map(|vhdx| vhdx.disk_id.as_str());
    vhdx.or(info.vhd.as_ref().map(|vhd| vhd.disk_id.as_str()))
}

/// Images that could not be looked at, of which a finding names so many.
const NOTES_NAMED_MAX: usize = 3;
/// Ends the names of rules about what machines need of this host.
const HOOKS: &str = "_hooks";
/// With less room than this nothing can be staged: a stage, maps and journals take some MiB before
/// the first block.
const FREE_MIN: u64 = 64 << 20;
