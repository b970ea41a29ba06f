//! That both sides' disks still are what was copied and proven, however long that is ago: before
//! COMMIT, before the target is started, before anything of the source is deleted.
//!
//! A mark that differs is a suspicion: a file was touched, a device counts anew since its host was
//! restarted. What the disk holds decides, and is read for it.

use super::journal::Fact;
use super::run::{Job, Run};
use super::spec::{DiskSpec, JobSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::operation::{self, writes_since};
use crate::step::Step;

/// What a second look at a disk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It holds what was copied.
    Same,
    /// It holds something else.
    Changed,
    /// It was touched, and nothing was hashed that it could be held against.
    Unknown,
}

impl Job {
    /// Refuses where somebody wrote to a disk of the source since it was found quiet.
    ///
    /// # Errors
    /// `VerifyFailed`; `InUse` while somebody has it open; those of asking and of reading it.
    pub(super) fn refuse_changed_source(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        for disk in &spec.disks {
            let what = match self.look_at_source(spec, disk, run)? {
                Look::Same => continue,
                Look::Changed => {
                    "was written to since it was copied, and the target does not have that"
                }
                Look::Unknown => UNKNOWN,
            };
            let message = format!("disk `{}` of the source {what}: undo", disk.id);
            return Err(Error::new(ErrorKind::VerifyFailed, message));
        }
        Ok(())
    }

    /// What tells a disk of the source now, where that is not what told it when it was found quiet.
    ///
    /// # Errors
    /// `InUse` while somebody has it open; those of asking.
    pub(super) fn marked_anew(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<Option<String>> {
        let identity = self.sides.source.prove_quiet(disk, step)?;
        let is_same = self.history().quiet(&disk.id) == Some(identity.as_str());
        Ok((!is_same).then_some(identity))
    }

    /// Whether a disk of the source still has the content that was copied.
    pub(super) fn look_at_source(
        &mut self,
        spec: &JobSpec,
        disk: &DiskSpec,
        run: &Run<'_>,
    ) -> Result<Look> {
        let step = run.step(&spec.name, "look-again");
        let Some(identity) = self.marked_anew(disk, &step)? else {
            return Ok(Look::Same);
        };
        let host = self.sides.source.clone();
        let Some(moved) = self.history().sealed(&disk.id).cloned() else {
            return Ok(Look::Unknown);
        };
        let Some(root) = &moved.root else {
            return Ok(Look::Unknown);
        };
        told(run, &format!("disk `{}` of the source", disk.id));
        let name = if moved.hinted { "source.map" } else { "map" };
        let map = self.map_of(disk, name);
        if !host.hold_against(disk, (&map, root), &step)?.is_equal {
            return Ok(Look::Changed);
        }
        self.journal.note(Fact::Quiet {
            disk: disk.id.clone(),
            identity,
        })?;
        Ok(Look::Same)
    }

    /// Refuses where somebody wrote to a target since it was proven.
    ///
    /// # Errors
    /// `VerifyFailed`; those of reading it.
    pub(super) fn refuse_changed_target(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        for disk in &spec.disks {
            let what = match self.look_at_target(disk, run)? {
                Look::Same => continue,
                Look::Changed => {
                    "was written to since it was proven, before its machine was started: it is \
                     neither disk"
                }
                Look::Unknown => UNKNOWN,
            };
            let message = format!("disk `{}` {what}; undo", disk.id);
            return Err(Error::new(ErrorKind::VerifyFailed, message));
        }
        Ok(())
    }

    fn look_at_target(&mut self, disk: &DiskSpec, run: &Run<'_>) -> Result<Look> {
        let (Some(was), Some(moved)) = (
            self.history().applied(&disk.id),
            self.history().sealed(&disk.id).cloned(),
        ) else {
            return Ok(Look::Same);
        };
        let named = |error: Error| error.path(&disk.target);
        let open = disk.open(disk.target_format.as_deref())?;
        let identity = operation::state_of(&disk.target, &open).map_err(named)?;
        if identity == was {
            return Ok(Look::Same);
        }
        let Some(root) = &moved.root else {
            return Ok(Look::Unknown);
        };
        told(run, &format!("target `{}`", disk.id));
        let map = self.map_of(disk, "map");
        let of = (&map, root.as_str());
        let found = writes_since(&disk.target, &open, of, run.observer, run.cancel);
        if found.map_err(named)?.any {
            return Ok(Look::Changed);
        }
        let standing = operation::standing(&disk.target, None)?;
        self.journal.note(Fact::Applied {
            disk: disk.id.clone(),
            word: standing.map_or("none", |it| it.word.name()).to_owned(),
            identity: Some(identity),
        })?;
        Ok(Look::Same)
    }
}

/// What is said of a disk that somebody may have written to.
pub(super) const UNKNOWN: &str =
    "was touched since it was copied, and as nothing was hashed nobody can tell whether it changed";

fn told(run: &Run<'_>, what: &str) {
    run.observer.event(&Event::Warning {
        message: format!("{what} was touched since it was looked at: all of it is read"),
    });
}
