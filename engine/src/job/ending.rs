//! The ends of a job: accepted, undone, given up. What is done with is noted, not touched again.

use std::path::Path;
use std::time::Duration;

use super::cutover::is_new;
use super::history::STOP_TARGET;
use super::journal::Fact;
use super::phase::Outcome;
use super::run::{Job, Run, Went, failed, left_ms};
use super::spec::{DiskSpec, JobSpec};
use super::unchanged::{Look, UNKNOWN};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::event::Event;
use crate::machine::{Machine, Power, await_power};
use crate::operation::{self, accept_for, roll_back_for};
use crate::state::Word;
use crate::step::Step;

impl Job {
    pub(super) fn release(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "delete-source");
        let has_begun = |disk: &DiskSpec| self.history().is_item_done(&accepted_item(&disk.id));
        // As long as nothing was let go of an undo is as good as before.
        if !spec.disks.iter().any(has_begun)
            && let Err(error) = self.refuse_unacceptable(&spec, &step)
        {
            if error.kind() == ErrorKind::Cancelled {
                return Err(error);
            }
            let fact = failed(run.observer, (error.kind(), false), error.chain());
            return Ok(Went::On(Outcome::TakenBack, Some(fact)));
        }
        for disk in &spec.disks {
            self.once(accepted_item(&disk.id), |job| accept(disk, &job.directory))?;
        }
        let leaves = self.history().leaves_the_rest();
        self.let_go(
            &|error| leaves || error.kind() != ErrorKind::PeerGone,
            &spec,
            run,
        )?;
        let spared = self.why_spared(&spec, leaves, run)?;
        if !spec.policy.delete_source_disks {
            self.keep_base_maps(&spec, run);
        }
        self.delete_source(&spec, (spared.as_deref(), leaves), run)?;
        self.drop_maps(&spec, run);
        self.disown(&spec)?;
        Ok(Went::On(Outcome::Done, None))
    }

    fn delete_source(
        &mut self,
        spec: &JobSpec,
        (spared, leaves): (Option<&str>, bool),
        run: &Run<'_>,
    ) -> Result<()> {
        let step = run.step(&spec.name, "delete-source");
        let host = self.sides.source.clone();
        let unless_spared = |why: Option<String>, delete: &dyn Fn() -> Result<()>| match spared
            .map(str::to_owned)
            .or(why)
        {
            Some(why) => Ok(format!("not deleted: {why}")),
            None => deleted(delete(), leaves),
        };
        if spec.policy.delete_source_machine {
            self.once(DELETE_SOURCE.to_owned(), |job| {
                let mut disks = spec.disks.iter();
                let why = disks.find_map(|disk| job.changed_since_looked_at(disk, &step));
                unless_spared(why, &|| host.machine().delete(&step))
            })?;
        }
        if spec.policy.delete_source_disks {
            let is_gone = self.has_deleted_source();
            for disk in &spec.disks {
                self.once(format!("delete-disk:{}", disk.id), |job| {
                    // Nobody starts what is deleted.
                    let looks = (!is_gone).then(|| job.changed_since_looked_at(disk, &step));
                    unless_spared(looks.flatten(), &|| host.delete_disk(disk, is_gone, &step))
                })?;
            }
        }
        Ok(())
    }

    /// Days may lie between the look and the deletion, where that failed at first. A disk that
    /// cannot be found may be one that was deleted, and the note of it lost.
    fn changed_since_looked_at(&self, disk: &DiskSpec, step: &Step<'_>) -> Option<String> {
        match self.marked_anew(disk, step) {
            Ok(None) => None,
            Ok(Some(_)) => Some(format!(
                "disk `{}` was changed since it was looked at",
                disk.id
            )),
            Err(error) if matches!(error.kind(), ErrorKind::InUse | ErrorKind::Refused) => {
                Some(format!("disk `{}`: {}", disk.id, error.chain()))
            }
            Err(_) => None,
        }
    }

    /// Refuses a commit that has no good end: looked at before anything is let go of.
    fn refuse_unacceptable(&self, spec: &JobSpec, step: &Step<'_>) -> Result<()> {
        // One that cannot be asked any more is on its way out.
        if matches!(self.sides.source.machine().power(step), Ok(Power::On)) {
            let message =
                "somebody started the source's machine, and both run: stop it, and resume";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        for disk in &spec.disks {
            let is_done = self.history().is_item_done(&accepted_item(&disk.id));
            let standing = operation::standing(&disk.target, None)?;
            let found = standing.map(|it| it.word);
            let is_right = is_done
                || match found {
                    // Done, and a crash kept the note of it away.
                    Some(Word::Done) => true,
                    Some(word) => is_new(word, spec),
                    None => false,
                };
            if !is_right {
                let word = found.map_or("unknown", |word| word.name());
                let message = format!(
                    "disk `{}` is not the new disk any more, or what is known of it is gone: its \
                     state is {word}",
                    disk.id
                );
                return Err(Error::new(ErrorKind::Refused, message).path(&disk.target));
            }
        }
        Ok(())
    }

    /// Looks once, before anything of the source is deleted, whether its disks are what was copied:
    /// what nobody else has is nobody's to delete. Why the source stays, if it does.
    fn why_spared(
        &mut self,
        spec: &JobSpec,
        leaves: bool,
        run: &Run<'_>,
    ) -> Result<Option<String>> {
        let policy = &spec.policy;
        if !policy.delete_source_machine && !policy.delete_source_disks {
            return Ok(None);
        }
        let mut spared = None;
        for disk in &spec.disks {
            let item = look_item(&disk.id);
            self.once(item.clone(), |job| {
                match job.look_at_source(spec, disk, run) {
                    Ok(Look::Same) => Ok(AS_COPIED.to_owned()),
                    Ok(Look::Changed) => Ok("was written to since it was copied".to_owned()),
                    Ok(Look::Unknown) => Ok(UNKNOWN.to_owned()),
                    // It can be asked again.
                    Err(error)
                        if error.kind() == ErrorKind::Cancelled
                            || error.kind() == ErrorKind::PeerGone && !leaves =>
                    {
                        Err(error)
                    }
                    Err(error) => Ok(format!("cannot be looked at: {}", error.chain())),
                }
            })?;
            let said = self.history().said_of(&item).unwrap_or_default();
            if said != AS_COPIED && spared.is_none() {
                let why = format!("disk `{}` {said}", disk.id);
                run.observer.event(&Event::Warning {
                    message: format!("nothing of the source is deleted: {why}"),
                });
                spared = Some(why);
            }
        }
        Ok(spared)
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
        // Who was never put in charge was never started, and need not be there to be asked.
        let may_run = self.history().handed_over().is_some();
        let is_overtaken = self.overtaken(&step)?.is_some();
        if is_overtaken {
            // A machine that another job moved on is not this one's to stop, nor to start.
            refuse_running(machine.as_ref(), &step)?;
        } else {
            if may_run {
                // Each time: somebody may have started it since.
                let said = stop(machine.as_ref(), &spec, &step)?;
                self.once(STOP_TARGET.to_owned(), |_| Ok(said))?;
            }
            self.give_back(&spec, run)?;
        }
        self.note_lost(&spec, run)?;
        self.restore_all(&spec, run)?;
        let may_stay = |error: &Error| is_overtaken && error.kind() == ErrorKind::Refused;
        self.let_go(&may_stay, &spec, run)?;
        self.drop_maps(&spec, run);
        self.disown(&spec)?;
        Ok(Went::On(Outcome::Done, None))
    }

    /// Lets the snapshots go, but for those that `may_stay`: of a machine that
    /// another job has now, or that is accepted. They are no reason for this one never to end.
    fn let_go(
        &mut self,
        may_stay: &dyn Fn(&Error) -> bool,
        spec: &JobSpec,
        run: &Run<'_>,
    ) -> Result<()> {
        let frozen = self.history().frozen();
        for pass in frozen {
            match self.thaw(spec, pass, run) {
                Err(error) if error.kind() != ErrorKind::Cancelled && may_stay(&error) => {
                    run.observer.event(&Event::Warning {
                        message: format!(
                            "snapshots of pass {pass} may stay at the source: {}",
                            error.chain()
                        ),
                    });
                    self.journal.note(Fact::Released { pass })?;
                }
                thawed => thawed?,
            }
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "cancel");
        // Where nothing was done to the source yet nobody has to be asked.
        let has_touched = self.history().has_stopped() || !self.history().frozen().is_empty();
        let is_overtaken = has_touched && self.overtaken(&step)?.is_some();
        if self.history().has_stopped() && !is_overtaken {
            self.give_back(&spec, run)?;
        }
        // What was kept for a target before is somebody else's.
        if self.history().has_staged() {
            self.restore_all(&spec, run)?;
        }
        let may_stay = |error: &Error| is_overtaken && error.kind() == ErrorKind::Refused;
        self.let_go(&may_stay, &spec, run)?;
        self.drop_maps(&spec, run);
        self.disown(&spec)?;
        Ok(Went::On(Outcome::Done, None))
    }

    /// Lets the targets go: from here on they are anybody's.
    fn disown(&self, spec: &JobSpec) -> Result<()> {
        let owner = self.owner();
        owner.close(&self.folder)?;
        for disk in &spec.disks {
            // It counts for nothing any more.
            if let Err(error) = owner.let_go(&disk.target) {
                tracing::info!(error = error.chain(), "a marker stays at a target");
            }
        }
        Ok(())
    }

    fn restore_all(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        for disk in &spec.disks {
            let history = self.history();
            let was_applied = history.applied(&disk.id).is_some();
            let was_moved = history.sealed(&disk.id).is_some() || !history.passes().is_empty();
            let made = (was_moved, was_applied);
            let said = self.once(restored_item(&disk.id), |job| {
                restore((disk, made), &job.directory, run)
            })?;
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
fn deleted(done: Result<()>, leaves: bool) -> Result<String> {
    match done {
        Ok(()) => Ok(DELETED.to_owned()),
        // It will not be another time either, or need not be, and the target is accepted.
        Err(error)
            if error.kind() == ErrorKind::Unsupported
                || leaves && error.kind() != ErrorKind::Cancelled =>
        {
            Ok(format!("not deleted: {}", error.chain()))
        }
        Err(error) => Err(error),
    }
}

fn accept(disk: &DiskSpec, owner: &Path) -> Result<String> {
    let standing = operation::standing(&disk.target, None)?;
    match standing.map(|standing| standing.word) {
        // Done, and a crash kept the note of it away.
        None | Some(Word::Done) => Ok("accepted".to_owned()),
        // Looked at before the first of them was: since then somebody had a hand in it.
        Some(word @ (Word::Aborted | Word::OldRestored)) => {
            Ok(format!("not accepted: its state is {}", word.name()))
        }
        Some(_) => accept_for((&disk.target, None), Some(owner)).map(|_| "accepted".to_owned()),
    }
}

/// Brings the old disk back, from whatever the job made of it.
fn restore(
    (disk, (was_moved, was_applied)): (&DiskSpec, (bool, bool)),
    owner: &Path,
    run: &Run<'_>,
) -> Result<String> {
    let standing = operation::standing(&disk.target, None)?;
    let word = standing.map(|standing| standing.word);
    match word {
        Some(Word::Aborted | Word::OldRestored) => Ok(RESTORED.to_owned()),
        None if !was_moved => Ok(RESTORED.to_owned()),
        None if !disk.target.exists() => {
            let message = "is not there, nor what is kept of it: is its file system mounted?";
            Err(Error::new(ErrorKind::Refused, message).path(&disk.target))
        }
        None if !was_applied => Ok(RESTORED.to_owned()),
        // Of a sync before this job.
        Some(Word::Done) if !was_moved => Ok(RESTORED.to_owned()),
        // Not by this job.
        None => Ok(format!("{KEPT}: what is known of it is gone")),
        Some(Word::Done) => Ok(format!(
            "{KEPT}: somebody made or accepted a new disk there"
        )),
        Some(_) => match roll_back_for((&disk.target, None), Some(owner), run.cancel) {
            Ok(_) => Ok(RESTORED.to_owned()),
            // Its guest, or somebody, wrote to it: with the old blocks back it would be neither
            // disk. It stays what it is, and is nobody's to start. All else can be mended.
            Err(error) if error.remedy() == Some(Remedy::AcceptNew) => {
                Ok(format!("{KEPT}: {}", error.chain()))
            }
            Err(error) => Err(error),
        },
    }
}

fn stop(machine: &dyn Machine, spec: &JobSpec, step: &Step<'_>) -> Result<String> {
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

/// The item of accepting a target.
fn accepted_item(disk: &str) -> String {
    format!("accept:{disk}")
}

/// The item of looking at a disk of the source before it is deleted.
fn look_item(disk: &str) -> String {
    format!("look:{disk}")
}

/// The item of bringing a target back.
pub(super) fn restored_item(disk: &str) -> String {
    format!("restore:{disk}")
}

/// Refuses while the machine is on.
fn refuse_running(machine: &dyn Machine, step: &Step<'_>) -> Result<()> {
    match machine.power(step)? {
        Power::Off => Ok(()),
        Power::On => {
            let message = "another job has the pair now, and the target's machine is on: who \
                           started it stops it; then resume";
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// What is said of a disk of the source that nobody wrote to.
const AS_COPIED: &str = "is what was copied";
/// The item of deleting the source's machine.
const DELETE_SOURCE: &str = "delete:source";
/// What is said of what was deleted.
const DELETED: &str = "deleted";
/// What is said of a target that was brought back.
pub(super) const RESTORED: &str = "as before the job";
/// Begins what is said of a target that could not be brought back.
pub(super) const KEPT: &str = "kept as it is";
