//! What is done once everything is staged, and nothing but this host is needed.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abort::Abort;
use crate::disk::{DiskInfo, Source, Target, TargetAccess};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, Hasher, is_zero};
use crate::identity::{Facts, seal};
use crate::plan::Working;
use crate::schedule::{Mutex, MutexGuard, scope};
use crate::stage::{Record, StageLog};
use crate::state::{
    Barrier, Barriers, Entry, Folder, Journal, STAGE_NAME, Sealed, Word, lead_to, remove_needless,
};
use crate::sync::{Session, Task, Until};
use crate::system::MediumAccess;
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry};
use crate::verify::root_of_medium;
use failback_transport::{VerifiedFrom, VerifyLevel};

/// Reading back is waiting for a device, one read at a time for each thread. Writing is waiting for
/// the stage, where that is no longer in memory.
const FINISHING_THREADS: usize = 8;
/// Blocks that are worth a thread of their own.
const THREAD_BLOCKS: usize = 8;

/// Journal and stage of a job.
#[derive(Debug)]
pub(crate) struct Job {
    journal: Mutex<Journal>,
    pub(crate) stage: StageLog,
}

impl Job {
    pub(crate) fn new(journal: Journal, stage: StageLog) -> Self {
        Self {
            journal: Mutex::new(journal),
            stage,
        }
    }

    // A journal whose append panicked is poisoned by itself.
    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was done to the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes written.
    pub written: u64,
    /// Bytes read back and found right.
    pub verified: u64,
    /// Where they came from.
    pub verified_from: VerifiedFrom,
    /// What the target is now.
    pub info: Option<DiskInfo>,
    /// What tells it, as it is now, from any later state; taken while nobody could write to it.
    /// `None` where nobody asked, or nothing does.
    pub facts: Option<Facts>,
}

/// Facts of a disk that is closed and still locked, where the session keeps a map.
pub(super) fn facts_of(session: &Session, target: &dyn Target) -> Option<Facts> {
    if !session.keeps_map() {
        return None;
    }
    seal(target).unwrap_or_else(|error| {
        tracing::info!(error = error.chain(), "no map is kept");
        None
    })
}

/// Which way a stage is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    New,
    Old,
}

/// Takes a job to its end.
#[derive(Debug)]
pub(crate) struct Finisher<'a> {
    pub(crate) folder: &'a dyn Folder,
    pub(crate) barriers: Barriers,
    pub(crate) session: &'a Session,
    pub(crate) abort: &'a Abort,
}

impl Finisher<'_> {
    /// From `staging`, as far as the session goes.
    pub(crate) fn commit(
        &self,
        access: &dyn TargetAccess,
        job: &Job,
        new_root: Option<Digest>,
    ) -> Result<Outcome> {
        let until = self.session.options.until;
        if until == Until::Staged {
            job.stage.flush(Barrier::Stage)?;
            return Ok(Outcome::default());
        }
        if job.stage.is_empty() && until == Until::End {
            if job.journal().begun().began_mixed {
                let outcome = self.tidy(access, Some(&mut job.journal()))?;
                self.remove_stage()?;
                return Ok(outcome);
            }
            self.end(job, Word::Aborted, Barrier::Aborted)?;
            return self.tidy(access, None);
        }
        let logging = self.session.progress.meters.log.begin();
        job.stage.flush(Barrier::Stage)?;
        self.check_on_medium(&job.stage)?;
        drop(logging);
        let summary = job.stage.summary();
        let sealed = Sealed {
            new_root: new_root.map(|root| root.to_string()),
            records: summary.records,
            stage_len: summary.len,
            stage_hash: summary.hash,
        };
        check_unchanged(access, &job.journal().begun().identity)?;
        self.check_room(access, &job.stage)?;
        let staged = Entry {
            sealed: Some(sealed),
            ..Entry::of(Word::Staged)
        };
        job.journal().append(staged, Barrier::Sealed)?;
        match until {
            Until::End => self.go_on(access, job),
            Until::Sealed | Until::Staged => Ok(Outcome::default()),
        }
    }

    /// Reads the stage again, and not from memory, as far as that was not done while it grew: what
    /// was written there was right.
    pub(super) fn check_on_medium(&self, stage: &StageLog) -> Result<()> {
        forget_stage(self.folder, stage.checked_len())?;
        self.each_staged(stage, |block| stage.check_block(block))
    }

    /// From `staged`: the target is what it was when it was staged.
    pub(crate) fn go_on(&self, access: &dyn TargetAccess, job: &Job) -> Result<Outcome> {
        // The last moment at which all can be left as it is.
        self.abort.check()?;
        access.check_writable()?;
        let id = job.journal().job();
        lead_to(self.folder, self.barriers, id)?;
        job.journal()
            .append(Entry::of(Word::Committing), Barrier::Committed)?;
        let target = access.open_for_writing()?;
        self.apply(target.as_ref(), job)
    }

    /// From `committing`.
    pub(crate) fn apply(&self, target: &dyn Target, job: &Job) -> Result<Outcome> {
        let written = self.write_all(target, &job.stage, Direction::New)?;
        // The source has zeros where the target reads zeros: after this every other reader of the
        // target does, too.
        target.zero_undefined()?;
        let flushing = self.writing();
        self.barriers.pass(Barrier::Payload, || target.flush())?;
        drop(flushing);
        job.journal()
            .append(Entry::of(Word::NewUnverified), Barrier::Unverified)?;
        let proven = self.prove(target, job)?;
        Ok(Outcome { written, ..proven })
    }

    /// From `new_unverified`.
    pub(crate) fn prove(&self, target: &dyn Target, job: &Job) -> Result<Outcome> {
        let level = self.session.options.verify;
        // Before the proof: nothing is written behind it.
        target.close()?;
        let verified = match level {
            VerifyLevel::Off => 0,
            VerifyLevel::Changed => self.read_back(target, &job.stage, Direction::New)?,
            VerifyLevel::Full => {
                let sealed = job.journal().sealed().and_then(|s| s.new_root.clone());
                self.check_root(target, sealed.as_deref())?
            }
        };
        let facts = self.facts_of(target);
        let keeps_undo = job.journal().begun().keeps_undo;
        let word = match level {
            // Nothing was read back: the word stays what it is.
            VerifyLevel::Off => Word::NewUnverified,
            _ => Word::NewVerified,
        };
        if keeps_undo || word == Word::NewVerified {
            let left = Entry {
                left: Some(target.mark()?.unwrap_or_default()),
                ..Entry::of(word)
            };
            job.journal().append(left, Barrier::Verified)?;
        }
        if !keeps_undo {
            self.end(job, Word::Done, Barrier::Done)?;
        }
        Ok(Outcome {
            written: 0,
            verified,
            verified_from: match (level, target.medium()) {
                (VerifyLevel::Off, _) => VerifiedFrom::None,
                (_, MediumAccess::Medium) => VerifiedFrom::Medium,
                (_, MediumAccess::Cache) => VerifiedFrom::Cache,
                (_, MediumAccess::Server) => VerifiedFrom::Server,
            },
            info: Some(target.info()),
            facts,
        })
    }

    /// Brings the old disk back, from any word after COMMIT.
    pub(crate) fn roll_back(&self, target: &dyn Target, job: &Job) -> Result<Outcome> {
        self.refuse_used(target, job)?;
        self.check_old_bytes(&job.stage)?;
        let is_cut_off = matches!(job.journal().word(), Word::Committing | Word::RollingBack);
        if is_cut_off {
            self.refuse_foreign(target, job, Direction::Old)?;
        }
        if job.journal().word() != Word::RollingBack {
            job.journal()
                .append(Entry::of(Word::RollingBack), Barrier::RollingBack)?;
        }
        let written = self.write_all(target, &job.stage, Direction::Old)?;
        self.barriers.pass(Barrier::Restored, || target.flush())?;
        target.close()?;
        let verified = self.read_back(target, &job.stage, Direction::Old)?;
        let hasher = &self.session.hasher;
        if !is_old_as_staged(&job.stage, target, hasher, self.session.geometry)? {
            let message = "the old disk was written back, yet its blocks do not have their hashes";
            return Err(Error::new(ErrorKind::VerifyFailed, message));
        }
        self.end(job, Word::OldRestored, Barrier::OldRestored)?;
        Ok(Outcome {
            written,
            verified,
            verified_from: VerifiedFrom::None,
            info: Some(target.info()),
            facts: None,
        })
    }

    /// A roll-back that finds damage half way would leave neither disk: all that it needs is looked
    /// at before.
    fn check_old_bytes(&self, stage: &StageLog) -> Result<()> {
        self.each_staged(stage, |block| {
            if let Some(record) = stage.find(block)? {
                content(stage, &record, Direction::Old)?;
            }
            Ok(())
        })
    }

    /// Writes a last word, and removes what it makes needless.
    pub(crate) fn end(&self, job: &Job, word: Word, barrier: Barrier) -> Result<()> {
        job.journal().append(Entry::of(word), barrier)?;
        self.remove_stage()
    }

    fn remove_stage(&self) -> Result<()> {
        remove_needless(self.folder)
    }

    /// What is left to do when no block differs: nothing changes that a user of the disk could see.
    /// A disk that `left_mixed` calls mixed is so no longer: it has been found equal.
    pub(crate) fn tidy(
        &self,
        access: &dyn TargetAccess,
        left_mixed: Option<&mut Journal>,
    ) -> Result<Outcome> {
        self.abort.check()?;
        let target = access.open_for_writing()?;
        target.zero_undefined()?;
        if left_mixed.is_some() {
            self.barriers.pass(Barrier::Payload, || target.flush())?;
        }
        target.close()?;
        if let Some(journal) = left_mixed {
            journal.append(Entry::of(Word::Done), Barrier::Done)?;
        }
        Ok(Outcome {
            info: Some(target.info()),
            facts: self.facts_of(target.as_ref()),
            ..Outcome::default()
        })
    }

    /// Facts of a target that is closed and still locked, where a map is to be kept.
    pub(super) fn facts_of(&self, target: &dyn Target) -> Option<Facts> {
        facts_of(self.session, target)
    }

    /// The bytes written.
    fn write_all(&self, target: &dyn Target, stage: &StageLog, way: Direction) -> Result<u64> {
        let written = AtomicU64::new(0);
        // A broken link is nothing to this; the operator may still stop it.
        self.each_staged(stage, |block| {
            let len = self.write_block(target, stage, block, way)?;
            written.fetch_add(len, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(written.into_inner())
    }

    fn write_block(
        &self,
        target: &dyn Target,
        stage: &StageLog,
        block: BlockIndex,
        way: Direction,
    ) -> Result<u64> {
        let Some(record) = stage.find(block)? else {
            return Ok(0);
        };
        let start = self.session.geometry.start_of(block);
        let (is_zero, bytes) = content(stage, &record, way)?;
        let mut bytes = bytes.as_slice();
        let writing = self.writing();
        let mut written = 0;
        for run in &record.runs {
            let at = start.advanced(run.start.into());
            if is_zero {
                target.zero(at..start.advanced(run.end.into()))?;
                continue;
            }
            let (piece, rest) = bytes.split_at((run.end - run.start) as usize);
            target.write(at, piece)?;
            written += piece.len() as u64;
            bytes = rest;
        }
        writing.iter().for_each(|writing| writing.add(written));
        Ok(written)
    }

    /// This thread writes to the target. All of it, from a log, is no example of what a plan
    /// reckons with.
    fn writing(&self) -> Option<Working<'_>> {
        let meter = &self.session.progress.meters.scattered_write;
        (self.session.options.task == Task::Delta).then(|| meter.begin())
    }

    /// Reads every run back from the medium; the bytes read.
    fn read_back(&self, target: &dyn Target, stage: &StageLog, way: Direction) -> Result<u64> {
        let progress = &self.session.progress;
        progress.enter_verify();
        let reading = progress.meters.read_back.begin();
        let verified = AtomicU64::new(0);
        self.each_staged(stage, |block| {
            let len = self.read_back_block(target, stage, block, way)?;
            verified.fetch_add(len, Ordering::Relaxed);
            progress.verified.fetch_add(len, Ordering::Relaxed);
            Ok(())
        })?;
        let verified = verified.into_inner();
        reading.add(verified);
        Ok(verified)
    }

    /// Does something to each staged block, on several threads: most of it is waiting for a device.
    fn each_staged(
        &self,
        stage: &StageLog,
        work: impl Fn(BlockIndex) -> Result<()> + Sync,
    ) -> Result<()> {
        let count = usize::try_from(stage.count()).unwrap_or(usize::MAX);
        let blocks = Mutex::new(stage.blocks());
        let next = || blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let failed = Abort::new();
        let work = || {
            while let Some(block) = next() {
                failed.check()?;
                self.abort.check_cancelled()?;
                work(block)?;
            }
            Ok(())
        };
        match FINISHING_THREADS.min(count / THREAD_BLOCKS) {
            0 | 1 => drop(failed.guard(work)),
            threads => scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| failed.guard(work));
                }
            }),
        }
        failed.verdict()
    }

    fn read_back_block(
        &self,
        target: &dyn Target,
        stage: &StageLog,
        block: BlockIndex,
        way: Direction,
    ) -> Result<u64> {
        let Some(record) = stage.find(block)? else {
            return Ok(0);
        };
        let (should_be_zero, bytes) = content(stage, &record, way)?;
        let mut bytes = bytes.as_slice();
        let start = self.session.geometry.start_of(block);
        let mut seen = Vec::new();
        let mut len = 0;
        for run in &record.runs {
            let at = start.advanced(run.start.into());
            seen.resize((run.end - run.start) as usize, 0);
            target.read_back(at, &mut seen)?;
            len += seen.len() as u64;
            let is_right = match should_be_zero {
                true => is_zero(&seen),
                false => {
                    let (piece, rest) = bytes.split_at(seen.len());
                    bytes = rest;
                    piece == seen
                }
            };
            if !is_right {
                return Err(not_as_written(at));
            }
        }
        Ok(len)
    }

    fn check_root(&self, target: &dyn Target, sealed: Option<&str>) -> Result<u64> {
        self.session.progress.enter_verify();
        let abort = self.abort.of_same_caller();
        let (root, read) = root_of_medium(target, self.session, &abort)?;
        match sealed.is_some_and(|sealed| sealed == root.to_string()) {
            true => Ok(read),
            false => {
                let message = "the root of what was read back is not the source's: \
                               the target is not to be trusted";
                Err(Error::new(ErrorKind::VerifyFailed, message))
            }
        }
    }
}

/// Whatever is read of the stage next comes from the medium, if it is there already.
pub(super) fn forget_stage(folder: &dyn Folder, from: u64) -> Result<()> {
    let is_there = folder.forget(STAGE_NAME, from);
    match is_there.map_err(|e| Error::io(e, "open stage"))? {
        true => Ok(()),
        false => {
            let message = "the stage is gone; nothing was written to the target";
            Err(Error::new(ErrorKind::Damaged, message))
        }
    }
}

fn not_as_written(at: ByteOffset) -> Error {
    let message = "what was read back is not what was written: the target is not to be trusted";
    Error::new(ErrorKind::VerifyFailed, message).at(at.0)
}

/// Whether the runs are zeros, or else their bytes.
pub(super) fn content(
    stage: &StageLog,
    record: &Record,
    way: Direction,
) -> Result<(bool, Vec<u8>)> {
    match way {
        Direction::New => Ok((record.new_is_zero, stage.new_bytes(record)?)),
        Direction::Old if record.can_undo() => Ok((record.old_is_zero, stage.old_bytes(record)?)),
        Direction::Old => {
            let message = "the stage was made without an undo: the old disk is gone";
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// The target is still the one that was staged for.
pub(crate) fn check_unchanged(access: &dyn TargetAccess, identity: &str) -> Result<()> {
    match access.identity()? == identity {
        true => Ok(()),
        false => {
            let message = "the target was changed by somebody else while it was staged for; \
                           nothing was written to it";
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// The stage is the one that was sealed.
pub(crate) fn check_seal(sealed: &Sealed, stage: &StageLog) -> Result<()> {
    let summary = stage.summary();
    let is_same = (sealed.stage_len, sealed.records) == (summary.len, summary.records)
        && sealed.stage_hash == summary.hash;
    match is_same {
        true => Ok(()),
        false => {
            let message = "stage is damaged: it is not the one that was sealed";
            Err(Error::new(ErrorKind::Damaged, message))
        }
    }
}

/// Whether every staged block of `disk` is what it was when it was staged; blocks that nobody
/// hashed are left out.
pub(crate) fn is_old_as_staged(
    stage: &StageLog,
    disk: &(impl Source + ?Sized),
    hasher: &Hasher,
    geometry: Geometry,
) -> Result<bool> {
    for block in stage.blocks() {
        let Some(record) = stage.find(block)? else {
            continue;
        };
        let Some(old) = record.old_leaf else {
            continue;
        };
        let mut bytes = vec![0; geometry.block_len(block)];
        disk.read(geometry.start_of(block), &mut bytes)?;
        if !has_leaf(hasher, &bytes, old) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a block has this leaf.
pub(crate) fn has_leaf(hasher: &Hasher, bytes: &[u8], leaf: Leaf) -> bool {
    match leaf {
        Leaf::Zero => is_zero(bytes),
        Leaf::Data(digest) => hasher.leaf(bytes) == digest,
    }
}
