//! An existing disk of this host that is made equal: staged, or in place where that was asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_transport as wire;
use failback_transport::{Apply, SourceEnd, TargetResult, Task};

use super::recovery::{Found, finish_unfinished};
use super::replacement::run_replacing;
use crate::abort::{Abort, CancelToken};
use crate::commit::{
    Marked, Replacing, Resumed, Staging, drop_child, drop_replaced, notes_of, waits_to_be_accepted,
};
use crate::disk::{
    DiskInfo, HostLayers, HostNewFile, HostTarget, NewFile, OpenOptions, Source, TargetAccess,
    decide_format,
};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Refusal;
use crate::map::{MapStore, MapWish, TrustedMap};
use crate::state::{
    Barriers, Begun, Container, Folder, HostFolder, Journal, STAGE_NAME, Word, absolute,
    has_needless, lock_state,
};
use crate::sync::{Changes, InPlaceChanges, Peer, Session, map_rejected, run_target};
use crate::system::{Access, HostFile};

/// See the module's head. Open for reading only, and locked, as is its state directory.
#[derive(Debug)]
pub(crate) struct ExistingTarget {
    // Before `folder`: the disk is let go first.
    access: HostTarget,
    new_file: HostNewFile,
    folder: HostFolder,
    path: PathBuf,
    open: OpenOptions,
    notes: Vec<String>,
    is_partial: bool,
    /// It is mixed, and nothing but this sync can end that.
    is_lost: bool,
}

impl ExistingTarget {
    /// Opens the disk at `path`, whose state is kept below `state`, or beside it. What an earlier
    /// sync left half done is brought to its end first.
    ///
    /// # Errors
    /// `InUse`, also when another job works on it; `Refused`, `Damaged`, `Unsupported`, `ReadOnly`,
    /// `NoSpace`, `Io`, `Cancelled`.
    pub(crate) fn open(
        path: &Path,
        open: &OpenOptions,
        state: Option<&Path>,
        cancel: &CancelToken,
    ) -> Result<Self> {
        // What cannot be a target gets no state directory.
        let file = HostFile::open(path, Access::Inspect)?;
        decide_format(&file, open.format)?;
        let folder = lock_state(path, state, open.owner.as_deref())?;
        let mut notes = Vec::new();
        let mut is_lost = false;
        if let Some(journal) = Journal::open(&folder, Barriers::new())? {
            let word = journal.word();
            if journal.is_mixed() {
                // After a failed flush the cache can hold what the medium does not.
                file.forget_cache();
            }
            match finish_unfinished(&folder, journal, path, cancel)? {
                Found::Whole => {}
                Found::Finished => notes.push(format!(
                    "an earlier sync had ended as {}; it was brought to its end first",
                    word.name()
                )),
                Found::Lost(error) => {
                    is_lost = true;
                    notes.push(format!(
                        "an earlier sync had ended as {}, and cannot be brought to its end ({}); \
                         all is compared anew",
                        word.name(),
                        error.chain()
                    ));
                }
            }
        }
        let access = HostTarget::open(path, open)?;
        let new_file = access.new_file()?;
        let mut target = Self {
            access,
            new_file,
            folder,
            path: path.to_owned(),
            open: open.clone(),
            notes,
            is_partial: false,
            is_lost,
        };
        target.is_partial = target.has_partial_copy()?;
        Ok(target)
    }

    /// Its state directory, and its path.
    pub(super) fn places(&self) -> (&Path, &Path) {
        (self.folder.path(), &self.path)
    }

    /// What it is.
    pub(crate) fn info(&self) -> DiskInfo {
        let mut info = self.access.info();
        info.warnings.extend(self.notes.iter().cloned());
        info
    }

    /// The disk as it is.
    pub(crate) fn source(&self) -> &dyn Source {
        self.access.source()
    }

    /// Whether a full copy that was cut off left a new file that a delta can go on with.
    pub(crate) fn is_partial(&self) -> bool {
        self.is_partial
    }

    fn has_partial_copy(&self) -> Result<bool> {
        let Some(journal) = Journal::open(&self.folder, Barriers::new())? else {
            return Ok(false);
        };
        Ok(matches!(journal.word(), Word::Staging | Word::Staged)
            && journal.begun().container == Container::File
            && journal.begun().identity == self.access.identity()?
            && self.new_file.standing()?.beside.is_some())
    }

    /// The saved map of the disk, as long as no job is unfinished or has left files: what one has
    /// staged shows through in a comparison, of which no map speaks, and clearing away is the
    /// session's.
    pub(super) fn load_map(
        &self,
        store: &MapStore,
        wish: &MapWish,
    ) -> std::result::Result<Option<TrustedMap>, Refusal> {
        let is_settled = match Journal::open(&self.folder, Barriers::new()) {
            Ok(journal) => journal.is_none_or(|journal| journal.word().is_final()),
            Err(_) => false,
        };
        match is_settled && !self.is_lost && !self.has_leftovers() {
            true => store.load(self.access.source(), wish),
            false => Ok(None),
        }
    }

    /// What tells the disk, and what is staged for it, from any other state of both; `None` where
    /// nothing does.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn mark(&self) -> Result<Option<String>> {
        let identity = self.access.identity()?;
        let failed = |e| Error::io(e, "look at stage").path(&self.path);
        let Some(journal) = Journal::open(&self.folder, Barriers::new())? else {
            return Ok(Some(format!("{identity} nothing")));
        };
        if !matches!(journal.word(), Word::Staging | Word::Staged) {
            return Ok(journal.is_over().then(|| format!("{identity} nothing")));
        }
        let kept = match journal.begun().container {
            Container::Log => match self.folder.open(STAGE_NAME).map_err(failed)? {
                Some(stage) => Some(stage.len().map_err(failed)?.to_string()),
                None => None,
            },
            Container::File | Container::Clone => {
                let beside = self.new_file.standing()?.beside;
                beside.map(|file| format!("{} {}", file.id, file.content))
            }
            Container::Child => None,
        };
        let (job, entries) = (journal.job(), journal.entry_count());
        Ok(kept.map(|kept| format!("{identity} {job} {entries} {kept}")))
    }

    /// Whether files are there that some job could not remove, or that cannot be looked for.
    fn has_leftovers(&self) -> bool {
        has_needless(&self.folder).unwrap_or(true) || self.new_file.has_leftovers()
    }

    /// Plays the target in a session; what the disk is afterwards comes with the results.
    ///
    /// # Errors
    /// The first error of either side; `Refused` when an earlier result waits to be accepted.
    pub(crate) fn run(
        self,
        session: &Session,
        mut peer: Peer<'_>,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
        if session.options.apply == Apply::InPlace {
            return match self.prepare_in_place(session) {
                Ok((marked, notes)) => run_in_place(marked, notes, session, peer, abort),
                Err(error) => Err(told(&mut peer, error)),
            };
        }
        match self.prepare_as_mapped(session) {
            Ok(Staged::Log(staging)) => {
                let changes = Changes::Staged(&staging);
                let (end, result) =
                    run_target(session, staging.as_ref(), Some(changes), peer, abort)?;
                Ok((end, result, staging.info_now()))
            }
            Ok(Staged::Replaced(replacing)) => run_replacing(&replacing, session, peer, abort),
            Err(error) => Err(told(&mut peer, error)),
        }
    }

    /// The same as [`Self::prepare_staged`], where a map that a job carries on speaks of what was
    /// staged: if that is not gone on with, for whatever reason, the map is of another disk.
    fn prepare_as_mapped(self, session: &Session) -> Result<Staged> {
        let journal = Journal::open(&self.folder, Barriers::new())?;
        let word = journal.map(|journal| journal.word());
        let was_staged = matches!(word, Some(Word::Staging | Word::Staged));
        let is_mapped = session.map.carried.is_some() && session.trusted().is_some();
        let staged = self.prepare_staged(session)?;
        match was_staged && is_mapped && !staged.resumed().is_resumed() {
            true => Err(map_rejected()),
            false => Ok(staged),
        }
    }

    fn prepare_staged(self, session: &Session) -> Result<Staged> {
        let journal = Journal::open(&self.folder, Barriers::new())?;
        let Choice { container, why_log } = self.choose(session, journal.as_ref())?;
        let begun = self.begun(session, container)?;
        let barriers = Barriers::new();
        let given_up = match journal {
            Some(journal) => self.drop_other(container, journal)?,
            None => false,
        };
        if container == Container::Child {
            let layers = Box::new(self.layers()?);
            let (access, folder) = (Box::new(self.access), Box::new(self.folder));
            let mut child =
                Replacing::open_child(access, layers, folder, barriers, session, begun)?;
            child.add_reason(given_up.then_some("options_changed"));
            return Ok(Staged::Replaced(Box::new(child)));
        }
        let (access, new_file) = (Box::new(self.access), Box::new(self.new_file));
        if container.replaces() {
            let folder = Box::new(self.folder);
            let mut replacing =
                Replacing::open(Some(access), new_file, folder, barriers, session, begun)?;
            replacing.add_reason(given_up.then_some("options_changed"));
            return Ok(Staged::Replaced(Box::new(replacing)));
        }
        let mark = session.options.source_mark;
        let folder = Box::new(self.folder);
        let mut staging = Staging::open(access, folder, barriers, session, begun, mark)?;
        if given_up {
            staging.add_reason("options_changed");
        }
        if let Some(reason) = why_log {
            staging.set_second_best(reason);
        }
        Ok(Staged::Log(Box::new(staging)))
    }

    /// Clears away what a job of another kind left. Whether it was given up for this one.
    fn drop_other(&self, container: Container, journal: Journal) -> Result<bool> {
        match (journal.begun().container, container) {
            (Container::Child, Container::Child) => Ok(false),
            // The journal is all that tells, until that of the next job takes its place.
            (Container::Child, _) if self.is_lost => Ok(false),
            (Container::Child, _) => drop_child(&self.folder, journal),
            (was, is) if was.replaces() && !is.replaces() => {
                drop_replaced(&self.folder, &self.new_file, Barriers::new(), journal)
            }
            _ => Ok(false),
        }
    }

    /// Where a child of the target can be kept.
    fn layers(&self) -> Result<HostLayers> {
        self.access.layers(self.folder.path()).ok_or_else(|| {
            let message = "only a VHDX can have a differencing child: take another --stage";
            Error::new(ErrorKind::Refused, message).path(&self.path)
        })
    }

    /// What keeps the new disk: what was asked for, what an unfinished job has, or what can be had.
    fn choose(&self, session: &Session, journal: Option<&Journal>) -> Result<Choice> {
        let options = &session.options;
        let wanted = options.container.map(named);
        if wanted == Some(Container::Child) {
            // Never chosen, only asked for.
            return self.layers().map(|_| Choice::of(Container::Child));
        }
        let unfinished = journal
            .filter(|journal| matches!(journal.word(), Word::Staging | Word::Staged))
            .map(|journal| journal.begun().container);
        let best = match options.task {
            Task::Full => Container::File,
            _ if options.goes_on => Container::File,
            _ => Container::Clone,
        };
        if wanted.is_none_or(|wanted| Some(wanted) == unfinished)
            && let Some(container) = unfinished.filter(|c| *c == Container::Log || *c == best)
        {
            return Ok(Choice::of(container));
        }
        let container = wanted.unwrap_or(best);
        if container == Container::Log {
            return Ok(Choice::of(container));
        }
        if container == Container::File && best == Container::Clone {
            let message = "a new file is for a full copy: --strategy full";
            return Err(Error::new(ErrorKind::Usage, message).path(&self.path));
        }
        match (self.new_file.why_not(container)?, wanted) {
            (None, _) => Ok(Choice::of(container)),
            (Some(why), None) => {
                tracing::debug!(why = why.words(), "changes go to a log");
                Ok(Choice {
                    container: Container::Log,
                    why_log: Some(why.code()),
                })
            }
            (Some(why), Some(_)) => {
                let why = why.words();
                let message = format!("cannot be replaced by a {}: {why}", container.name());
                Err(Error::new(ErrorKind::Refused, message).path(&self.path))
            }
        }
    }

    fn begun(&self, session: &Session, container: Container) -> Result<Begun> {
        let parents = self.open.parents.iter();
        let parents = parents.map(|parent| text_of(&absolute(parent)?));
        Ok(Begun {
            file_id: self.access.file_id()?,
            format: self.open.format.map(|format| format.to_string()),
            parents: parents.collect::<Result<_>>()?,
            follow_parents: self.open.follow_parents,
            identity: self.access.identity()?,
            in_place: session.options.apply == Apply::InPlace,
            began_mixed: self.is_lost,
            ..begun_of(session, &self.path, container)?
        })
    }

    /// Notes that the disk is mixed from here on, and opens it for writing; what was found of an
    /// earlier job.
    fn prepare_in_place(self, session: &Session) -> Result<(Marked, u8)> {
        let mut given_up = false;
        if let Some(journal) = Journal::open(&self.folder, Barriers::new())? {
            given_up = matches!(journal.word(), Word::Staging | Word::Staged);
            if journal.waits_to_be_accepted() {
                return Err(waits_to_be_accepted());
            }
            self.drop_other(Container::Log, journal)?;
        }
        let begun = self.begun(session, Container::Log)?;
        let (access, folder) = (Box::new(self.access), Box::new(self.folder));
        let marked = Marked::open(access, folder, Barriers::new(), begun)?;
        let notes = match given_up {
            true => notes_of(&["options_changed"]),
            false => 0,
        };
        Ok((marked, notes))
    }
}

/// What keeps the new disk.
struct Choice {
    container: Container,
    /// Reason code, where it is a log because nothing better can be had.
    why_log: Option<&'static str>,
}

impl Choice {
    fn of(container: Container) -> Self {
        Self {
            container,
            why_log: None,
        }
    }
}

/// A target whose changes are kept until all are there.
enum Staged {
    Log(Box<Staging>),
    Replaced(Box<Replacing>),
}

impl Staged {
    fn resumed(&self) -> &Resumed {
        match self {
            Self::Log(staging) => staging.resumed(),
            Self::Replaced(replacing) => replacing.resumed(),
        }
    }
}

/// What the journal says of a job on `path`, but for what is there already.
///
/// # Errors
/// `Usage` for a name that no journal can note.
pub(super) fn begun_of(session: &Session, path: &Path, container: Container) -> Result<Begun> {
    let apply = session.options.apply;
    Ok(Begun {
        target: text_of(&absolute(path)?)?,
        file_id: String::new(),
        format: None,
        parents: Vec::new(),
        follow_parents: false,
        identity: String::new(),
        disk_len: session.geometry.disk_len(),
        block_size: session.geometry.block_size().as_u32(),
        hash: session.hasher.kind().name().to_owned(),
        verify: session.options.verify_name().to_owned(),
        in_place: false,
        began_mixed: false,
        container,
        has_undo: matches!(apply, Apply::Stage | Apply::StageKeepUndo),
        keeps_undo: apply == Apply::StageKeepUndo,
    })
}

fn text_of(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = "has a name that no journal can note: it is not Unicode";
        Error::new(ErrorKind::Usage, message).path(path)
    })
}

fn named(container: wire::Container) -> Container {
    match container {
        wire::Container::Log => Container::Log,
        wire::Container::File => Container::File,
        wire::Container::Clone => Container::Clone,
        wire::Container::Child => Container::Child,
    }
}

fn run_in_place(
    marked: Marked,
    resume_notes: u8,
    session: &Session,
    peer: Peer<'_>,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
    let target = marked.target();
    let finish = Box::new(move |_| marked.end().map(|()| None));
    let changes = Changes::InPlace(InPlaceChanges {
        resume_notes,
        ..InPlaceChanges::new(target.as_ref(), false, finish)
    });
    let (end, result) = run_target(session, target.as_ref(), Some(changes), peer, abort)?;
    Ok((end, result, target.info()))
}

/// The error, after a peer behind a link was told.
pub(super) fn told(peer: &mut Peer<'_>, error: Error) -> Error {
    if let Peer::Link(link) = peer {
        // Told, not expected to arrive: the peer may be gone.
        drop(link.say(&wire::Message::Failure(error.to_wire())));
    }
    error
}
