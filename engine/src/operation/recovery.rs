//! `recover`, `rollback`, `commit`: the end of a sync from its state directory alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use failback_transport::{Apply, Compress, Task, VerifiedFrom, VerifyLevel};
use serde::Serialize;

use crate::abort::{Abort, CancelToken};
use crate::commit::{Finisher, Job, Outcome, check_seal, is_old_as_staged};
use crate::disk::{HostTarget, OpenOptions, Target, TargetAccess, open_target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::HashKind;
use crate::stage::StageLog;
use crate::state::{Barrier, Barriers, Begun, Folder, HostFolder, Journal, Word, state_directory};
use crate::sync::{Session, SessionOptions};
use crate::system::{Access, HostFile};
use crate::units::BlockSize;

/// What `recover`, `rollback` and `commit` print. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryReport {
    /// `failback.recovery/1`.
    pub schema: &'static str,
    /// `recover`, `rollback`, `commit`.
    pub command: &'static str,
    /// The target.
    pub target: String,
    /// The state that was found; `null` when there was none.
    pub before: Option<&'static str>,
    /// The state now.
    pub state: Option<&'static str>,
    /// Bytes written to the target.
    pub written: u64,
    /// Bytes read back from it and found right.
    pub verified: u64,
    /// Where they came from: `medium`, `cache`, `server`; `null` when nothing was read back.
    pub verified_from: Option<&'static str>,
    /// How long it took.
    pub seconds: f64,
}

/// Brings to its end what a sync left half done: applies a complete stage, reads it back, or
/// finishes a roll-back. What only the source can complete is left as it is.
///
/// # Errors
/// `Refused` when the target is not the one the state is about, or was changed; `InUse`, `Damaged`,
/// `VerifyFailed`, `NoSpace`, `Io`, `Cancelled`.
pub fn recover(
    target: &Path,
    state: Option<&Path>,
    cancel: &CancelToken,
) -> Result<RecoveryReport> {
    with_job("recover", target, state, |unfinished, journal| {
        unfinished.finish(journal, cancel)
    })
}

/// Brings the old disk back: drops a stage, or undoes what was applied.
///
/// # Errors
/// As [`recover`]; `Refused` when there is nothing to undo, or nothing to undo it with.
pub fn roll_back(
    target: &Path,
    state: Option<&Path>,
    cancel: &CancelToken,
) -> Result<RecoveryReport> {
    with_job("rollback", target, state, |unfinished, journal| {
        unfinished.roll_back(journal, cancel)
    })
}

/// Accepts the new disk: what an undo would need goes.
///
/// # Errors
/// `Refused` unless the new disk is proven, `InUse`, `Damaged`, `Io`.
pub fn accept(target: &Path, state: Option<&Path>) -> Result<RecoveryReport> {
    with_job("commit", target, state, |unfinished, journal| {
        unfinished.accept(journal)
    })
}

/// Before a new sync: whether something was half done, which is done now.
///
/// # Errors
/// As [`recover`].
pub(super) fn finish_unfinished(
    folder: &HostFolder,
    journal: Journal,
    target: &Path,
) -> Result<bool> {
    let is_half_done = match journal.word() {
        // Whatever it wrote, the new sync compares all of it.
        Word::Committing if journal.begun().in_place => false,
        Word::Committing | Word::NewUnverified | Word::RollingBack => true,
        // Cut off a moment before `done`; nobody was to accept it.
        Word::NewVerified => !journal.begun().keeps_undo || journal.has_broken_end(),
        _ => false,
    };
    if is_half_done {
        let path = target.to_owned();
        Unfinished { folder, path }.finish(journal, &CancelToken::new())?;
    }
    Ok(is_half_done)
}

fn with_job(
    command: &'static str,
    target: &Path,
    state: Option<&Path>,
    work: impl FnOnce(&Unfinished<'_>, Journal) -> Result<(Word, Outcome)>,
) -> Result<RecoveryReport> {
    let started = Instant::now();
    let directory = state_directory(target, state)?;
    let mut report = RecoveryReport {
        schema: "failback.recovery/1",
        command,
        target: target.display().to_string(),
        before: None,
        state: None,
        written: 0,
        verified: 0,
        verified_from: None,
        seconds: 0.0,
    };
    let nothing = || {
        let message = format!("no state of a sync in {}", directory.display());
        Error::new(ErrorKind::Refused, message).path(target)
    };
    if crate::state::peek(&directory)?.is_none() {
        return Err(nothing());
    }
    let folder = HostFolder::lock(&directory)?;
    let journal = Journal::open(&folder, Barriers::new())?.ok_or_else(nothing)?;
    report.before = Some(journal.word().name());
    let unfinished = Unfinished {
        folder: &folder,
        path: target.to_owned(),
    };
    let (word, outcome) = work(&unfinished, journal)?;
    report.state = Some(word.name());
    report.written = outcome.written;
    report.verified = outcome.verified;
    report.verified_from = match outcome.verified_from {
        VerifiedFrom::None => None,
        VerifiedFrom::Medium => Some("medium"),
        VerifiedFrom::Cache => Some("cache"),
        VerifiedFrom::Server => Some("server"),
    };
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The state directory of a target that is to be brought to an end.
struct Unfinished<'a> {
    folder: &'a HostFolder,
    path: PathBuf,
}

impl Unfinished<'_> {
    fn finish(&self, journal: Journal, cancel: &CancelToken) -> Result<(Word, Outcome)> {
        let word = journal.word();
        match word {
            // A roll-back may have begun in what does not check: looked at again.
            Word::NewVerified if journal.has_broken_end() => {}
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
                return Err(Error::new(ErrorKind::Refused, message).path(&self.path));
            }
            Word::Staged | Word::Committing | Word::NewUnverified | Word::RollingBack => {}
        }
        let (job, session) = self.job(journal)?;
        let abort = Abort::with_cancel(cancel);
        let finisher = self.finisher(&session, &abort);
        let outcome = match word {
            Word::Staged => finisher.go_on(&self.untouched_target(&job, &session)?, &job),
            Word::Committing => finisher.apply(self.target(&job)?.as_ref(), &job),
            Word::NewUnverified | Word::NewVerified => {
                finisher.prove(self.target(&job)?.as_ref(), &job)
            }
            _ => finisher.roll_back(self.target(&job)?.as_ref(), &job),
        }?;
        let word = job.journal().word();
        Ok((word, outcome))
    }

    fn roll_back(&self, journal: Journal, cancel: &CancelToken) -> Result<(Word, Outcome)> {
        let word = journal.word();
        match word {
            Word::Done | Word::Aborted | Word::OldRestored => {
                let message = format!("nothing to undo: the state is {}", word.name());
                Err(Error::new(ErrorKind::Refused, message).path(&self.path))
            }
            Word::Staging | Word::Staged => {
                let file = HostFile::open(&self.path, Access::Inspect)?;
                let identity = file.identity();
                let identity = identity.map_err(|e| Error::io(e, "stat").path(&self.path))?;
                if journal.may_have_lost_commit(&identity) {
                    let message = "journal is damaged: its last entry does not check, and the \
                                   target was changed since the one before; the same sync makes \
                                   it new";
                    return Err(Error::new(ErrorKind::Damaged, message).path(&self.path));
                }
                let (mut journal, folder) = (journal, self.folder);
                journal.append(crate::state::Entry::of(Word::Aborted), Barrier::Aborted)?;
                let removed = folder.remove(crate::state::STAGE_NAME);
                removed.map_err(|e| Error::io(e, "remove stage"))?;
                Ok((Word::Aborted, Outcome::default()))
            }
            _ if !journal.begun().has_undo => {
                let message = "was written without an undo: the old disk is gone";
                Err(Error::new(ErrorKind::Refused, message).path(&self.path))
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

    fn accept(&self, journal: Journal) -> Result<(Word, Outcome)> {
        if journal.word() != Word::NewVerified {
            let message = format!(
                "only a proven new disk can be accepted; the state is {}",
                journal.word().name()
            );
            return Err(Error::new(ErrorKind::Refused, message).path(&self.path));
        }
        if journal.has_broken_end() {
            let message = "journal is damaged: its last entry does not check; recover looks at \
                           the target once more";
            return Err(Error::new(ErrorKind::Damaged, message).path(&self.path));
        }
        let mut journal = journal;
        journal.append(crate::state::Entry::of(Word::Done), Barrier::Done)?;
        self.remove_stage()?;
        Ok((Word::Done, Outcome::default()))
    }

    fn remove_stage(&self) -> Result<()> {
        let removed = self.folder.remove(crate::state::STAGE_NAME);
        removed.map_err(|e| Error::io(e, "remove stage"))
    }

    fn finisher<'b>(&'b self, session: &'b Session, abort: &'b Abort) -> Finisher<'b> {
        Finisher {
            folder: self.folder,
            barriers: Barriers::new(),
            session,
            abort,
        }
    }

    /// Journal and stage, found sound, and the session as it was.
    fn job(&self, journal: Journal) -> Result<(Job, Session)> {
        let session = session_of(journal.begun())?;
        let file = self
            .folder
            .open(crate::state::STAGE_NAME)
            .map_err(|e| Error::io(e, "open stage"))?;
        let file = file.ok_or_else(|| {
            let message = "the stage is gone; its journal says that it is needed";
            Error::new(ErrorKind::Damaged, message).path(&self.path)
        })?;
        let stage = StageLog::open(file, journal.job(), session.geometry, Barriers::new())?;
        let sealed = journal.sealed().ok_or_else(|| {
            let message = "journal is damaged: COMMIT without a seal";
            Error::new(ErrorKind::Damaged, message)
        })?;
        check_seal(sealed, &stage)?;
        Ok((Job::new(journal, stage), session))
    }

    /// A target that nothing was written to, if that is what it is.
    fn untouched_target(&self, job: &Job, session: &Session) -> Result<HostTarget> {
        let begun = job.journal().begun().clone();
        let access = HostTarget::open(&self.path, &options_of(&begun)?)?;
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
                Err(Error::new(ErrorKind::Refused, message).path(&self.path))
            }
        }
    }

    /// The target, for writing, if it is still the same file.
    fn target(&self, job: &Job) -> Result<Arc<dyn Target>> {
        let begun = job.journal().begun().clone();
        let file = HostFile::open(&self.path, Access::Inspect)?;
        let failed = |e| Error::io(e, "stat").path(&self.path);
        if file.file_id().map_err(failed)? != begun.file_id {
            let message = "is another file than the one that the state is about";
            return Err(Error::new(ErrorKind::Refused, message).path(&self.path));
        }
        // After a failed flush the cache can hold what the medium does not.
        file.forget_cache();
        open_target(&self.path, &options_of(&begun)?)
    }
}

fn options_of(begun: &Begun) -> Result<OpenOptions> {
    let format = begun.format.as_deref().map(str::parse).transpose()?;
    Ok(OpenOptions {
        format,
        parents: begun.parents.iter().map(PathBuf::from).collect(),
        follow_parents: begun.follow_parents,
        // Looked at when it was staged.
        skip_sibling_check: true,
    })
}

fn session_of(begun: &Begun) -> Result<Session> {
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
        source_mark: 0,
    };
    Session::new(options, begun.disk_len)
}
