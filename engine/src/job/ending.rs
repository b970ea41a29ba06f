//! The ends of a job: accepted, undone, given up. What is done with is noted, not touched again.

use std::time::Duration;

use super::journal::Fact;
use super::phase::Outcome;
use super::run::{Job, Run, Went, left_ms};
use super::spec::{DiskSpec, JobSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::machine::{Machine, Power, await_power};
use crate::operation;
use crate::state::Word;

impl Job {
    pub(super) fn release(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "delete-source");
        let host = self.sides.source.clone();
        // One that cannot be asked any more is on its way out.
        if matches!(host.machine().power(&step), Ok(Power::On)) {
            let message =
                "somebody started the source's machine, and both run: stop it, and resume";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        self.thaw_all(&spec, run)?;
        for disk in &spec.disks {
            self.once(format!("accept:{}", disk.id), |_| accept(disk))?;
        }
        if !spec.policy.delete_source_disks {
            self.keep_base_maps(&spec, run);
        }
        if spec.policy.delete_source_machine {
            self.once(DELETE_SOURCE.to_owned(), |_| {
                deleted(host.machine().delete(&step))
            })?;
        }
        if spec.policy.delete_source_disks {
            let is_gone = self.has_deleted_source();
            for disk in &spec.disks {
                self.once(format!("delete-disk:{}", disk.id), |_| {
                    deleted(host.delete_disk(disk, is_gone, &step))
                })?;
            }
        }
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    /// Whether the source's machine was deleted: it is off then, whatever its hooks make of it.
    fn has_deleted_source(&self) -> bool {
        self.history().facts().any(|(_, fact)| {
            matches!(
                fact,
                Fact::Item { item, said } if item == DELETE_SOURCE && said == DELETED
            )
        })
    }

    // On the ways back the service comes first: what is left of targets and snapshots can wait, and
    // must not keep the source off when it cannot be removed.

    pub(super) fn undo(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let machine = self.sides.target.clone();
        let step = run.step(&spec.name, "stop-target");
        // A machine that another job moved on is not this one's to stop.
        self.refuse_overtaken(&step)?;
        // Each time: somebody may have started it since.
        let said = stop(machine.as_ref(), &spec, &step)?;
        self.once("stop:target".to_owned(), |_| Ok(said))?;
        self.give_back(&spec, run)?;
        self.note_lost(&spec, run)?;
        self.restore_all(&spec, run)?;
        self.thaw_all(&spec, run)?;
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn cancel(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        if self.history().has_stopped() {
            self.give_back(&spec, run)?;
        }
        // What was kept for a target before is somebody else's.
        if self.history().has_staged() {
            self.restore_all(&spec, run)?;
        }
        self.thaw_all(&spec, run)?;
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    fn restore_all(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        for disk in &spec.disks {
            let said = self.once(restored_item(&disk.id), |_| restore(disk, run))?;
            if let Some(said) = said.filter(|said| said.starts_with(KEPT)) {
                run.observer.event(&Event::Warning {
                    message: format!("disk `{}`: {said}", disk.id),
                });
            }
        }
        Ok(())
    }

    /// Puts the source in charge, and starts it if it ran before.
    pub(super) fn give_back(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        let side = spec.side_of_source();
        let step = run.step(&spec.name, "start-source");
        let asked = self.history().asked_to_stop();
        // Asked first: with the source in charge nobody stops the other one any more.
        if matches!(self.sides.target.power(&step), Ok(Power::On)) {
            let message = "the target's machine is on, and not by this job: stop it, and resume";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let epoch = self.begin_epoch(Some(side), &step)?;
        if !self.history().was_on() {
            return Ok(());
        }
        let host = self.sides.source.clone();
        if let Some(at_ms) = asked {
            // No guest can be asked not to shut down after all: it runs when it did, and was
            // started again.
            let limit = u64::try_from(spec.policy.stop_timeout.as_millis()).unwrap_or(u64::MAX);
            let rest = Duration::from_millis(left_ms(at_ms.saturating_add(limit)));
            await_power(&step, rest, Power::Off, || host.machine().power(&step))?;
        }
        let probe = spec.source.probe.as_ref();
        self.start_machine((side, epoch), host.machine(), probe, &step)
    }

    /// Does it unless it is noted as done. What was said, the first time.
    pub(super) fn once(
        &mut self,
        item: String,
        work: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<Option<String>> {
        if self.history().is_item_done(&item) {
            return Ok(None);
        }
        let said = work(self)?;
        self.journal.note(Fact::Item {
            item,
            said: said.clone(),
        })?;
        Ok(Some(said))
    }
}

/// What is said of something that was to be deleted.
fn deleted(done: Result<()>) -> Result<String> {
    match done {
        Ok(()) => Ok(DELETED.to_owned()),
        // It will not be another time either, and the target is accepted.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            Ok(format!("not deleted: {}", error.chain()))
        }
        Err(error) => Err(error),
    }
}

fn accept(disk: &DiskSpec) -> Result<String> {
    let standing = operation::standing(&disk.target, None)?;
    match standing.map(|standing| standing.word) {
        // Done, and a crash kept the note of it away.
        None | Some(Word::Done) => Ok("accepted".to_owned()),
        Some(_) => operation::accept(&disk.target, None).map(|_| "accepted".to_owned()),
    }
}

/// Brings the old disk back, from whatever the job made of it.
fn restore(disk: &DiskSpec, run: &Run<'_>) -> Result<String> {
    let standing = operation::standing(&disk.target, None)?;
    let word = standing.map(|standing| standing.word);
    match word {
        None | Some(Word::Aborted | Word::OldRestored | Word::Done) => Ok(RESTORED.to_owned()),
        Some(word) => match operation::roll_back(&disk.target, None, run.cancel) {
            Ok(_) => Ok(RESTORED.to_owned()),
            // Its guest, or somebody, wrote to it: with the old blocks back it would be neither
            // disk. It stays what it is, and is nobody's to start.
            Err(error)
                if error.kind() == ErrorKind::Refused
                    && matches!(word, Word::NewVerified | Word::NewUnverified) =>
            {
                Ok(format!("{KEPT}: {}", error.chain()))
            }
            Err(error) => Err(error),
        },
    }
}

fn stop(machine: &dyn Machine, spec: &JobSpec, step: &crate::step::Step<'_>) -> Result<String> {
    if machine.power(step)? == Power::Off {
        return Ok("was off".to_owned());
    }
    // What it wrote is given up in any case.
    match machine.shut_down(step, spec.policy.stop_timeout) {
        Ok(Power::Off) => Ok("shut down".to_owned()),
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
        Ok(Power::On) | Err(_) => {
            machine.power_off(step)?;
            Ok("power taken away".to_owned())
        }
    }
}

/// The item of bringing a target back.
pub(super) fn restored_item(disk: &str) -> String {
    format!("restore:{disk}")
}

/// The item of deleting the source's machine.
const DELETE_SOURCE: &str = "delete:source";
/// What is said of what was deleted.
const DELETED: &str = "deleted";
/// What is said of a target that was brought back.
pub(super) const RESTORED: &str = "as before the job";
/// Begins what is said of a target that could not be brought back.
pub(super) const KEPT: &str = "kept as it is";
