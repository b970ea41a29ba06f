//! Writing: sessions, new blocks, and the order in which changes become durable.
//!
//! ```text
//! first change   replay on disk, if needed:  headers (new FileWriteGuid), apply, sync
//!                headers (new FileWriteGuid, DataWriteGuid, LogGuid 0), each synced
//!                empty log entry under a new GUID, sync;  headers (that LogGuid), each synced
//! write          payload in place;  a block without place: new space at the end of the file,
//!                payload, then the entry, in memory
//! flush          payload sync;  log entry, sync;  BAT pages in place, sync
//! close          flush;  file cut to what is used;  headers (LogGuid 0), each synced
//! ```
//!
//! The log is in use from the first change to the close, also when no entry of the BAT changes:
//! whoever looks at the headers sees that the image is not at rest. LogGuid is set after the
//! first entry is durable, since a log in use without an entry counts as damage.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use crate::alloc::Allocator;
use crate::bat::{Entry, State};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{MIB, PAGE_LEN};
use crate::geometry::BlockIndex;
use crate::header::Headers;
use crate::image::{Image, Kind};
use crate::log::LogWriter;

/// What only a writer needs.
#[derive(Debug)]
pub(crate) struct Writing {
    /// Whether the image was changed since it was opened or closed.
    has_begun: AtomicBool,
    /// Held shared by changes, and alone by a close.
    gate: RwLock<()>,
    session: Mutex<Session>,
    /// Found by a scan before the first new block.
    allocator: Mutex<Option<Allocator>>,
    claims: Claims,
}

/// Headers and log; whoever holds its lock is the only one to flush.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) headers: Headers,
    log: Option<LogWriter>,
}

impl Writing {
    pub(crate) fn new(headers: Headers) -> Self {
        Self {
            has_begun: AtomicBool::new(false),
            gate: RwLock::default(),
            session: Mutex::new(Session { headers, log: None }),
            allocator: Mutex::default(),
            claims: Claims::default(),
        }
    }

    // A panic while one of the locks is held leaves the storage poisoned or unchanged.
    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocator(&self) -> MutexGuard<'_, Option<Allocator>> {
        self.allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// Writes whole logical sectors from byte `at` of the disk on. Readers see them at once; they
    /// are durable after the next [`flush`](Self::flush). Blocks are allocated as needed, at the
    /// end of the file; what else is in a new block reads zero.
    ///
    /// # Errors
    /// [`ReadOnly`](ErrorKind::ReadOnly); [`InvalidArgument`](ErrorKind::InvalidArgument) for part
    /// sectors and ranges past the end; [`Damaged`](ErrorKind::Damaged) before anything is written
    /// when the BAT contradicts itself; [`Poisoned`](ErrorKind::Poisoned) after an earlier failure;
    /// [`Io`](ErrorKind::Io), which poisons.
    pub fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let end = at.checked_add(data.len() as u64);
        let end = end.ok_or_else(|| Error::invalid("range ends past the disk").offset(at))?;
        self.check_change(&(at..end))
            .map_err(|error| error.during("write"))?;
        if data.is_empty() {
            return Ok(());
        }
        let _shared = self
            .writing
            .gate
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        self.prepare_space(at..end)?;
        self.begin()?;
        let mut at = at;
        let mut rest = data;
        while at < end {
            let block = self.geometry.block_at(at);
            let to = self.geometry.disk_range(block).end.min(end);
            let (part, others) =
                rest.split_at(usize::try_from(to - at).expect("a part of a buffer"));
            self.write_block(block, at, part)?;
            (rest, at) = (others, to);
        }
        self.flush_if_many_pending()
    }

    /// Makes a range of whole logical sectors read zero. Whole blocks of a dynamic image lose
    /// their place (it is not used again before the file is compacted); everything else is zeroed
    /// in place. Where everything reads zero already nothing is changed, except that undefined
    /// and discarded blocks become zero ones, which no reader can take for old data.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn zero(&self, range: Range<u64>) -> Result<()> {
        self.check_change(&range)
            .map_err(|error| error.during("zero"))?;
        let _shared = self
            .writing
            .gate
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut at = range.start;
        while at < range.end {
            let block = self.geometry.block_at(at);
            let to = self.geometry.disk_range(block).end.min(range.end);
            self.zero_block(block, at..to)?;
            at = to;
            self.flush_if_many_pending()?;
        }
        Ok(())
    }

    /// Returns when everything written so far survives a power cut. Does nothing on an image that
    /// was not changed.
    ///
    /// # Errors
    /// [`Poisoned`](ErrorKind::Poisoned), [`Io`](ErrorKind::Io), which poisons.
    pub fn flush(&self) -> Result<()> {
        let _shared = self
            .writing
            .gate
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        self.flush_pending(&mut self.writing.session())
    }

    /// Flushes, gives back the space that was taken in advance, and marks the image as clean.
    /// Does nothing on an image that was not changed. A change after it begins anew, with new
    /// GUIDs.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush).
    pub fn close(&self) -> Result<()> {
        let _alone = self
            .writing
            .gate
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut session = self.writing.session();
        self.flush_pending(&mut session)?;
        if !self.writing.has_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.trim(&mut session)?;
        session
            .headers
            .update(&self.storage, |header| header.log_guid = Uuid::nil())?;
        session.log = None;
        self.writing.has_begun.store(false, Ordering::Release);
        Ok(())
    }

    fn check_change(&self, range: &Range<u64>) -> Result<()> {
        if !self.is_writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "image was opened for reading",
            ));
        }
        self.storage.check_poison()?;
        self.check_range(range)?;
        let sector = u64::from(self.logical_sector_size());
        match range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector) {
            true => Ok(()),
            false => Err(Error::invalid("not whole sectors").offset(range.start)),
        }
    }

    /// Scans the BAT before the first block is allocated and before anything is written.
    fn prepare_space(&self, range: Range<u64>) -> Result<()> {
        let (first, last) = (self.geometry.block_at(range.start), range.end - 1);
        for block in first.0..=self.geometry.block_at(last).0 {
            if self
                .bat
                .entry(&self.storage, BlockIndex(block))?
                .stored_at()
                .is_none()
            {
                let mut allocator = self.writing.allocator();
                if allocator.is_none() {
                    *allocator = Some(self.scan_space()?);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn scan_space(&self) -> Result<Allocator> {
        Allocator::scan(&self.geometry, &self.bat, &self.storage)
    }

    /// Everything that has to be durable before the first change.
    fn begin(&self) -> Result<()> {
        if self.writing.has_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut session = self.writing.session();
        if self.writing.has_begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let log = session.headers.current.log.clone();
        if log.end - log.start < MIB || log.end > self.storage.len() {
            return Err(Error::unsupported("image has no log to write to"));
        }
        let file_write_guid = Uuid::new_v4();
        let headers = &mut session.headers;
        if let Some(overlay) = self.storage.overlay() {
            headers.update(&self.storage, |header| {
                header.file_write_guid = file_write_guid;
            })?;
            self.storage.apply_overlay(&overlay)?;
        }
        let data_write_guid = Uuid::new_v4();
        headers.update(&self.storage, |header| {
            header.file_write_guid = file_write_guid;
            header.data_write_guid = data_write_guid;
            header.log_guid = Uuid::nil();
        })?;
        let mut log = LogWriter::new(log);
        let len = self.storage.len();
        log.append(&self.storage, &[], len, len)?;
        headers.update(&self.storage, |header| header.log_guid = log.guid())?;
        session.log = Some(log);
        self.writing.has_begun.store(true, Ordering::Release);
        Ok(())
    }

    fn write_block(&self, block: BlockIndex, at: u64, data: &[u8]) -> Result<()> {
        let within = at - self.geometry.disk_range(block).start;
        if let Some(stored_at) = self.bat.entry(&self.storage, block)?.stored_at() {
            return self.storage.write_at(stored_at + within, data);
        }
        let _claim = self.writing.claims.claim(block);
        // Another thread may have been here between the look and the claim.
        if let Some(stored_at) = self.bat.entry(&self.storage, block)?.stored_at() {
            return self.storage.write_at(stored_at + within, data);
        }
        let stored_at = self.allocate()?;
        self.storage.write_at(stored_at + within, data)?;
        // Only now can a flush see the entry: its payload is written, and will be synced first.
        self.bat
            .set(&self.storage, block, Entry::present(stored_at))
    }

    fn allocate(&self) -> Result<u64> {
        let mut allocator = self.writing.allocator();
        if allocator.is_none() {
            *allocator = Some(self.scan_space()?);
        }
        let allocator = allocator.as_mut().expect("filled just now");
        allocator.allocate(&self.storage, self.block_size().into())
    }

    fn zero_block(&self, block: BlockIndex, range: Range<u64>) -> Result<()> {
        let _claim = self.writing.claims.claim(block);
        let disk = self.geometry.disk_range(block);
        let entry = self.bat.entry(&self.storage, block)?;
        match (entry.state(), entry.stored_at()) {
            (State::NotPresent | State::Zero, _) => Ok(()),
            (_, Some(stored_at)) if range != disk || self.kind == Kind::Fixed => {
                self.begin()?;
                let at = stored_at + (range.start - disk.start);
                self.storage.zero(at..at + (range.end - range.start))
            }
            _ => {
                self.begin()?;
                self.bat.set(&self.storage, block, Entry::ZERO)
            }
        }
    }

    fn flush_if_many_pending(&self) -> Result<()> {
        if self.bat.dirty_count() < PENDING_PAGES_MAX {
            return Ok(());
        }
        self.flush_pending(&mut self.writing.session())
    }

    /// Makes payload durable, then the entries that point to it.
    fn flush_pending(&self, session: &mut Session) -> Result<()> {
        self.storage.check_poison()?;
        let Some(log) = session.log.as_mut() else {
            return Ok(());
        };
        // Taken before the sync: what is changed after this line waits for the next flush.
        let pending = self.bat.pending();
        let flushed_len = self.storage.len();
        self.storage.sync()?;
        for batch in pending.chunks(LogWriter::PAGES_MAX) {
            let pages: Vec<(u64, &[u8; PAGE_LEN])> =
                batch.iter().map(|page| (page.at, &page.bytes)).collect();
            log.append(&self.storage, &pages, flushed_len, self.storage.len())?;
            for (at, bytes) in pages {
                self.storage.write_at(at, bytes)?;
            }
            self.storage.sync()?;
        }
        self.bat.flushed(&pending);
        Ok(())
    }

    /// Cuts off what was taken in advance, after the log knows of the shorter length.
    fn trim(&self, session: &mut Session) -> Result<()> {
        let Some(len) = self.writing.allocator().as_ref().map(Allocator::len_needed) else {
            return Ok(());
        };
        let Some(log) = session.log.as_mut().filter(|_| len < self.storage.len()) else {
            return Ok(());
        };
        log.append(&self.storage, &[], len, len)?;
        // Not synced by itself: a file that stays longer does no harm, and the headers follow.
        self.storage.set_len(len)
    }
}

/// Blocks whose entry is being changed: one thread each, others wait.
#[derive(Debug, Default)]
struct Claims {
    blocks: Mutex<HashSet<BlockIndex>>,
    released: Condvar,
}

/// Gives the block back when dropped.
struct Claim<'a> {
    claims: &'a Claims,
    block: BlockIndex,
}

impl Claims {
    fn claim(&self, block: BlockIndex) -> Claim<'_> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        while !blocks.insert(block) {
            blocks = self
                .released
                .wait(blocks)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Claim {
            claims: self,
            block,
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut blocks = self
            .claims
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        blocks.remove(&self.block);
        self.claims.released.notify_all();
    }
}

/// Changed BAT pages kept in memory, 16 MiB, before a flush is made without being asked for.
const PENDING_PAGES_MAX: usize = 4096;
