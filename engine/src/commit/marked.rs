//! A target that is written in place: its journal calls it mixed from before the first write until
//! it is proven.
//!
//! ```text
//! committing   durable, and whoever looks elsewhere is led here; then opened for writing
//! done         all of it is flushed, read back and compared
//! ```
//! A run that is cut off leaves `committing`: nothing on this host can tell old blocks from new
//! ones, and only a sync from the source ends it.

use std::sync::Arc;

use crate::disk::{Target, TargetAccess};
use crate::error::{Error, Result};
use crate::state::{
    Barrier, Barriers, Begun, Entry, Folder, Journal, STAGE_NAME, Word, lead_to, remove_needless,
};

/// See the module's head.
#[derive(Debug)]
pub struct Marked {
    target: Arc<dyn Target>,
    // It keeps a device claimed.
    _access: Box<dyn TargetAccess>,
    folder: Box<dyn Folder>,
    journal: Journal,
}

impl Marked {
    /// Notes that the disk is mixed from here on, in place of what an earlier job noted, and opens
    /// it for writing.
    ///
    /// # Errors
    /// `InUse`, `ReadOnly`, `Damaged`, `NoSpace`, `Io`.
    pub fn open(
        access: Box<dyn TargetAccess>,
        folder: Box<dyn Folder>,
        barriers: Barriers,
        begun: Begun,
    ) -> Result<Self> {
        let first = Entry {
            begun: Some(begun),
            ..Entry::of(Word::Committing)
        };
        let journal = Journal::begin(folder.as_ref(), barriers, first)?;
        // Of an earlier job, which no journal speaks of any more.
        let removed = folder.remove(STAGE_NAME);
        removed.map_err(|e| Error::io(e, "remove stage"))?;
        // Nothing was written yet.
        lead_to(folder.as_ref(), barriers, journal.job())?;
        Ok(Self {
            target: access.open_for_writing()?,
            _access: access,
            folder,
            journal,
        })
    }

    /// The disk, open for writing.
    #[must_use]
    pub fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    /// The disk is proven, and durable.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn end(mut self) -> Result<()> {
        self.journal.append(Entry::of(Word::Done), Barrier::Done)?;
        remove_needless(self.folder.as_ref())
    }
}
