//! Writes log entries. Every entry is its own tail: the one before was applied and synced.
//!
//! ```text
//! append      entry, sync: from here on a replay makes the pages
//! apply       pages in place; no sync, as the entry stands for them
//! settle      sync, if pages are in place that it has not covered: before the next entry, and
//!             before the log is given up
//! ```

use std::ops::Range;

use uuid::Uuid;

use super::entry::{EntryFields, encode};
use crate::error::{Error, Result};
use crate::format::{MIB, PAGE, PAGE_LEN, to_usize};
use crate::storage::Storage;

/// The log of one session of writing.
///
/// An entry takes less than half of the ring, so writing one never touches the one before: when
/// the new one is torn by a power cut, the old one is still there to be replayed again, which
/// changes nothing.
#[derive(Debug)]
pub(crate) struct LogWriter {
    log: Range<u64>,
    guid: Uuid,
    /// Byte offset in the ring of the next entry.
    next_at: u64,
    next_sequence: u64,
    /// The last entry stands for pages in place that no sync has covered yet.
    is_unsettled: bool,
}

impl LogWriter {
    /// Begins so many bytes into the ring, whole pages, under a new GUID, so that what is there
    /// does not count.
    pub(crate) fn new(log: Range<u64>, at: u64) -> Self {
        let next_at = at / PAGE * PAGE % (log.end - log.start);
        Self {
            log,
            guid: Uuid::new_v4(),
            next_at,
            next_sequence: 1,
            is_unsettled: false,
        }
    }

    /// What the headers have to say while this log is in use.
    pub(crate) fn guid(&self) -> Uuid {
        self.guid
    }

    /// Writes an entry with these pages (none for an empty entry, at most [`Self::PAGES_MAX`]),
    /// and the pages in place once it is durable. `flushed_file_len` must be durable already.
    pub(crate) fn append(
        &mut self,
        storage: &Storage,
        pages: &[(u64, &[u8; PAGE_LEN])],
        flushed_file_len: u64,
        last_file_len: u64,
    ) -> Result<()> {
        assert!(
            pages.len() <= Self::PAGES_MAX,
            "an entry below half of the ring"
        );
        self.settle(storage)?;
        let fields = EntryFields {
            log_guid: self.guid,
            sequence: self.next_sequence,
            tail: self.next_at,
            // Both are whole MiB in the format (section 2.3.1.1); files need not be.
            flushed_file_len: flushed_file_len / MIB * MIB,
            last_file_len: last_file_len.next_multiple_of(MIB),
        };
        let bytes = encode(&fields, pages);
        let ring_len = self.log.end - self.log.start;
        let first = bytes.len().min(to_usize(ring_len - self.next_at));
        let at = self.log.start + self.next_at;
        if first == bytes.len() {
            storage.write_through(at, &bytes)?;
        } else {
            storage.write_at(at, &bytes[..first])?;
            storage.write_at(self.log.start, &bytes[first..])?;
            storage.sync_data()?;
        }
        self.next_at = (self.next_at + bytes.len() as u64) % ring_len;
        self.next_sequence = self
            .next_sequence
            .checked_add(1)
            .ok_or_else(|| Error::unsupported("no log sequence number left"))?;
        self.is_unsettled = !pages.is_empty();
        for (at, bytes) in pages {
            storage.write_at(*at, *bytes)?;
        }
        Ok(())
    }

    /// Returns when nothing is lost with the entry before.
    pub(crate) fn settle(&mut self, storage: &Storage) -> Result<()> {
        match self.is_unsettled {
            true => self.sync(storage),
            false => Ok(()),
        }
    }

    /// Syncs the file, and with it what was applied.
    pub(crate) fn sync(&mut self, storage: &Storage) -> Result<()> {
        storage.sync_data()?;
        self.is_unsettled = false;
        Ok(())
    }

    /// Pages in an entry: as many descriptors as fit beside its header. With their sectors that
    /// is less than half of the smallest ring, 1 MiB.
    pub(crate) const PAGES_MAX: usize = 126;
}

const _: () = assert!((LogWriter::PAGES_MAX as u64 + 1) * PAGE <= (1 << 20) / 2);
