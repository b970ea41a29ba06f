//! The end of a job from its journal and stage alone: nobody else is there any more.

use std::fmt::Debug;
use std::sync::Arc;

use failback_transport::{Apply, Compress, Task, VerifyLevel};

use super::exchange::{Exchange, is_placed};
use super::finish::{Direction, Finisher, Job, Outcome, check_seal, is_old_as_staged};
use crate::abort::{Abort, CancelToken};
use crate::disk::{Layers, NewFile, Target, TargetAccess};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::hash::HashKind;
use crate::stage::StageLog;
use crate::state::{
    Barrier, Barriers, Begun, Container, Entry, FileMark, Folder, Journal, STAGE_NAME, Word,
    remove_needless,
};
use crate::sync::{Session, SessionOptions, Until};
use crate::units::BlockSize;

/// How the target of a job is found again.
pub trait Reopen: Debug {
    /// The target, if it is the file of this id, open for reading only and locked.
    ///
    /// # Errors
    /// `Refused` for another file, as [`TargetAccess`].
    fn access(&self, begun: &Begun, file_id: &str) -> Result<Box<dyn TargetAccess>>;

    /// The same, open for writing; what the system has of it in memory is not to be believed.
    ///
    /// # Errors
    /// As [`Reopen::access`].
    fn target(&self, begun: &Begun) -> Result<Arc<dyn Target>>;

    /// The place beside the target.
    ///
    /// # Errors
    /// `Io`.
    fn new_file(&self, begun: &Begun) -> Result<Box<dyn NewFile>>;

    /// The target, if it is the file of the job, open for reading only and locked, and what stands
    /// on it; what the system has of it in memory is not believed.
    ///
    /// # Errors
    /// As [`Reopen::access`]; `Damaged` for a target that has no child.
    fn layers(&self, begun: &Begun) -> Result<(Box<dyn TargetAccess>, Box<dyn Layers>)>;
}

/// A job whose process is gone.
#[derive(Debug)]
pub struct Unfinished<'a> {
    /// Where its journal and its stage are.
    pub folder: &'a dyn Folder,
    /// Its target.
    pub reopen: &'a dyn Reopen,
    /// All of them, but in tests.
    pub barriers: Barriers,
}

impl Unfinished<'_> {
    /// Brings to its end what can be without the source: applies a complete stage, reads it back,
    /// or finishes a roll-back. The state afterwards.
    ///
    /// # Errors
    /// `Refused` when the target is not the one the state is about, or was changed; `InUse`,
    /// `Damaged`, `VerifyFailed`, `NoSpace`, `Io`, `Cancelled`.
    pub fn finish(&self, journal: Journal, cancel: &CancelToken) -> Result<(Word, Outcome)> {
        if journal.begun().container.replaces() {
            return self.finish_replaced(journal, cancel);
        }
        if journal.begun().container == Container::Child {
            return self.finish_merged(journal, cancel);
        }
        let word = journal.word();
        match word {
            // A roll-back may have begun in what does not check: looked at again.
            Word::NewVerified if journal.has_broken_end() => {}
            _ if journal.waits_to_be_accepted() => return Ok((word, Outcome::default())),
            // It was to be accepted at once.
            Word::NewVerified if !journal.begun().keeps_undo => return self.accept(journal),
            Word::Staging | Word::NewVerified => return Ok((word, Outcome::default())),
            Word::Done | Word::Aborted | Word::OldRestored => {
                // What the last word made needless may still be there.
                self.remove_stage()?;
                return Ok((word, Outcome::default()));
            }
            Word::Committing if journal.begun().in_place => {
                let message = "was written in place, and the sync did not end: only the same sync \
                               can complete it";
                return Err(Error::new(ErrorKind::Refused, message));
            }
            Word::Staged | Word::Committing | Word::NewUnverified | Word::RollingBack => {}
        }
        let (job, session) = self.job(journal)?;
        let abort = Abort::with_cancel(cancel);
        let finisher = self.finisher(&session, &abort);
        let outcome = match word {
            Word::Staged => {
                let access = self.untouched_target(&job, &session)?;
                finisher.check_on_medium(&job.stage)?;
                finisher.check_room(access.as_ref(), &job.stage)?;
                // Nothing was written yet: damage found later would leave neither disk.
                finisher.check_on_medium(&job.stage)?;
                finisher.go_on(access.as_ref(), &job)
            }
            Word::Committing => {
                let target = self.target(&job)?;
                finisher.refuse_foreign(target.as_ref(), &job, Direction::New)?;
                finisher.apply(target.as_ref(), &job)
            }
            Word::NewUnverified | Word::NewVerified => {
                finisher.prove(self.target(&job)?.as_ref(), &job)
            }
            _ => finisher.roll_back(self.target(&job)?.as_ref(), &job),
        }?;
        let word = job.journal().word();
        Ok((word, outcome))
    }

    /// Brings the old disk back: drops the stage, or undoes what was applied.
    ///
    /// # Errors
    /// As [`Unfinished::finish`]; `Refused` when there is nothing to undo, or nothing to undo it
    /// with.
    pub fn roll_back(&self, journal: Journal, cancel: &CancelToken) -> Result<(Word, Outcome)> {
        let mut journal = journal;
        let is_replaced = journal.begun().container.replaces();
        match journal.word() {
            word @ (Word::Done | Word::Aborted | Word::OldRestored) => {
                let message = format!("nothing to undo: the state is {}", word.name());
                Err(Error::new(ErrorKind::Refused, message))
            }
            _ if is_replaced => self.roll_back_replaced(journal, cancel),
            _ if journal.begun().container == Container::Child => {
                self.roll_back_merged(journal, cancel)
            }
            Word::Staging | Word::Staged => {
                self.refuse_lost_commit(&journal)?;
                journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
                self.remove_stage()?;
                Ok((Word::Aborted, Outcome::default()))
            }
            _ if !journal.begun().has_undo => {
                let message = "was written without an undo: the old disk is gone";
                Err(Error::new(ErrorKind::Refused, message).remedy_is(Remedy::AcceptNew))
            }
            _ => {
                let (job, session) = self.job(journal)?;
                let abort = Abort::with_cancel(cancel);
                let target = self.target(&job)?;
                let finisher = self.finisher(&session, &abort);
                let outcome = finisher.roll_back(target.as_ref(), &job)?;
                Ok((Word::OldRestored, outcome))
            }
        }
    }

    /// The target is only looked at where the journal leaves a doubt: it may be in use.
    fn refuse_lost_commit(&self, journal: &Journal) -> Result<()> {
        let is_doubtful = journal.word() == Word::Staged && journal.has_broken_end();
        let is_lost = is_doubtful && {
            let access = self
                .reopen
                .access(journal.begun(), &journal.begun().file_id)?;
            journal.may_have_lost_commit(&access.identity()?)
        };
        match is_lost {
            false => Ok(()),
            true => {
                let message = "journal is damaged: its last entry does not check, and the target \
                               was changed since the one before; the same sync makes it new";
                Err(Error::new(ErrorKind::Damaged, message))
            }
        }
    }

    /// Accepts the new disk: what an undo would need goes.
    ///
    /// # Errors
    /// `Refused` unless the new disk is proven, or was not to be; `Io`.
    pub fn accept(&self, journal: Journal) -> Result<(Word, Outcome)> {
        let mut journal = journal;
        if journal.word() != Word::NewVerified && !journal.waits_to_be_accepted() {
            let message = format!(
                "only a complete new disk can be accepted; the state is {}",
                journal.word().name()
            );
            return Err(Error::new(ErrorKind::Refused, message));
        }
        if journal.has_broken_end() {
            let message = "journal is damaged: its last entry does not check; recover looks at \
                           the target once more";
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        if journal.begun().container.replaces() {
            let new_file = self.reopen.new_file(journal.begun())?;
            let abort = Abort::new();
            self.exchange(new_file.as_ref(), &abort)
                .accept(&mut journal)?;
            return Ok((Word::Done, Outcome::default()));
        }
        journal.append(Entry::of(Word::Done), Barrier::Done)?;
        remove_needless(self.folder)?;
        Ok((Word::Done, Outcome::default()))
    }

    /// As [`Unfinished::finish`], where a new file takes the target's place.
    fn finish_replaced(
        &self,
        mut journal: Journal,
        cancel: &CancelToken,
    ) -> Result<(Word, Outcome)> {
        let abort = Abort::with_cancel(cancel);
        let new_file = self.reopen.new_file(journal.begun())?;
        let exchange = self.exchange(new_file.as_ref(), &abort);
        match journal.word() {
            Word::Staging => {}
            _ if journal.waits_to_be_accepted() => {}
            Word::NewVerified => exchange.accept(&mut journal)?,
            Word::Done | Word::Aborted | Word::OldRestored => exchange.remove_needless()?,
            Word::RollingBack => {
                let _held = self.hold(&journal, new_file.as_ref())?;
                exchange.roll_back(&mut journal)?;
            }
            word => {
                let _held = self.hold(&journal, new_file.as_ref())?;
                match word {
                    Word::Staged => exchange.go_on(&mut journal)?,
                    _ => exchange.place(&mut journal)?,
                }
            }
        }
        Ok((journal.word(), Outcome::default()))
    }

    fn roll_back_replaced(
        &self,
        mut journal: Journal,
        cancel: &CancelToken,
    ) -> Result<(Word, Outcome)> {
        let abort = Abort::with_cancel(cancel);
        let new_file = self.reopen.new_file(journal.begun())?;
        let exchange = self.exchange(new_file.as_ref(), &abort);
        // A COMMIT that has rotted since left the new file in place.
        let is_placed = is_placed(new_file.as_ref(), &journal)?;
        match journal.word() {
            Word::Staging | Word::Staged if !is_placed => exchange.abandon(&mut journal)?,
            _ => {
                let _held = self.hold(&journal, new_file.as_ref())?;
                exchange.roll_back(&mut journal)?;
            }
        }
        Ok((journal.word(), Outcome::default()))
    }

    /// Locks both files, as far as they are there: neither is in use.
    fn hold(&self, journal: &Journal, new_file: &dyn NewFile) -> Result<Held> {
        let standing = new_file.standing()?;
        let made = journal.made();
        let known = |file: &FileMark| {
            made.is_some_and(|made| {
                let ids = [Some(&made.new), made.old.as_ref()];
                ids.into_iter().flatten().any(|known| known.id == file.id)
            })
        };
        Ok(Held {
            _target: match standing.target.filter(known) {
                Some(file) => Some(self.reopen.access(journal.begun(), &file.id)?),
                None => None,
            },
            _beside: match standing.beside.filter(known) {
                Some(_) => new_file.open()?,
                None => None,
            },
        })
    }

    fn exchange<'b>(&'b self, new_file: &'b dyn NewFile, abort: &'b Abort) -> Exchange<'b> {
        Exchange {
            folder: self.folder,
            new_file,
            barriers: self.barriers,
            abort,
        }
    }

    fn remove_stage(&self) -> Result<()> {
        remove_needless(self.folder)
    }

    fn finisher<'b>(&'b self, session: &'b Session, abort: &'b Abort) -> Finisher<'b> {
        Finisher {
            folder: self.folder,
            barriers: self.barriers,
            session,
            abort,
        }
    }

    /// Journal and stage, found sound, and the session as it was.
    fn job(&self, journal: Journal) -> Result<(Job, Session)> {
        let session = session_of(journal.begun())?;
        let file = self
            .folder
            .open(STAGE_NAME)
            .map_err(|e| Error::io(e, "open stage"))?;
        let file = file.ok_or_else(|| {
            let message = "the stage is gone; its journal says that it is needed";
            Error::new(ErrorKind::Damaged, message)
        })?;
        let sealed = journal.sealed().ok_or_else(|| {
            let message = "journal is damaged: COMMIT without a seal";
            Error::new(ErrorKind::Damaged, message)
        })?;
        let stage = StageLog::open(
            file,
            journal.job(),
            session.geometry,
            self.barriers,
            Some(sealed.stage_len),
        )?;
        check_seal(sealed, &stage)?;
        Ok((Job::new(journal, stage), session))
    }

    /// A target that nothing was written to, if that is what it is.
    fn untouched_target(&self, job: &Job, session: &Session) -> Result<Box<dyn TargetAccess>> {
        let begun = job.journal().begun().clone();
        let access = self.reopen.access(&begun, &begun.file_id)?;
        let is_same = access.identity()? == begun.identity
            && is_old_as_staged(
                &job.stage,
                access.source(),
                &session.hasher,
                session.geometry,
            )?;
        match is_same {
            true => Ok(access),
            false => {
                let message = "was changed since it was staged for; nothing was written to it";
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }

    fn target(&self, job: &Job) -> Result<Arc<dyn Target>> {
        let begun = job.journal().begun().clone();
        self.reopen.target(&begun)
    }
}

/// Both files of a job, locked.
struct Held {
    _target: Option<Box<dyn TargetAccess>>,
    _beside: Option<Arc<dyn Target>>,
}

pub(super) fn session_of(begun: &Begun) -> Result<Session> {
    let damaged = || Error::new(ErrorKind::Damaged, "journal is damaged: unknown words");
    let options = SessionOptions {
        task: Task::Delta,
        hash: match begun.hash.as_str() {
            "blake3" => HashKind::Blake3,
            "xxh3" => HashKind::Xxh3,
            _ => return Err(damaged()),
        },
        block_size: BlockSize::new(begun.block_size.into())?,
        verify: match begun.verify.as_str() {
            "full" => VerifyLevel::Full,
            "changed" => VerifyLevel::Changed,
            "off" => VerifyLevel::Off,
            _ => return Err(damaged()),
        },
        compress: Compress::Off,
        sub_hash_seed: 0,
        apply: Apply::Stage,
        container: None,
        goes_on: false,
        until: Until::End,
        source_mark: 0,
        target_root: None,
        may_send_whole: false,
    };
    Session::new(options, begun.disk_len)
}
