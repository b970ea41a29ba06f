//! A target that becomes a disk which was made apart from it: a new file takes its place, or a
//! child is merged into it.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::finish::{Finisher, facts_of};
use super::holder::{Context, Holder};
use super::opening::{Opening, Resumed, waits_to_be_accepted};
use crate::abort::Abort;
use crate::disk::{DiskInfo, Extent, Layers, NewFile, Source, Target, TargetAccess};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::identity::Facts;
use crate::schedule::{Mutex, MutexGuard};
use crate::state::{
    Barrier, Barriers, Begun, Container, Entry, Folder, Journal, STAGE_NAME, Word, remove_needless,
};
use crate::sync::{Session, Until};
use crate::system::MediumAccess;
use crate::units::ByteOffset;

/// The target of a session, which is left alone: what changes it goes to a new file or a child. As
/// a [`Source`] it is the target as it will be.
///
/// A clone or a child is made with the first change, so that a sync that finds nothing to do leaves
/// no trace; a file that begins empty is made at once, since where nothing is written it is not the
/// target.
#[derive(Debug)]
pub struct Replacing {
    /// `None`: there is no target yet.
    old: Option<Box<dyn TargetAccess>>,
    holder: Holder,
    folder: Box<dyn Folder>,
    barriers: Barriers,
    session: Session,
    opening: Opening,
    job: Mutex<Option<Arc<Job>>>,
    /// After the end alone.
    facts_after: Mutex<Option<Option<Facts>>>,
}

/// Journal and new disk of a job.
#[derive(Debug)]
struct Job {
    journal: Mutex<Journal>,
    disk: Arc<dyn Target>,
}

impl Job {
    fn new(journal: Journal, disk: Arc<dyn Target>) -> Arc<Self> {
        Arc::new(Self {
            journal: Mutex::new(journal),
            disk,
        })
    }

    // A journal whose append panicked is poisoned by itself.
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replacing {
    /// Takes up what an earlier run left in `folder` and beside the target, where it still fits.
    /// `begun` names the container and says what the job is; what the session knows of it is filled
    /// in here. `old` is the target, where there is one.
    ///
    /// # Errors
    /// `Refused` when an earlier result waits to be accepted or undone, `NoSpace`, `Damaged`, `Io`.
    pub fn open(
        old: Option<Box<dyn TargetAccess>>,
        new_file: Box<dyn NewFile>,
        folder: Box<dyn Folder>,
        barriers: Barriers,
        session: &Session,
        begun: Begun,
    ) -> Result<Self> {
        Self::open_held(
            old,
            Holder::NewFile(new_file),
            folder,
            barriers,
            session,
            begun,
        )
    }

    /// The same, where what changes `old` goes to a child, which is merged into it.
    ///
    /// # Errors
    /// As [`Replacing::open`].
    pub fn open_child(
        old: Box<dyn TargetAccess>,
        layers: Box<dyn Layers>,
        folder: Box<dyn Folder>,
        barriers: Barriers,
        session: &Session,
        begun: Begun,
    ) -> Result<Self> {
        let holder = Holder::Child(layers);
        Self::open_held(Some(old), holder, folder, barriers, session, begun)
    }

    fn open_held(
        old: Option<Box<dyn TargetAccess>>,
        holder: Holder,
        folder: Box<dyn Folder>,
        barriers: Barriers,
        session: &Session,
        begun: Begun,
    ) -> Result<Self> {
        let mark = session.options.source_mark;
        let mut replacing = Self {
            opening: Opening::new(old.as_deref(), session, begun, mark)?,
            old,
            holder,
            folder,
            barriers,
            session: session.clone(),
            job: Mutex::default(),
            facts_after: Mutex::default(),
        };
        if let Some(journal) = Journal::open(replacing.folder.as_ref(), barriers)? {
            replacing.take_up(journal)?;
        }
        if replacing.opening.begun().container == Container::File {
            replacing.begin()?;
        }
        Ok(replacing)
    }

    /// Whether the new disk is known to read zero: it was made for this session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.opening.begun().container == Container::File && !self.opening.resumed.is_resumed()
    }

    /// Says why an earlier run was given up, if one was.
    pub(crate) fn add_reason(&mut self, reason: Option<&'static str>) {
        self.opening.resumed.reasons.extend(reason);
    }

    pub(crate) fn resumed(&self) -> &Resumed {
        &self.opening.resumed
    }

    fn take_up(&mut self, mut journal: Journal) -> Result<()> {
        match journal.word() {
            _ if journal.waits_to_be_accepted() => return Err(waits_to_be_accepted()),
            // Whatever the earlier run left, all of it is compared again.
            Word::Committing if journal.begun().in_place => {
                self.opening.leave(journal);
                return Ok(());
            }
            word if word.is_final() => {
                self.opening.leave(journal);
                return self.remove_leftovers();
            }
            Word::Staged
                if !journal.begun().container.replaces()
                    && journal.may_have_lost_commit(&self.opening.begun().identity) =>
            {
                // It stays as it is until another takes its place: it is all that tells.
                self.opening.leave_mixed(journal);
                return Ok(());
            }
            Word::Staging | Word::Staged => {}
            Word::NewVerified => {
                journal.append(Entry::of(Word::Done), Barrier::Done)?;
                return self.remove_leftovers();
            }
            _ => return self.opening.leave_lost(journal),
        }
        let why_not = self.why_not_resumed(&journal);
        let disk = match why_not {
            Some(_) => None,
            None => self.holder.open().or_else(|error| {
                // Cut off while it was made: it is made anew.
                tracing::debug!(error = error.chain(), "what was left beside is no disk");
                match error.kind() {
                    ErrorKind::Damaged | ErrorKind::Unsupported => Ok(None),
                    _ => Err(error),
                }
            })?,
        };
        let is_whole =
            |disk: &Arc<dyn Target>| disk.info().virtual_size == self.session.geometry.disk_len();
        let Some(disk) = disk.filter(is_whole) else {
            self.opening.resumed.reasons.extend(why_not);
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            self.opening.leave(journal);
            return self.remove_leftovers();
        };
        self.opening.note_resumed(&journal);
        journal.append(self.opening.again(), Barrier::Begun)?;
        *self.job() = Some(Job::new(journal, disk));
        Ok(())
    }

    fn why_not_resumed(&self, journal: &Journal) -> Option<&'static str> {
        let is_file = self.opening.begun().container == Container::File;
        match self.opening.why_not_resumed(journal) {
            // A full copy that compares nothing can only begin anew.
            None if is_file && !self.session.options.goes_on => Some("options_changed"),
            why_not => why_not,
        }
    }

    fn remove_leftovers(&self) -> Result<()> {
        self.holder.remove(self.folder.as_ref())
    }

    // A panic while it is held leaves no half job: it is set whole.
    fn job(&self) -> MutexGuard<'_, Option<Arc<Job>>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts_after(&self) -> MutexGuard<'_, Option<Option<Facts>>> {
        let facts = self.facts_after.lock();
        facts.unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Option<Arc<Job>> {
        self.job().clone()
    }

    /// The job: its journal is durable before there is a file that only the journal explains.
    fn begin(&self) -> Result<Arc<Job>> {
        let mut job = self.job();
        if let Some(running) = job.as_ref() {
            return Ok(running.clone());
        }
        let journal = self.opening.begin(self.folder.as_ref(), self.barriers)?;
        // Of an earlier job, which no journal speaks of any more.
        let removed = self.folder.remove(STAGE_NAME);
        removed.map_err(|e| Error::io(e, "remove stage"))?;
        let disk = self.holder.make(self.opening.begun().container)?;
        let begun = Job::new(journal, disk);
        *job = Some(begun.clone());
        Ok(begun)
    }

    /// Puts the new disk, which is proven and closed and has `new_root`, in the target's place, or
    /// goes as far towards that as the session does.
    /// Before COMMIT an error or a cancel leaves the target as it was. What kept the new disk;
    /// `None` where nothing differed.
    ///
    /// # Errors
    /// `Refused` when the target was changed meanwhile, `Io`, `Cancelled`.
    pub fn commit(&self, new_root: Option<Digest>, abort: &Abort) -> Result<Option<Container>> {
        let old = self.old.as_deref();
        let until = self.session.options.until;
        let running = match until {
            // A seal says that nothing differs, too: somebody goes on from it.
            Until::Sealed => Some(self.begin()?),
            Until::End | Until::Staged => self.running(),
        };
        match (running, old) {
            (Some(job), _) => {
                let context = self.context(abort);
                self.holder
                    .commit(&context, &mut job.journal(), old, new_root)?;
                // The child of a VHDX is no more, and what it was merged into is let go of.
                let is_placed = self.opening.begun().container.replaces();
                let facts = is_placed.then(|| facts_of(&self.session, job.disk.as_ref()));
                *self.facts_after() = Some(facts.flatten());
                Ok(Some(self.opening.begun().container))
            }
            (None, Some(_)) if until == Until::Staged => Ok(None),
            (None, Some(old)) => {
                let finisher = Finisher {
                    folder: self.folder.as_ref(),
                    barriers: self.barriers,
                    session: &self.session,
                    abort,
                };
                let mut left_mixed = self.opening.left_mixed();
                let outcome = finisher.tidy(old, left_mixed.as_mut())?;
                *self.facts_after() = Some(outcome.facts);
                if left_mixed.is_some() {
                    // What a job that was lost had here.
                    remove_needless(self.folder.as_ref())?;
                }
                Ok(None)
            }
            (None, None) => unreachable!("a file that begins empty is made at once"),
        }
    }

    /// Gives the new disk up: what it came to is not what the source has.
    ///
    /// # Errors
    /// `Io`.
    pub fn give_up(&self) -> Result<()> {
        match self.running() {
            None => Ok(()),
            Some(job) => {
                let abort = Abort::new();
                let context = self.context(&abort);
                self.holder.abandon(&context, &mut job.journal())
            }
        }
    }

    fn context<'a>(&'a self, abort: &'a Abort) -> Context<'a> {
        Context {
            folder: self.folder.as_ref(),
            barriers: self.barriers,
            session: &self.session,
            abort,
        }
    }

    /// Reads from the new disk, or from the target while there is none.
    fn with_disk<T>(&self, look: impl FnOnce(&dyn Source) -> T) -> T {
        match (self.running(), self.old.as_deref()) {
            (Some(job), _) => look(job.disk.as_ref()),
            (None, Some(old)) => look(old.source()),
            (None, None) => unreachable!("a file that begins empty is made at once"),
        }
    }
}

impl Source for Replacing {
    fn info(&self) -> DiskInfo {
        self.with_disk(|disk| disk.info())
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.with_disk(|disk| disk.read(at, buf))
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        self.with_disk(|disk| disk.extent_at(at))
    }

    fn facts(&self) -> Result<Option<Facts>> {
        let after = self.facts_after().clone();
        after.map_or_else(|| self.with_disk(|disk| disk.facts()), Ok)
    }
}

impl Target for Replacing {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.begin()?.disk.write(at, data)
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.begin()?.disk.zero(range)
    }

    fn zero_undefined(&self) -> Result<u64> {
        // Without a change it is done to the target itself, at the end.
        self.running()
            .map_or(Ok(0), |job| job.disk.zero_undefined())
    }

    fn flush(&self) -> Result<()> {
        self.running().map_or(Ok(()), |job| job.disk.flush())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.running() {
            Some(job) => job.disk.read_back(at, buf),
            None => self.read(at, buf),
        }
    }

    fn medium(&self) -> MediumAccess {
        let job = self.running();
        job.map_or(MediumAccess::Cache, |job| job.disk.medium())
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        self.running().map_or(Ok(()), |job| job.disk.close())
    }
}
