//! The journal of one target: which state it is in, one durable word after the other. How it is
//! written is the record log's.

use std::path::Path;

use uuid::Uuid;

use super::barrier::{Barrier, Barriers};
use super::entry::{Begun, Entry, Layered, Made, Sealed, Word};
use super::folder::Folder;
use super::record_log::{LogEntry, RecordLog};
use crate::error::Result;

impl LogEntry for Entry {
    const MAGIC: [u8; 8] = *b"FBJRNL\0\x02";
    const NAME: &'static str = "journal";
    const NEW_NAME: &'static str = "journal.new";

    fn can_begin(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| {
            crate::units::BlockSize::new(begun.block_size.into()).is_ok()
                && begun.disk_len <= crate::units::DISK_LEN_MAX
        })
    }
}

/// The journal of a job, open for more.
#[derive(Debug)]
pub struct Journal(RecordLog<Entry>);

impl Journal {
    /// Begins the journal of a new job, in place of that of an older one.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn begin(folder: &dyn Folder, barriers: Barriers, first: Entry) -> Result<Self> {
        RecordLog::begin(folder, barriers, first, Barrier::Begun).map(Self)
    }

    /// The journal that is there, to work on; `None` when there is none. All that it says is
    /// durable then.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Io`.
    pub fn open(folder: &dyn Folder, barriers: Barriers) -> Result<Option<Self>> {
        Ok(RecordLog::open(folder, barriers)?.map(Self))
    }

    /// The job's id.
    #[must_use]
    pub fn job(&self) -> Uuid {
        self.0.job()
    }

    /// Entries so far.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.0.entries().len()
    }

    /// The present state.
    #[must_use]
    pub fn word(&self) -> Word {
        self.0.last().word
    }

    /// What the job is.
    #[must_use]
    pub fn begun(&self) -> &Begun {
        begun(self.0.entries())
    }

    /// Whether the target is neither an old disk nor the new one.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        self.begun().is_mixed_at(self.word())
    }

    /// Whether nothing is left to do or undo, and the target is a whole disk.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.word().is_final() && !self.is_mixed()
    }

    /// Whether something that does not check stands behind the last entry: an entry that was torn,
    /// so that what it allows was never done, or one that has rotted since.
    #[must_use]
    pub fn has_broken_end(&self) -> bool {
        self.0.has_broken_end()
    }

    /// What does not check and was got over, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let broken_end = self.has_broken_end().then(|| {
            let message = "journal: what stands behind its last entry does not check; if it was \
                           not torn when it was written, a later word is lost";
            message.to_owned()
        });
        let copies = self.0.broken_copies();
        let broken_copies = (copies > 0)
            .then(|| format!("journal: {copies} of its entries have one copy left that checks"));
        broken_end.into_iter().chain(broken_copies).collect()
    }

    /// Whether COMMIT may be what does not check: the target is not what was staged for.
    #[must_use]
    pub fn may_have_lost_commit(&self, identity: &str) -> bool {
        let is_staged = self.word() == Word::Staged;
        self.has_broken_end() && is_staged && self.begun().identity != identity
    }

    /// What the source called itself in the latest run.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        let mut newest_first = self.0.entries().iter().rev();
        newest_first.find_map(|entry| entry.source.as_deref())
    }

    /// The latest seal, unless staging went on after it.
    #[must_use]
    pub fn sealed(&self) -> Option<&Sealed> {
        let mut newest_first = self.0.entries().iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.sealed.as_ref()
    }

    /// The two files, unless work on the new one went on after it was sealed.
    #[must_use]
    pub fn made(&self) -> Option<&Made> {
        let mut newest_first = self.0.entries().iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.made.as_ref()
    }

    /// The child, unless work on it went on after it was sealed.
    #[must_use]
    pub fn layered(&self) -> Option<&Layered> {
        let mut newest_first = self.0.entries().iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.layered.as_ref()
    }

    /// Whether the new disk is complete, and stays with its undo until somebody accepts it: proven,
    /// or not read back where that was not wanted.
    #[must_use]
    pub fn waits_to_be_accepted(&self) -> bool {
        let begun = self.begun();
        begun.keeps_undo
            && match self.word() {
                Word::NewVerified => true,
                Word::NewUnverified => begun.verify == "off" && self.left().is_some(),
                _ => false,
            }
    }

    /// The mark of the target as the job left it, in the state that it has now.
    #[must_use]
    pub fn left(&self) -> Option<&str> {
        self.0.last().left.as_deref()
    }

    /// Adds an entry and waits until it is durable.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; after that every further call fails.
    pub fn append(&mut self, entry: Entry, barrier: Barrier) -> Result<()> {
        self.0.append(entry, barrier)
    }
}

/// The journal in a state directory, to be looked at only; `None` when there is none.
///
/// # Errors
/// `Damaged`, `Unsupported`, `Io`.
pub fn peek(directory: &Path) -> Result<Option<Journal>> {
    Ok(RecordLog::peek(directory)?.map(Journal))
}

fn begun(entries: &[Entry]) -> &Begun {
    entries[0]
        .begun
        .as_ref()
        .expect("checked when it was written or read")
}
