//! `recover`, `rollback`, `commit`: the end of a sync from its state directory alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use failback_transport::VerifiedFrom;
use serde::Serialize;

use super::existing::ExistingTarget;
use super::replacement::is_missing;
use crate::abort::CancelToken;
use crate::commit::{Outcome, Reopen, Unfinished, is_placed};
use crate::disk::{
    HostNewFile, HostTarget, Layers, NewFile, OpenOptions, Target, TargetAccess, another_file,
    open_known_target,
};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{
    Barriers, Begun, Container, HostFolder, Journal, STAGE_NAME, Word, lock_state, peek,
    refuse_elsewhere, state_directory,
};
use crate::system::{Access, HostFile};

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
/// `Refused` when the target is not the one the state is about, was changed, or is that of a
/// failback job that is not over; `InUse`, `Damaged`, `VerifyFailed`, `NoSpace`, `Io`, `Cancelled`.
pub fn recover(
    target: &Path,
    state: Option<&Path>,
    cancel: &CancelToken,
) -> Result<RecoveryReport> {
    recover_for((target, state), None, cancel)
}

/// The same in the name of a job, whose directory that is.
pub(crate) fn recover_for(
    of: (&Path, Option<&Path>),
    owner: Option<&Path>,
    cancel: &CancelToken,
) -> Result<RecoveryReport> {
    with_job("recover", of, owner, |unfinished, journal| {
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
    roll_back_for((target, state), None, cancel)
}

/// The same in the name of a job, whose directory that is.
pub(crate) fn roll_back_for(
    of: (&Path, Option<&Path>),
    owner: Option<&Path>,
    cancel: &CancelToken,
) -> Result<RecoveryReport> {
    with_job("rollback", of, owner, |unfinished, journal| {
        unfinished.roll_back(journal, cancel)
    })
}

/// Accepts the new disk: what an undo would need goes.
///
/// # Errors
/// `Refused` unless the new disk is proven, `InUse`, `Damaged`, `Io`.
pub fn accept(target: &Path, state: Option<&Path>) -> Result<RecoveryReport> {
    accept_for((target, state), None)
}

/// The same in the name of a job, whose directory that is.
pub(crate) fn accept_for(
    of: (&Path, Option<&Path>),
    owner: Option<&Path>,
) -> Result<RecoveryReport> {
    with_job("commit", of, owner, |unfinished, journal| {
        unfinished.accept(journal)
    })
}

/// What became of an earlier sync that was half done.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing was.
    Whole,
    /// It is done now.
    Finished,
    /// Nothing on this host can do it: only a sync from the source ends it.
    Lost(Error),
}

/// Before a new sync: ends what was half done.
///
/// # Errors
/// As [`recover`], where another try may end it.
pub(super) fn finish_unfinished(
    folder: &HostFolder,
    journal: Journal,
    target: &Path,
    cancel: &CancelToken,
) -> Result<Found> {
    let reopen = HostPath {
        path: target,
        directory: folder.path(),
    };
    let unfinished = Unfinished {
        folder,
        reopen: &reopen,
        barriers: Barriers::new(),
    };
    let is_half_done = match journal.word() {
        // Whatever it wrote, the new sync compares all of it.
        Word::Committing if journal.begun().in_place => false,
        // Cut off a moment before `done`; nobody was to accept it.
        Word::NewVerified => !journal.begun().keeps_undo || journal.has_broken_end(),
        _ if journal.waits_to_be_accepted() => false,
        Word::Committing | Word::NewUnverified | Word::RollingBack => true,
        // A COMMIT that has rotted since left the new file in place.
        Word::Staged if journal.begun().container.replaces() => {
            let new_file = reopen.new_file(journal.begun())?;
            is_placed(new_file.as_ref(), &journal)?
        }
        Word::Staged if journal.begun().container == Container::Child => {
            unfinished.is_merging(&journal)?
        }
        _ => false,
    };
    if !is_half_done {
        return Ok(Found::Whole);
    }
    // Where a file takes the target's place there is none that is mixed.
    let can_be_lost = !journal.begun().container.replaces();
    match unfinished.finish(journal, cancel) {
        Ok(_) => Ok(Found::Finished),
        // The stage is gone or damaged, the target another file or not what was written.
        Err(error)
            if can_be_lost
                && matches!(
                    error.kind(),
                    ErrorKind::Damaged | ErrorKind::Refused | ErrorKind::VerifyFailed
                ) =>
        {
            Ok(Found::Lost(error.path(target)))
        }
        Err(error) => Err(error.path(target)),
    }
}

/// Refuses a file as a source that an unfinished sync left neither old nor new, as far as its state
/// lies where it is by default and may be looked at.
///
/// # Errors
/// `Refused`; `Damaged` for a state that cannot be read.
pub(crate) fn refuse_mixed_source(path: &Path) -> Result<()> {
    let journal = match peek(&state_directory(path, None)?) {
        Err(error) if error.kind() != ErrorKind::Damaged => return Ok(()),
        journal => journal?,
    };
    match journal.is_some_and(|journal| journal.is_mixed()) {
        false => Ok(()),
        true => {
            let message = "is neither an old disk nor a new one: a sync to it has not ended";
            Err(Error::new(ErrorKind::Refused, message).path(path))
        }
    }
}

/// What the state of a target says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// In a word.
    pub(crate) word: Word,
    /// Nothing is left to do or undo, and the target is a whole disk.
    pub(crate) is_over: bool,
    /// Root of the new disk in hexadecimal, once it was sealed and where it was hashed.
    pub(crate) new_root: Option<String>,
    /// Bytes of a stage that waits to be applied.
    pub(crate) logged: u64,
}

/// What tells the target, and what is staged for it, from any other state; `None` where nothing
/// does.
///
/// # Errors
/// As opening the target of a sync.
pub(crate) fn stage_mark(
    target: &Path,
    open: &OpenOptions,
    state: Option<&Path>,
    cancel: &CancelToken,
) -> Result<Option<String>> {
    match is_missing(target) {
        true => Ok(None),
        false => ExistingTarget::open(target, open, state, cancel)?.mark(),
    }
}

/// What is known of the last job on `target`; `None`: of none.
///
/// # Errors
/// `Damaged`, `Io`.
pub(crate) fn standing(target: &Path, state: Option<&Path>) -> Result<Option<Standing>> {
    let directory = state_directory(target, state)?;
    let Some(journal) = peek(&directory)? else {
        return Ok(None);
    };
    let sealed = journal.sealed().and_then(|it| it.new_root.clone());
    let made = journal.made().and_then(|it| it.new_root.clone());
    let layered = journal.layered().and_then(|it| it.new_root.clone());
    let is_logged = journal.begun().container == Container::Log
        && matches!(journal.word(), Word::Staging | Word::Staged);
    let logged = match is_logged {
        true => std::fs::metadata(directory.join(STAGE_NAME)).map_or(0, |found| found.len()),
        false => 0,
    };
    Ok(Some(Standing {
        word: journal.word(),
        is_over: journal.is_over(),
        new_root: sealed.or(made).or(layered),
        logged,
    }))
}

fn with_job(
    command: &'static str,
    (target, state): (&Path, Option<&Path>),
    owner: Option<&Path>,
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
    refuse_elsewhere(target, &directory)?;
    if peek(&directory)?.is_none() {
        return Err(nothing());
    }
    let folder = lock_state(target, state, owner)?;
    let journal = Journal::open(&folder, Barriers::new())?.ok_or_else(nothing)?;
    report.before = Some(journal.word().name());
    let unfinished = Unfinished {
        folder: &folder,
        reopen: &HostPath {
            path: target,
            directory: folder.path(),
        },
        barriers: Barriers::new(),
    };
    let (word, outcome) = work(&unfinished, journal).map_err(|e| e.path(target))?;
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

/// A target of this host, by its path.
#[derive(Debug)]
struct HostPath<'a> {
    path: &'a Path,
    /// Where its state is.
    directory: &'a Path,
}

impl HostPath<'_> {
    /// The target, if it is the file of this id, and as long as it was.
    fn known(&self, begun: &Begun, file_id: &str) -> Result<HostTarget> {
        let target = HostTarget::open(self.path, &options_of(begun)?)?;
        let is_same =
            target.file_id()? == file_id && target.source().info().virtual_size == begun.disk_len;
        match is_same {
            true => Ok(target),
            false => Err(another_file(self.path)),
        }
    }
}

impl Reopen for HostPath<'_> {
    fn access(&self, begun: &Begun, file_id: &str) -> Result<Box<dyn TargetAccess>> {
        Ok(Box::new(self.known(begun, file_id)?))
    }

    fn target(&self, begun: &Begun) -> Result<Arc<dyn Target>> {
        let (id, len) = (&begun.file_id, begun.disk_len);
        open_known_target(self.path, &options_of(begun)?, id, len)
    }

    fn new_file(&self, begun: &Begun) -> Result<Box<dyn NewFile>> {
        let options = options_of(begun)?;
        Ok(Box::new(HostNewFile::to_find(self.path, &options)?))
    }

    fn layers(&self, begun: &Begun) -> Result<(Box<dyn TargetAccess>, Box<dyn Layers>)> {
        // After a failed flush the cache can hold what the medium does not.
        HostFile::open(self.path, Access::Inspect)?.forget_cache();
        let target = self.known(begun, &begun.file_id)?;
        match target.layers(self.directory) {
            Some(layers) => Ok((Box::new(target), Box::new(layers))),
            None => {
                let message = "is no VHDX any more, yet a child of it waits to be merged";
                Err(Error::new(ErrorKind::Damaged, message).path(self.path))
            }
        }
    }
}

fn options_of(begun: &Begun) -> Result<OpenOptions> {
    let format = begun.format.as_deref().map(str::parse).transpose()?;
    Ok(OpenOptions {
        // Whoever has the state may have the target.
        owner: None,
        format,
        parents: begun.parents.iter().map(PathBuf::from).collect(),
        follow_parents: begun.follow_parents,
        // Looked at when it was staged.
        skip_sibling_check: true,
    })
}
