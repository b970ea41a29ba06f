//! The ends of a job: accepted, undone, given up. What is done with is noted, not touched again.

use super::journal::Fact;
use super::phase::Outcome;
use super::run::{Job, Run, Went};
use super::spec::{DiskSpec, JobSpec};
use crate::error::{ErrorKind, Result};
use crate::event::Event;
use crate::machine::{Machine, Power};
use crate::operation;
use crate::state::Word;

impl Job {
    pub(super) fn release(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        self.thaw_all(&spec, run)?;
        for disk in &spec.disks {
            self.once(format!("accept:{}", disk.id), |_| accept(disk))?;
        }
        if spec.policy.delete_source_machine {
            let step = run.step(&spec.name, "delete-source");
            let host = self.sides.source.clone();
            self.once("delete:source".to_owned(), |_| {
                host.machine().delete(&step)?;
                Ok("deleted".to_owned())
            })?;
        }
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn undo(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        self.thaw_all(&spec, run)?;
        let machine = self.sides.target.clone();
        let step = run.step(&spec.name, "stop-target");
        self.once("stop:target".to_owned(), |_| {
            stop(machine.as_ref(), &spec, &step)
        })?;
        self.restore_all(&spec, run)?;
        let was_on = self.history().stopping().is_some_and(|(_, was_on)| was_on);
        self.give_back(&spec, was_on, run)?;
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn cancel(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        self.thaw_all(&spec, run)?;
        // What was kept for a target before is somebody else's.
        if self.history().has_staged() {
            self.restore_all(&spec, run)?;
        }
        if let Some((_, was_on)) = self.history().stopping() {
            self.give_back(&spec, was_on, run)?;
        }
        self.drop_maps(&spec, run);
        Ok(Went::On(Outcome::Done, None))
    }

    fn restore_all(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        for disk in &spec.disks {
            let said = self.once(format!("restore:{}", disk.id), |_| restore(disk, run))?;
            if let Some(said) = said.filter(|said| said.starts_with(KEPT)) {
                run.observer.event(&Event::Warning {
                    message: format!("disk `{}`: {said}", disk.id),
                });
            }
        }
        Ok(())
    }

    /// Puts the source in charge, and starts it if it ran before.
    pub(super) fn give_back(&mut self, spec: &JobSpec, was_on: bool, run: &Run<'_>) -> Result<()> {
        let side = spec.side_of_source();
        let step = run.step(&spec.name, "start-source");
        let epoch = self.begin_epoch(Some(side), &step)?;
        if !was_on {
            return Ok(());
        }
        let host = self.sides.source.clone();
        let probe = spec.source.probe.as_ref();
        self.start_machine((side, epoch), host.machine(), probe, &step)
    }

    /// Does it unless it is noted as done. What was said, the first time.
    fn once(
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
    match standing.map(|standing| standing.word) {
        None | Some(Word::Aborted | Word::OldRestored | Word::Done) => {
            Ok("as before the job".to_owned())
        }
        Some(_) => match operation::roll_back(&disk.target, None, run.cancel) {
            Ok(_) => Ok("as before the job".to_owned()),
            // A guest wrote to it: with the old blocks back it would be neither disk. It stays what
            // it is, and is nobody's to start.
            Err(error) if error.kind() == ErrorKind::Refused => {
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

/// Begins what is said of a target that could not be brought back.
const KEPT: &str = "kept as it is";
