//! From the source that runs to the target that runs.

use std::time::Duration;

use super::journal::{Fact, now_ms};
use super::moving::{Watch, move_all};
use super::phase::{Ask, Outcome, Way};
use super::preflight::{examine_again, refuse_broken};
use super::run::{Job, Run, Went, failed, left_ms};
use super::spec::{JobSpec, Verify};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::machine::{Machine, Power, await_power};
use crate::operation::{self, Standing, recover_for};
use crate::schedule::now;
use crate::state::Word;
use crate::step::Step;
use crate::sync::Until;

impl Job {
    pub(super) fn stop_source(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "stop-source");
        let host = self.sides.source.clone();
        let machine = host.machine();
        if self.history().stopping().is_none() {
            // Weeks may lie between the preflight and now, and from now on each minute counts.
            refuse_broken(&examine_again(&spec, &self.sides, &step)?)?;
            let is_on = machine.power(&step)? == Power::On;
            // One that went off by itself after it was given back is no machine that was off.
            let was_on = is_on || self.history().was_on();
            self.journal.note(Fact::Stopping { was_on })?;
        }
        // From here on nobody starts it but this job, so whatever fails, it does.
        self.begin_epoch(None, &step)?;
        let stopped = self.stop_and_prove(&spec, machine, &step);
        stopped.or_else(|error| self.restart_source(error, run))
    }

    fn stop_and_prove(
        &mut self,
        spec: &JobSpec,
        machine: &dyn Machine,
        step: &Step<'_>,
    ) -> Result<Went> {
        let mut forced = false;
        if machine.power(step)? == Power::On {
            let (power, why) = shut_down(machine, spec.policy.stop_timeout, step)?;
            forced = power == Power::On && spec.policy.force_stop;
            if forced {
                machine.power_off(step)?;
            } else if power == Power::On {
                return Err(why.unwrap_or_else(|| not_shut_down(spec.policy.stop_timeout)));
            }
        }
        if machine.power(step)? == Power::On {
            let message = "the source's machine still has power";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        self.journal.note(Fact::Stopped { forced })?;
        self.prove_quiet(spec, step)
    }

    /// That the machine has let go of its disks.
    fn prove_quiet(&mut self, spec: &JobSpec, step: &Step<'_>) -> Result<Went> {
        let host = self.sides.source.clone();
        for disk in &spec.disks {
            let identity = host.prove_quiet(disk, step)?;
            self.journal.note(Fact::Quiet {
                disk: disk.id.clone(),
                identity,
            })?;
        }
        let way = self.history().way().unwrap_or(Way::Full);
        Ok(Went::On(Outcome::Go(way), None))
    }

    pub(super) fn copy_stopped(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "final");
        let host = self.sides.source.clone();
        if host.machine().power(&step)? == Power::On {
            let message =
                "somebody started the source's machine: cancel the job, and begin it again";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let way = self.history().way().unwrap_or(Way::Full);
        let from: Result<Vec<_>> = spec.disks.iter().map(|disk| spec.source_of(disk)).collect();
        let legs = self.legs(&spec, from?, (way, Until::Sealed), run)?;
        // Since the source was asked to stop, and what still comes after the copy.
        let since = self.history().stopping();
        let before = since.map(|at| Duration::from_millis(now_ms().saturating_sub(at)));
        let times = self.fence.times();
        let downtime = |seconds| {
            let start = times
                .start
                .unwrap_or(spec.policy.expected_start.as_secs_f64());
            Some(before?.as_secs_f64() + seconds + start)
        };
        let watch = Watch {
            phase: match way {
                Way::Full => "full_download",
                Way::Delta => "final_delta",
            },
            downtime: &downtime,
            observer: run.observer,
        };
        for moved in move_all(&spec, &legs, &watch, run.cancel)? {
            self.journal.note(Fact::Final { moved })?;
        }
        Ok(Went::On(Outcome::Done, None))
    }

    /// What fails between the stop and COMMIT is no reason for a machine to be off: the source is
    /// given back, and the job waits to be told that it may try again. Not where somebody wants
    /// something else, nor where the source cannot be reached: then it is tried again from here.
    pub(super) fn restart_source(&mut self, error: Error, run: &Run<'_>) -> Result<Went> {
        if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::PeerGone) {
            return Err(error);
        }
        let spec = self.spec();
        if let Err(second) = self.give_back(&spec, run) {
            if second.kind() == ErrorKind::Cancelled {
                return Err(second);
            }
            let message = format!(
                "the source is not started again: {}; it was to be because of this: {}",
                second.chain(),
                error.chain()
            );
            return Err(Error::new(second.kind(), message));
        }
        let message = format!("{}; the source is in charge again", error.chain());
        // Each try stops the machine: somebody has to want that.
        let fact = failed(run.observer, (error.kind(), false), message);
        Ok(Went::On(Outcome::GivenBack, Some(fact)))
    }

    /// Gives the source back where that failed half way.
    pub(super) fn go_on_giving_back(&mut self, run: &Run<'_>) -> Result<Went> {
        let message = "what went before failed, and so did starting the source again";
        self.restart_source(Error::new(ErrorKind::Refused, message), run)
    }

    /// The last look before COMMIT: the record that follows is COMMIT for all disks.
    pub(super) fn seal(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "seal");
        if self.sides.target.power(&step)? == Power::On {
            let message = "somebody started the target's machine: it runs on what is replaced";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        for disk in &spec.disks {
            let standing = operation::standing(&disk.target, None)?;
            let is_sealed = standing.as_ref().is_some_and(|it| it.word == Word::Staged);
            let sealed = self.history().sealed(&disk.id);
            let is_same = match (&standing, sealed) {
                (Some(standing), Some(moved)) => standing.new_root == moved.root,
                _ => false,
            };
            if !is_sealed || !is_same {
                let found = standing.map_or("nothing", |standing| standing.word.name());
                let message = format!("disk `{}` is not sealed as it was sent ({found})", disk.id);
                return Err(Error::new(ErrorKind::Refused, message).path(&disk.target));
            }
        }
        let epoch = self.history().epoch().map(|(epoch, _)| epoch);
        if epoch != Some(self.fence.number()) {
            let message = "another job has taken the pair over";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        // That of the copy as well. A file that was touched costs no more than to begin again: to
        // read all of it here would cost the downtime.
        for disk in &spec.disks {
            if self.marked_anew(disk, &step)?.is_some() {
                let message = format!(
                    "disk `{}` was changed after its machine was stopped: somebody else writes \
                     to it",
                    disk.id
                );
                return Err(Error::new(ErrorKind::Refused, message));
            }
        }
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn apply(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let owner = Some(self.directory.as_path());
        let done: Result<Vec<()>> = std::thread::scope(|scope| {
            let running: Vec<_> = spec
                .disks
                .iter()
                .map(|disk| {
                    scope.spawn(|| {
                        // Only what this job sealed: the word says how far each is.
                        let standing = operation::standing(&disk.target, None)?;
                        let is_there = standing.is_some_and(|it| is_new(it.word, &spec));
                        match is_there {
                            true => Ok(()),
                            false => recover_for((&disk.target, None), owner, run.cancel).map(drop),
                        }
                    })
                })
                .collect();
            let joined = running.into_iter();
            joined
                .map(|disk| disk.join().expect("errors are values here"))
                .collect()
        });
        done?;
        for disk in &spec.disks {
            let standing = operation::standing(&disk.target, None)?;
            let open = disk.open(disk.target_format.as_deref())?;
            self.journal.note(Fact::Applied {
                disk: disk.id.clone(),
                word: standing.map_or("none", |it| it.word.name()).to_owned(),
                identity: Some(operation::state_of(&disk.target, &open)?),
            })?;
        }
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn verify(&mut self) -> Result<Went> {
        let spec = self.spec();
        for disk in &spec.disks {
            self.refuse_unproven(&spec, &disk.id, operation::standing(&disk.target, None)?)?;
        }
        Ok(Went::On(Outcome::Done, None))
    }

    /// Never start a mixed disk.
    fn refuse_unproven(&self, spec: &JobSpec, disk: &str, found: Option<Standing>) -> Result<()> {
        let sent = self
            .history()
            .sealed(disk)
            .and_then(|moved| moved.root.clone());
        let is_right = found
            .as_ref()
            .is_some_and(|found| is_new(found.word, spec) && found.new_root == sent);
        match is_right {
            true => Ok(()),
            false => {
                let word = found.map_or("none", |found| found.word.name());
                let message = format!("disk `{disk}` is not the new disk, proven: it is {word}");
                Err(Error::new(ErrorKind::VerifyFailed, message))
            }
        }
    }

    pub(super) fn start_target(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "start-target");
        for disk in &spec.disks {
            self.refuse_unproven(&spec, &disk.id, operation::standing(&disk.target, None)?)?;
        }
        let side = spec.side_of_target();
        let machine = self.sides.target.clone();
        let is_begun = matches!(self.history().epoch(), Some((_, of)) if of == Some(side));
        if is_begun {
            // A crash may have been between the record and the fences, which are asked next.
            self.begin_epoch(Some(side), &step)?;
        } else if machine.power(&step)? == Power::On {
            let message = "somebody else started the target's machine, on what was there before";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        if self.sides.source.machine().power(&step)? == Power::On {
            let message = "somebody started the source's machine, and the target does not have \
                           what it writes: undo, or stop it, and resume where it wrote nothing";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        // Days may lie between, and somebody may have looked at a disk by more than looking; or he
        // ran the source meanwhile, as the target did not start.
        if !is_begun {
            self.refuse_changed_target(&spec, run)?;
        }
        if self.history().target_started().is_none() {
            self.refuse_changed_source(&spec, run)?;
        }
        let epoch = self.begin_epoch(Some(side), &step)?;
        let probe = spec.target.probe.as_ref();
        self.start_machine((side, epoch), machine.as_ref(), probe, &step)?;
        // Better forecasts of the next one, and no more: what cannot be kept is not missed now.
        if let Err(error) = self.fence.learn(self.history().times()) {
            run.observer.event(&Event::Warning {
                message: error.chain(),
            });
        }
        if let Some(seconds) = self.history().downtime() {
            run.observer.event(&Event::Downtime {
                job: spec.name.clone(),
                seconds,
                predicted: self.history().predicted(),
            });
        }
        Ok(Went::On(Outcome::Done, None))
    }

    /// Whether a deadline is still to be noted.
    pub(super) fn wants_deadline(&self) -> bool {
        let policy = &self.history().spec().policy;
        let has_policy = policy.commit_after.is_some() || policy.undo_after.is_some();
        has_policy && !self.history().has_deadline()
    }

    pub(super) fn pend(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        if self.wants_deadline() {
            let policy = &spec.policy;
            let (after, ask) = match (policy.commit_after, policy.undo_after) {
                (Some(after), _) => (after, Ask::Commit),
                (None, after) => (after.unwrap_or_default(), Ask::Undo),
            };
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let from = self.history().target_started().unwrap_or_else(now_ms);
            let at_ms = from.saturating_add(after_ms);
            self.journal.note(Fact::Deadline { at_ms, ask })?;
            // Who watches this step has to know.
            return Ok(Went::Waits);
        }
        if self.is_undo_due() {
            let ask = Ask::Undo;
            return Ok(Went::On(Outcome::Asked(ask), Some(Fact::Asked { ask })));
        }
        while self.read_the_rest(&spec, run)? {}
        match self.history().deadline() {
            Some((at_ms, ask)) if left_ms(at_ms) == 0 => {
                Ok(Went::On(Outcome::Asked(ask), Some(Fact::Asked { ask })))
            }
            _ => Ok(Went::Waits),
        }
    }
}

/// Asks a guest to shut down; the machine's power once it did, or the limit has passed, and what
/// went wrong with asking. That it went wrong is no reason to take the power away sooner: the guest
/// may have been asked all the same.
fn shut_down(
    machine: &dyn Machine,
    limit: Duration,
    step: &Step<'_>,
) -> Result<(Power, Option<Error>)> {
    let from = now();
    match machine.shut_down(step, limit) {
        Ok(power) => Ok((power, None)),
        // Somebody wants something else, or it can be asked again.
        Err(error) if error.kind() == ErrorKind::Cancelled || error.is_transient() => Err(error),
        Err(error) => {
            let rest = limit.saturating_sub(now().saturating_duration_since(from));
            let power = await_power(step, rest, Power::Off, || machine.power(step))?;
            Ok((power, Some(error)))
        }
    }
}

fn not_shut_down(limit: Duration) -> Error {
    let limit = humantime::format_duration(limit);
    let message = format!(
        "the guest did not shut down within {limit}: it was asked to, and may still do so; resume \
         stops it again, cancel sees to it that it runs"
    );
    Error::new(ErrorKind::Refused, message)
}

/// Whether a target in this state is the new disk, proven, unless nothing was to be proven.
pub(super) fn is_new(word: Word, spec: &JobSpec) -> bool {
    match word {
        Word::NewVerified => true,
        Word::NewUnverified => spec.policy.verify == Verify::Off,
        _ => false,
    }
}
