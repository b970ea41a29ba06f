//! A target whose changes are staged.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use crate::abort::Abort;
use crate::apply::Part;
use crate::commit::finish::{Finisher, Job, Outcome, forget_stage, has_leaf};
use crate::commit::opening::{Opening, Resumed, notes_of, waits_to_be_accepted};
use crate::disk::{DiskInfo, Extent, ExtentKind, Source, TargetAccess};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, is_zero};
use crate::identity::Facts;
use crate::schedule::{Mutex, MutexGuard};
use crate::stage::{IsOld, Old, Overlay, Record, StageLog, compact};
use crate::state::{
    Barrier, Barriers, Begun, Entry, Folder, Journal, STAGE_NAME, STAGE_NEW_NAME, Word,
    remove_needless,
};
use crate::sync::{Session, Task, Until};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry, range_len};

/// The target of a session, whose changes go to a stage. As a [`Source`] it is the target as it
/// will be: what an earlier run staged shows through, so that only what is missing is sent.
#[derive(Debug)]
pub struct Staging {
    access: Box<dyn TargetAccess>,
    folder: Box<dyn Folder>,
    barriers: Barriers,
    geometry: Geometry,
    session: Session,
    opening: Opening,
    why_log: Option<&'static str>,
    job: Mutex<Option<Arc<Job>>>,
    zeroed_blocks: AtomicU64,
    info_after: Mutex<Option<DiskInfo>>,
    /// After the end alone.
    facts_after: Mutex<Option<Option<Facts>>>,
}

impl Staging {
    /// Takes up what an earlier run left in `folder`, where it still fits. `begun` says what the
    /// job is; what the session knows of it is filled in here. `source_mark` tells the source from
    /// others.
    ///
    /// # Errors
    /// `Refused` when an earlier result waits to be accepted or undone, `Damaged`, `Io`.
    pub fn open(
        access: Box<dyn TargetAccess>,
        folder: Box<dyn Folder>,
        barriers: Barriers,
        session: &Session,
        begun: Begun,
        source_mark: u64,
    ) -> Result<Self> {
        let mut staging = Self {
            opening: Opening::new(Some(access.as_ref()), session, begun, source_mark)?,
            access,
            folder,
            barriers,
            geometry: session.geometry,
            session: session.clone(),
            why_log: None,
            job: Mutex::default(),
            zeroed_blocks: AtomicU64::new(0),
            info_after: Mutex::default(),
            facts_after: Mutex::default(),
        };
        if let Some(journal) = Journal::open(staging.folder.as_ref(), barriers)? {
            staging.take_up(journal)?;
        }
        Ok(staging)
    }

    /// Blocks that an earlier run had staged.
    #[must_use]
    pub fn resumed_blocks(&self) -> u64 {
        self.opening.resumed.blocks
    }

    /// What was found of an earlier run.
    pub(crate) fn resumed(&self) -> &Resumed {
        &self.opening.resumed
    }

    /// Whether anything was staged.
    pub(crate) fn is_used(&self) -> bool {
        self.running().is_some()
    }

    /// Says why an earlier run was given up.
    pub(crate) fn add_reason(&mut self, reason: &'static str) {
        self.opening.resumed.reasons.push(reason);
    }

    /// Says why changes go to a log, and not to a clone or new file.
    pub(crate) fn set_second_best(&mut self, reason: &'static str) {
        self.why_log = Some(reason);
    }

    /// All reasons as they travel in `Result`; of the log only where there is one.
    pub(crate) fn notes(&self) -> u8 {
        let why_log = self.why_log.filter(|_| self.is_used());
        self.opening.resumed.notes() | notes_of(why_log.as_slice())
    }

    /// What the target is: after a commit, what it became.
    pub(crate) fn info_now(&self) -> DiskInfo {
        let info = self
            .info_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        info.clone().unwrap_or_else(|| self.info())
    }

    /// Blocks that held data and become zero.
    pub(crate) fn zeroed_count(&self) -> u64 {
        self.zeroed_blocks.load(Ordering::Relaxed)
    }

    fn take_up(&mut self, mut journal: Journal) -> Result<()> {
        match journal.word() {
            _ if journal.waits_to_be_accepted() => return Err(waits_to_be_accepted()),
            word if word.is_final() => {
                self.opening.leave(journal);
                // What the last word made needless may still be there.
                return self.remove_stage();
            }
            // Whatever the earlier run left, all of it is compared again.
            Word::Committing if journal.begun().in_place => {
                self.opening.leave(journal);
                return Ok(());
            }
            Word::Staging | Word::Staged => {}
            Word::NewVerified => {
                journal.append(Entry::of(Word::Done), Barrier::Done)?;
                return self.remove_stage();
            }
            Word::Committing | Word::NewUnverified | Word::RollingBack => {
                return self.opening.leave_lost(journal);
            }
            Word::Done | Word::Aborted | Word::OldRestored => unreachable!("final words"),
        }
        let why_not = self.opening.why_not_resumed(&journal);
        if journal.may_have_lost_commit(&self.opening.begun().identity) {
            // It stays as it is until another takes its place: it is all that tells.
            self.opening.resumed.reasons.extend(why_not);
            self.opening.leave_mixed(journal);
            return Ok(());
        }
        let file = match why_not {
            Some(_) => None,
            None => self
                .folder
                .open(STAGE_NAME)
                .map_err(|e| Error::io(e, "open stage"))?,
        };
        let Some(file) = file else {
            self.opening.resumed.reasons.extend(why_not);
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            self.opening.leave(journal);
            return self.remove_stage();
        };
        // An earlier run may have been cut off while it wrote it anew.
        let removed = self.folder.remove(STAGE_NEW_NAME);
        removed.map_err(|e| Error::io(e, "remove stage"))?;
        let stage = StageLog::open(
            file,
            journal.job(),
            self.geometry,
            self.barriers,
            journal.sealed().map(|sealed| sealed.stage_len),
        )?;
        if let Some(sealed) = journal.sealed() {
            super::finish::check_seal(sealed, &stage)?;
        }
        // A comparison reads each of these blocks, and looks then. A full copy does not.
        let is_compared = self.session.options.task != Task::Full;
        if !is_compared && !self.is_old_as_staged(&stage)? {
            self.opening.resumed.reasons.push("target_changed");
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            self.opening.leave(journal);
            return self.remove_stage();
        }
        self.opening.note_resumed(&journal);
        self.opening.resumed.blocks = stage.count();
        // All of it is looked at again, and only some of it was written by this run.
        self.session.progress.meters.log.make_void();
        journal.append(self.opening.again(), Barrier::Begun)?;
        // Only now: a seal, if there was one, spoke of the records as they were.
        let stage = compact(stage, self.folder.as_ref())?;
        *self.job() = Some(Arc::new(Job::new(journal, stage)));
        Ok(())
    }

    /// Ends the job when a block of the target is not what it was when it was staged: nothing that
    /// is staged counts then.
    fn check_old(&self, job: &Job, bytes: &[u8], leaf: Leaf) -> Result<()> {
        if has_leaf(&self.session.hasher, bytes, leaf) {
            return Ok(());
        }
        let mut journal = job.journal();
        if !journal.word().is_final() {
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
        }
        let message = "the target was changed since an earlier run staged for it \
                       (target_changed); what was staged is given up";
        Err(Error::new(ErrorKind::Refused, message))
    }

    /// Whether every staged block of the target is what it was when it was staged.
    fn is_old_as_staged(&self, stage: &StageLog) -> Result<bool> {
        super::finish::is_old_as_staged(
            stage,
            self.access.source(),
            &self.session.hasher,
            self.geometry,
        )
    }

    fn remove_stage(&self) -> Result<()> {
        remove_needless(self.folder.as_ref())
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

    /// The job, begun with its first record: a sync that finds nothing to do leaves no trace.
    fn begin(&self) -> Result<Arc<Job>> {
        let mut job = self.job();
        if let Some(running) = job.as_ref() {
            return Ok(running.clone());
        }
        let file = self
            .folder
            .create(STAGE_NAME)
            .map_err(|e| Error::io(e, "make stage"))?;
        let journal = self.opening.begin(self.folder.as_ref(), self.barriers)?;
        let stage = StageLog::new(file, journal.job(), self.geometry, self.barriers);
        let begun = Arc::new(Job::new(journal, stage));
        *job = Some(begun.clone());
        Ok(begun)
    }

    /// Stages what a block becomes: `parts` are what of it differs from what this disk shows now,
    /// `shown` is the block's leaf as it shows now.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn put(
        &self,
        block: BlockIndex,
        parts: &[Part<'_>],
        new_leaf: Digest,
        shown: Option<Leaf>,
    ) -> Result<()> {
        let job = self.begin()?;
        let before = job.stage.find(block)?;
        let old_leaf = match &before {
            Some(record) => record.old_leaf,
            None => shown,
        };
        let old_leaf = match (old_leaf, self.opening.begun().has_undo) {
            // A full copy reads the target only for its undo.
            (None, true) => Some(self.leaf_of_disk(block)?),
            (known, _) => known,
        };
        let new_leaf = self.session.is_hashed().then_some(Leaf::Data(new_leaf));
        if new_leaf.is_some() && new_leaf == old_leaf {
            return match before {
                Some(_) => self.drop_block(&job, block),
                None => Ok(()),
            };
        }
        let (runs, bytes) = self.joined_with(block, parts, before.as_ref())?;
        self.append(&job, block, &runs, Some(&bytes), (new_leaf, old_leaf))
    }

    /// The runs of both, ascending and joined, and their bytes: a record says everything that
    /// differs from the target.
    fn joined_with(
        &self,
        block: BlockIndex,
        parts: &[Part<'_>],
        before: Option<&Record>,
    ) -> Result<(Vec<Range<u32>>, Vec<u8>)> {
        let start = self.geometry.start_of(block);
        let within = |at: ByteOffset| u32::try_from(at.0 - start.0).expect("a part of a block");
        let runs = parts
            .iter()
            .map(|(range, _)| within(range.start)..within(range.end))
            .collect();
        let Some(before) = before else {
            let bytes: Vec<_> = parts.iter().map(|(_, bytes)| *bytes).collect();
            return Ok((runs, bytes.concat()));
        };
        let mut new = vec![0; self.geometry.block_len(block)];
        self.read(start, &mut new)?;
        for (run, (_, bytes)) in runs.iter().zip(parts) {
            new[run.start as usize..run.end as usize].copy_from_slice(bytes);
        }
        let runs = joined(runs, &before.runs);
        let bytes = runs
            .iter()
            .map(|run| &new[run.start as usize..run.end as usize]);
        let bytes = bytes.collect::<Vec<_>>().concat();
        Ok((runs, bytes))
    }

    /// Stages zeros for `count` blocks from `first` on. Blocks that read zero are left alone.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Cancelled`.
    pub(crate) fn put_zeros(&self, first: BlockIndex, count: u64, abort: &Abort) -> Result<()> {
        let end = self.geometry.range_of(first, count).end;
        let mut at = self.geometry.start_of(first);
        while at < end {
            abort.check()?;
            let extent = self.extent_at(at)?;
            if extent.kind != ExtentKind::Data {
                at = extent.end.min(end);
                continue;
            }
            let block = self.geometry.block_at(at).expect("inside the disk");
            self.put_zero(block)?;
            self.zeroed_blocks.fetch_add(1, Ordering::Relaxed);
            at = self.geometry.range_of(block, 1).end;
        }
        Ok(())
    }

    fn put_zero(&self, block: BlockIndex) -> Result<()> {
        let job = self.begin()?;
        let range = self.geometry.range_of(block, 1);
        let before = job.stage.find(block)?;
        if before
            .as_ref()
            .is_some_and(|record| record.old_leaf == Some(Leaf::Zero))
        {
            return self.drop_block(&job, block);
        }
        let old_leaf = match &before {
            Some(record) => record.old_leaf,
            None => Some(self.leaf_of_disk(block)?),
        };
        let len = u32::try_from(range_len(&range)).expect("a block is at most 4 MiB");
        let whole = Range { start: 0, end: len };
        self.append(&job, block, &[whole], None, (Some(Leaf::Zero), old_leaf))
    }

    fn leaf_of_disk(&self, block: BlockIndex) -> Result<Leaf> {
        let mut bytes = vec![0; self.geometry.block_len(block)];
        let at = self.geometry.start_of(block);
        self.access.source().read(at, &mut bytes)?;
        Ok(match is_zero(&bytes) {
            true => Leaf::Zero,
            false => Leaf::Data(self.session.hasher.leaf(&bytes)),
        })
    }

    fn append(
        &self,
        job: &Job,
        block: BlockIndex,
        runs: &[Range<u32>],
        new: Option<&[u8]>,
        (new_leaf, old_leaf): (Option<Leaf>, Option<Leaf>),
    ) -> Result<()> {
        let logging = self.session.progress.meters.log.begin();
        let mut kept = Vec::new();
        let old = match (self.opening.begun().has_undo, old_leaf) {
            (_, Some(Leaf::Zero)) => Old::Zero,
            (false, _) => Old::NotKept,
            (true, _) => {
                let start = self.geometry.start_of(block);
                for run in runs {
                    let from = kept.len();
                    kept.resize(from + (run.end - run.start) as usize, 0);
                    let at = start.advanced(run.start.into());
                    self.access.source().read(at, &mut kept[from..])?;
                }
                Old::Kept(&kept)
            }
        };
        let has_flushed = job.stage.put(block, runs, new, old, (new_leaf, old_leaf))?;
        let len = new.map_or(0, <[u8]>::len) + kept.len();
        logging.add(len as u64);
        self.check_flushed(job, has_flushed)
    }

    fn drop_block(&self, job: &Job, block: BlockIndex) -> Result<()> {
        let has_flushed = job.stage.drop_block(block)?;
        self.check_flushed(job, has_flushed)
    }

    /// Looks at what was flushed as the medium has it, while the comparison goes on.
    fn check_flushed(&self, job: &Job, has_flushed: bool) -> Result<()> {
        if !has_flushed {
            return Ok(());
        }
        let durable = job.stage.durable();
        forget_stage(self.folder.as_ref(), job.stage.checked_len())?;
        job.stage.check_durable(durable)
    }

    /// Makes the target what was staged, or goes as far towards it as the session does; `new_root`
    /// is the root that it has then. Before COMMIT an
    /// error or a cancel leaves the target as it was; after it the link may break, as nobody is
    /// needed any more.
    ///
    /// # Errors
    /// `Refused` when the target was changed meanwhile, `NoSpace`, `VerifyFailed`, `Damaged`, `Io`,
    /// `Cancelled`.
    pub(crate) fn commit(&self, new_root: Option<Digest>, abort: &Abort) -> Result<Outcome> {
        let finisher = Finisher {
            folder: self.folder.as_ref(),
            barriers: self.barriers,
            session: &self.session,
            abort,
        };
        let until = self.session.options.until;
        let running = match until {
            // A seal says that nothing differs, too: somebody goes on from it.
            Until::Sealed => Some(self.begin()?),
            Until::End | Until::Staged => self.running(),
        };
        let outcome = match running {
            Some(job) => finisher.commit(self.access.as_ref(), &job, new_root),
            None if until == Until::Staged => Ok(Outcome::default()),
            None => {
                let mut left = self.opening.left_mixed();
                let outcome = finisher.tidy(self.access.as_ref(), left.as_mut())?;
                if left.is_some() {
                    self.remove_stage()?;
                }
                Ok(outcome)
            }
        }?;
        let mut info = self
            .info_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        info.clone_from(&outcome.info);
        *self.facts_after() = Some(outcome.facts.clone());
        Ok(outcome)
    }

    /// Gives the stage up: what it came to is not what the source has.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn give_up(&self) -> Result<()> {
        if let Some(job) = self.running() {
            job.journal()
                .append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            self.remove_stage()?;
        }
        Ok(())
    }

    /// Makes durable what was staged so far, for the next run. Of a session that failed.
    pub(crate) fn keep(&self) {
        if let Some(job) = self.running()
            && let Err(error) = job.stage.flush(Barrier::Window)
        {
            tracing::warn!(error = error.chain(), "stage not flushed at the end");
        }
    }
}

impl Source for Staging {
    fn info(&self) -> DiskInfo {
        self.access.source().info()
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.running() {
            None => self.access.source().read(at, buf),
            Some(job) => {
                let check_old = |bytes: &[u8], leaf| self.check_old(&job, bytes, leaf);
                self.overlay(&job, &check_old).read(at, buf)
            }
        }
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        match self.running() {
            None => self.access.source().extent_at(at),
            Some(job) => self.overlay(&job, &|_, _| Ok(())).extent_at(at),
        }
    }

    fn facts(&self) -> Result<Option<Facts>> {
        let after = self.facts_after().clone();
        after.map_or_else(|| self.access.source().facts(), Ok)
    }
}

impl Staging {
    fn overlay<'a>(&'a self, job: &'a Job, check_old: &'a IsOld<'a>) -> Overlay<'a> {
        Overlay {
            check_old,
            disk: self.access.source(),
            stage: &job.stage,
            geometry: self.geometry,
        }
    }
}

fn joined(mut runs: Vec<Range<u32>>, others: &[Range<u32>]) -> Vec<Range<u32>> {
    runs.extend_from_slice(others);
    runs.sort_by_key(|run| run.start);
    let mut joined: Vec<Range<u32>> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}
