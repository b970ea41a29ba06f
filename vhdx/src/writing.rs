//! Writing: sessions, and the order in which changes become durable.
//!
//! ```text
//! first change   the whole BAT is looked at: nothing is written to an image that contradicts
//!                itself
//!                replay on disk, if needed:  headers (new FileWriteGuid), apply, sync
//!                headers (new FileWriteGuid, DataWriteGuid, LogGuid 0), each synced
//!                empty log entry under a new GUID, sync;  headers (that LogGuid), each synced
//! write          payload in place;  a block without place: new space, payload, then bits of the
//!                sector bitmap and the entry, in memory
//! flush          payload sync;  log entry, sync;  pages of bitmaps and BAT in place, which the
//!                sync of the next flush covers: until then the log makes them;  space that
//!                blocks lost is free now
//! close          flush;  sync;  file cut to what is used;  headers (LogGuid 0), each synced
//! ```
//!
//! The log is in use from the first change to the close, also when no entry of the BAT changes:
//! whoever looks at the headers sees that the image is not at rest. LogGuid is set after the
//! first entry is durable, since a log in use without an entry counts as damage.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use uuid::Uuid;

use crate::alloc::{Allocator, Space};
use crate::claims::Claims;
use crate::error::{Error, Result};
use crate::format::{MIB, PAGE_LEN};
use crate::header::Headers;
use crate::image::Image;
use crate::log::LogWriter;

/// What only a writer needs.
#[derive(Debug)]
pub(crate) struct Writing {
    /// What was changed since the image was opened or closed: [`AT_REST`], [`STRUCTURE`] or
    /// [`CONTENT`].
    begun: AtomicU8,
    /// Held shared by changes, and alone by a close and while space is given back.
    gate: RwLock<()>,
    session: Mutex<Session>,
    /// Bytes into the log at which a session begins.
    log_start: AtomicU64,
    /// Found by a scan of the BAT before the first change.
    allocator: Mutex<Option<Allocator>>,
    /// How often space was given back: a place looked up before may hold another block since.
    ripenings: AtomicU64,
    pub(crate) claims: Claims,
    /// Held while a sector bitmap is looked for or made.
    pub(crate) bitmaps: Mutex<()>,
}

/// Headers and log; whoever holds its lock is the only one to flush.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) headers: Headers,
    log: Option<LogWriter>,
}

/// What becomes of the DataWriteGuid, by which children know their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataIdentity {
    /// Nothing changes that a user of the disk could see.
    Kept,
    /// A new one, unless this session has one already.
    New,
    /// This one, unless this session has one already.
    Given(Uuid),
}

impl Writing {
    pub(crate) fn new(headers: Headers) -> Self {
        Self {
            begun: AtomicU8::new(AT_REST),
            gate: RwLock::default(),
            session: Mutex::new(Session { headers, log: None }),
            log_start: AtomicU64::new(0),
            allocator: Mutex::default(),
            ripenings: AtomicU64::new(0),
            claims: Claims::default(),
            bitmaps: Mutex::default(),
        }
    }

    // A panic while one of the locks is held leaves the storage poisoned or unchanged.
    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever space was given back.
    pub(crate) fn ripenings(&self) -> u64 {
        self.ripenings.load(Ordering::Acquire)
    }

    /// Keeps out a close for as long as a change is under way.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a scan of the BAT found.
    pub(crate) fn keep_space(&self, allocator: Allocator) {
        *self.allocator() = Some(allocator);
    }

    pub(crate) fn allocator(&self) -> MutexGuard<'_, Option<Allocator>> {
        self.allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// Lets the next session of writing begin so many bytes into the log, rounded down to 4 KiB,
    /// and not at its start. To a reader every place is as good as another, as a log is a ring;
    /// from one near its end a short session wraps around.
    pub fn begin_log_at(&self, at: u64) {
        self.writing.log_start.store(at, Ordering::Relaxed);
    }

    /// Returns when everything written so far survives a power cut, also what was written before
    /// the image was opened. Changes nothing in an image that was not changed.
    ///
    /// # Errors
    /// [`Poisoned`](crate::ErrorKind::Poisoned), [`Io`](crate::ErrorKind::Io), which poisons.
    pub fn flush(&self) -> Result<()> {
        let released = self.flush_pending(&mut self.writing.session())?;
        if released.is_empty() {
            return Ok(());
        }
        // A writer that looked a block up before it lost its space may still be on the way there.
        match self.writing.gate.try_write() {
            Ok(_) | Err(TryLockError::Poisoned(_)) => self.ripen(released),
            Err(TryLockError::WouldBlock) => {
                if let Some(allocator) = self.writing.allocator().as_mut() {
                    released
                        .into_iter()
                        .for_each(|range| allocator.release(range));
                }
            }
        }
        Ok(())
    }

    /// Flushes, gives back the space that was taken in advance, and marks the image as clean.
    /// Changes nothing in an image that was not changed. A change after it begins anew, with new
    /// GUIDs.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush).
    pub fn close(&self) -> Result<()> {
        let gate = &self.writing.gate;
        let _alone = gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut session = self.writing.session();
        let released = self.flush_pending(&mut session)?;
        self.ripen(released);
        if self.writing.begun.load(Ordering::Acquire) == AT_REST {
            return Ok(());
        }
        if let Some(log) = session.log.as_mut() {
            log.settle(&self.storage)?;
        }
        self.trim(&mut session)?;
        session
            .headers
            .update(&self.storage, |header| header.log_guid = Uuid::nil())?;
        session.log = None;
        self.writing.begun.store(AT_REST, Ordering::Release);
        Ok(())
    }

    /// Everything that has to be durable before a change of this kind.
    pub(crate) fn begin(&self, identity: DataIdentity) -> Result<()> {
        let wanted = match identity {
            DataIdentity::Kept => STRUCTURE,
            DataIdentity::New | DataIdentity::Given(_) => CONTENT,
        };
        if self.writing.begun.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let mut session = self.writing.session();
        let begun = self.writing.begun.load(Ordering::Acquire);
        if begun >= wanted {
            return Ok(());
        }
        let guid = match identity {
            DataIdentity::Kept => session.headers.current.data_write_guid,
            DataIdentity::New => Uuid::new_v4(),
            DataIdentity::Given(guid) => guid,
        };
        match begun {
            AT_REST => self.begin_session(&mut session, guid)?,
            _ => session
                .headers
                .update(&self.storage, |header| header.data_write_guid = guid)?,
        }
        self.writing.begun.store(wanted, Ordering::Release);
        Ok(())
    }

    fn begin_session(&self, session: &mut Session, data_write_guid: Uuid) -> Result<()> {
        let log = session.headers.current.log.clone();
        if log.end - log.start < MIB || log.end > self.storage.len() {
            return Err(Error::unsupported("image has no log to write to"));
        }
        {
            let mut allocator = self.writing.allocator();
            if allocator.is_none() {
                *allocator = Some(Allocator::scan(&self.geometry, &self.bat, &self.storage)?);
            }
        }
        let file_write_guid = Uuid::new_v4();
        let headers = &mut session.headers;
        if let Some(overlay) = self.storage.overlay() {
            headers.update(&self.storage, |header| {
                header.file_write_guid = file_write_guid;
            })?;
            self.storage.apply_overlay(&overlay)?;
        }
        headers.update(&self.storage, |header| {
            header.file_write_guid = file_write_guid;
            header.data_write_guid = data_write_guid;
            header.log_guid = Uuid::nil();
        })?;
        let mut log = LogWriter::new(log, self.writing.log_start.load(Ordering::Relaxed));
        let len = self.storage.len();
        log.append(&self.storage, &[], len, len)?;
        headers.update(&self.storage, |header| header.log_guid = log.guid())?;
        session.log = Some(log);
        Ok(())
    }

    /// Changes the DataWriteGuid of a session that has begun. Everything else has to be durable.
    pub(crate) fn take_identity(&self, data_write_guid: Uuid) -> Result<()> {
        let headers = &mut self.writing.session().headers;
        headers.update(&self.storage, |header| {
            header.data_write_guid = data_write_guid;
        })
    }

    pub(crate) fn allocate(&self, len: u64) -> Result<Space> {
        let mut allocator = self.writing.allocator();
        let allocator = allocator.as_mut().expect("a session has begun");
        allocator.allocate(&self.storage, len)
    }

    /// Flushes when so much is pending that memory would grow. Not to be called by whoever has
    /// [entered](Writing::enter).
    pub(crate) fn flush_if_many_pending(&self) -> Result<()> {
        if self.pages.dirty_count() < PENDING_PAGES_MAX {
            return Ok(());
        }
        self.flush()
    }

    /// Makes payload durable, then the bits and entries that point to it. Returns the space that
    /// nothing in the file points to any more.
    fn flush_pending(&self, session: &mut Session) -> Result<Vec<Range<u64>>> {
        self.storage.check_poison()?;
        let Some(log) = session.log.as_mut() else {
            // An earlier process may have been killed before it flushed what is read here.
            if self.is_writable {
                self.storage.sync()?;
            }
            return Ok(Vec::new());
        };
        // Taken before the pages, and both before the sync: what is released or changed after
        // this waits for the next flush.
        let released = match self.writing.allocator().as_mut() {
            Some(allocator) => allocator.take_released(),
            None => Vec::new(),
        };
        let pending = self.pages.pending(&self.bat.regions().bat);
        let flushed_len = self.storage.len();
        log.sync(&self.storage)?;
        for batch in pending.chunks(LogWriter::PAGES_MAX) {
            let pages: Vec<(u64, &[u8; PAGE_LEN])> =
                batch.iter().map(|page| (page.at, &*page.page)).collect();
            log.append(&self.storage, &pages, flushed_len, self.storage.len())?;
        }
        self.pages.flushed(&pending);
        Ok(released)
    }

    fn ripen(&self, released: Vec<Range<u64>>) {
        if released.is_empty() {
            return;
        }
        // Before the space can be taken: whoever reads it by an old place sees the new count.
        self.writing.ripenings.fetch_add(1, Ordering::AcqRel);
        if let Some(allocator) = self.writing.allocator().as_mut() {
            allocator.ripen(released);
        }
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

/// Not changed since it was opened or closed.
const AT_REST: u8 = 0;
/// Changed, and nothing that a user of the disk could see.
const STRUCTURE: u8 = 1;
/// Changed in content.
const CONTENT: u8 = 2;
/// Changed pages kept in memory, 16 MiB, before a flush is made without being asked for.
const PENDING_PAGES_MAX: usize = 4096;
