//! `recover`, `rollback`, `commit`: the end of a sync from its state directory alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use failback_transport::VerifiedFrom;
use serde::Serialize;

use crate::abort::CancelToken;
use crate::commit::{Outcome, Reopen, Unfinished, is_placed};
use crate::disk::{
    HostNewFile, HostTarget, Layers, NewFile, OpenOptions, Target, TargetAccess, open_target,
};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Barriers, Begun, Container, HostFolder, Journal, Word, state_directory};
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
    if is_half_done {
        let finished = unfinished.finish(journal, &CancelToken::new());
        finished.map_err(|e| e.path(target))?;
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
        reopen: &HostPath {
            path: target,
            directory: &directory,
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
    /// The file of that path, if it is the one of this id.
    fn check(&self, file_id: &str) -> Result<HostFile> {
        let file = HostFile::open(self.path, Access::Inspect)?;
        let id = file.file_id();
        match id.map_err(|e| Error::io(e, "stat").path(self.path))? == file_id {
            true => Ok(file),
            false => {
                let message = "is another file than the one that the state is about";
                Err(Error::new(ErrorKind::Refused, message).path(self.path))
            }
        }
    }
}

impl Reopen for HostPath<'_> {
    fn access(&self, begun: &Begun, file_id: &str) -> Result<Box<dyn TargetAccess>> {
        self.check(file_id)?;
        Ok(Box::new(HostTarget::open(self.path, &options_of(begun)?)?))
    }

    fn target(&self, begun: &Begun) -> Result<Arc<dyn Target>> {
        // After a failed flush the cache can hold what the medium does not.
        self.check(&begun.file_id)?.forget_cache();
        open_target(self.path, &options_of(begun)?)
    }

    fn new_file(&self, begun: &Begun) -> Result<Box<dyn NewFile>> {
        let options = options_of(begun)?;
        Ok(Box::new(HostNewFile::to_find(self.path, &options)?))
    }

    fn layers(&self, begun: &Begun) -> Result<(Box<dyn TargetAccess>, Box<dyn Layers>)> {
        self.check(&begun.file_id)?.forget_cache();
        let target = HostTarget::open(self.path, &options_of(begun)?)?;
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
        format,
        parents: begun.parents.iter().map(PathBuf::from).collect(),
        follow_parents: begun.follow_parents,
        // Looked at when it was staged.
        skip_sibling_check: true,
    })
}
