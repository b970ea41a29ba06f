//! An existing disk of this host that is made equal: staged, or in place where that was asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_transport::{Apply, SourceEnd, TargetResult};

use super::recovery::finish_unfinished;
use crate::abort::Abort;
use crate::commit::Staging;
use crate::disk::{DiskInfo, HostTarget, OpenOptions, Target, TargetAccess, decide_format};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{
    Barrier, Barriers, Begun, Entry, HostFolder, Journal, Word, absolute, lead_to, lock_state,
    remove_needless,
};
use crate::sync::{Changes, InPlaceChanges, Session, SessionLink, run_target};
use crate::system::{Access, HostFile};

/// See the module's head. Open for reading only, and locked, as is its state directory.
#[derive(Debug)]
pub(crate) struct ExistingTarget {
    // Before `folder`: the disk is let go first.
    access: HostTarget,
    folder: HostFolder,
    path: PathBuf,
    open: OpenOptions,
    notes: Vec<String>,
}

impl ExistingTarget {
    /// Opens the disk at `path`, whose state is kept below `state`, or beside it. What an earlier
    /// sync left half done is brought to its end first.
    ///
    /// # Errors
    /// `InUse`, also when another job works on it; `Refused`, `Damaged`, `Unsupported`, `ReadOnly`,
    /// `NoSpace`, `Io`.
    pub(crate) fn open(path: &Path, open: &OpenOptions, state: Option<&Path>) -> Result<Self> {
        // What cannot be a target gets no state directory.
        let file = HostFile::open(path, Access::Inspect)?;
        decide_format(&file, open.format)?;
        let folder = lock_state(path, state)?;
        let mut notes = Vec::new();
        if let Some(journal) = Journal::open(&folder, Barriers::new())? {
            let word = journal.word();
            if journal.is_mixed() {
                // After a failed flush the cache can hold what the medium does not.
                file.forget_cache();
            }
            if finish_unfinished(&folder, journal, path)? {
                notes.push(format!(
                    "an earlier sync had ended as {}; it was brought to its end first",
                    word.name()
                ));
            }
        }
        Ok(Self {
            access: HostTarget::open(path, open)?,
            folder,
            path: path.to_owned(),
            open: open.clone(),
            notes,
        })
    }

    /// What it is.
    pub(crate) fn info(&self) -> DiskInfo {
        let mut info = self.access.info();
        info.warnings.extend(self.notes.iter().cloned());
        info
    }

    /// Plays the target in a session; what the disk is afterwards comes with the results.
    ///
    /// # Errors
    /// The first error of either side; `Refused` when an earlier result waits to be accepted.
    pub(crate) fn run(
        self,
        session: &Session,
        mut link: SessionLink,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
        if session.options.apply == Apply::InPlace {
            return match self.prepare_in_place(session) {
                Ok((target, journal)) => {
                    run_in_place(target.as_ref(), journal, session, link, abort)
                }
                Err(error) => Err(told(&mut link, error)),
            };
        }
        let mark = session.options.source_mark;
        let prepared = self.begun(session).and_then(|begun| {
            let (access, folder) = (Box::new(self.access), Box::new(self.folder));
            Staging::open(access, folder, Barriers::new(), session, begun, mark)
        });
        let staging = match prepared {
            Ok(staging) => staging,
            Err(error) => return Err(told(&mut link, error)),
        };
        let changes = Changes::Staged(&staging);
        let (end, result) = run_target(session, &staging, Some(changes), link, abort)?;
        Ok((end, result, staging.info_now()))
    }

    fn begun(&self, session: &Session) -> Result<Begun> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                let message = "has a name that no journal can note: it is not Unicode";
                Error::new(ErrorKind::Usage, message).path(path)
            })
        };
        let parents = self.open.parents.iter();
        let parents = parents.map(|parent| text(&absolute(parent)?));
        let apply = session.options.apply;
        Ok(Begun {
            target: text(&absolute(&self.path)?)?,
            file_id: self.access.file_id()?,
            format: self.open.format.map(|format| format.to_string()),
            parents: parents.collect::<Result<_>>()?,
            follow_parents: self.open.follow_parents,
            identity: self.access.identity()?,
            disk_len: session.geometry.disk_len(),
            block_size: session.geometry.block_size().as_u32(),
            hash: session.hasher.kind().name().to_owned(),
            verify: session.options.verify_name().to_owned(),
            in_place: apply == Apply::InPlace,
            began_mixed: false,
            has_undo: matches!(apply, Apply::Stage | Apply::StageKeepUndo),
            keeps_undo: apply == Apply::StageKeepUndo,
        })
    }

    /// Notes that the disk is mixed from here on, and opens it for writing.
    fn prepare_in_place(self, session: &Session) -> Result<(Arc<dyn Target>, InPlaceJob)> {
        if let Some(journal) = Journal::open(&self.folder, Barriers::new())?
            && journal.word() == Word::NewVerified
        {
            return Err(Staging::waits_to_be_accepted());
        }
        let first = Entry {
            begun: Some(self.begun(session)?),
            ..Entry::of(Word::Committing)
        };
        let journal = Journal::begin(&self.folder, Barriers::new(), first)?;
        // Nothing was written yet.
        lead_to(&self.folder, Barriers::new(), journal.job())?;
        let target = self.access.open_for_writing()?;
        let job = InPlaceJob {
            journal,
            _access: self.access,
            folder: self.folder,
        };
        Ok((target, job))
    }
}

/// What is held while a disk is written in place.
struct InPlaceJob {
    journal: Journal,
    _access: HostTarget,
    folder: HostFolder,
}

fn run_in_place(
    target: &dyn Target,
    mut job: InPlaceJob,
    session: &Session,
    link: SessionLink,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
    let changes = Changes::InPlace(InPlaceChanges {
        target,
        is_new: false,
        finish: Box::new(move || {
            job.journal.append(Entry::of(Word::Done), Barrier::Done)?;
            remove_needless(&job.folder)
        }),
    });
    let (end, result) = run_target(session, target, Some(changes), link, abort)?;
    Ok((end, result, target.info()))
}

/// The error, after the peer was told.
fn told(link: &mut SessionLink, error: Error) -> Error {
    // Told, not expected to arrive: the peer may be gone.
    drop(link.say(&failback_transport::Message::Failure(error.to_wire())));
    error
}
