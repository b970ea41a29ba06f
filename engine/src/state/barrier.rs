//! Every point at which one thing has to be durable before the next may happen.
//!
//! Each has an id, and all go through [`Barriers::pass`]: the crash tests run once more with each
//! id left out, and each of those runs has to find a broken promise. What is not found out is not
//! needed, and goes.

use std::fmt::Debug;

use super::window::WindowLen;

/// One such point. What breaks without it stands beside each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Barrier {
    /// The first record of a journal, before the journal gets its name. Without it a power cut
    /// leaves a journal that says nothing.
    Begun,
    /// The names of journal and stage, before a window counts as durable. Without it a power cut
    /// after COMMIT leaves a mixed target that nobody knows of.
    Names,
    /// A journal as it was found, before anything is done by it: the words of a process that was
    /// killed may be in the system's memory only. Without it a power cut takes COMMIT back after
    /// the target was changed.
    Found,
    /// Its name, likewise.
    FoundName,
    /// A window of the stage, before it counts as durable. Without it more than a window has to be
    /// sent again.
    Window,
    /// A stage that was written anew, before it takes the place of the old one. Without it what was
    /// staged has to be sent again.
    Compacted,
    /// That it has taken its place, before more is written to it. Without it the old one is found
    /// under the name after COMMIT, and the target stays mixed.
    CompactedName,
    /// The whole stage, before SEAL. Without it SEAL speaks of records that are not there.
    Stage,
    /// SEAL, before COMMIT. Without it COMMIT can be durable alone.
    Sealed,
    /// The marker that leads to a state kept elsewhere, before it gets its name. Without it what is
    /// found in the default place after COMMIT leads nowhere.
    Marker,
    /// Its name, before COMMIT. Without it a mixed target counts as old for whoever looks in the
    /// default place.
    MarkerName,
    /// COMMIT, before the target is opened for writing. Without it a mixed target counts as old.
    Committed,
    /// The target's bytes, before it counts as new. Without it a mixed target counts as new.
    Payload,
    /// "new, not read back", before "new, proven" is written behind it.
    Unverified,
    /// "new, proven", before the stage is dropped or kept for an undo.
    Verified,
    /// "done", before the stage goes. Without it the stage is missed.
    Done,
    /// "rolling back", before the first old byte. Without it a mixed target counts as new.
    RollingBack,
    /// The target's old bytes, before it counts as old.
    Restored,
    /// "old restored", before the stage goes.
    OldRestored,
    /// "aborted", before the stage goes. Without it a stage that was sealed is missed.
    Aborted,
    /// The bytes of a new file, before they are read back and sealed. Without it the target becomes
    /// a file that is not whole.
    NewFile,
    /// The name of the new file, before SEAL. Without it SEAL speaks of a file that is not there.
    NewName,
    /// The names of the new file and the old one, swapped, before the target counts as new. Without
    /// it the old disk counts as new.
    Placed,
    /// The names swapped back, before the target counts as old.
    PlacedBack,
    /// The image of what the target had, before SEAL. Without it SEAL promises an undo that is not
    /// there.
    Undo,
    /// The names of the child and of that image, before SEAL. Without it SEAL speaks of files that
    /// are not there.
    LayerNames,
    /// A record of a failback job or of the epoch of its pair, before the step that it allows.
    /// Without it a power cut takes back that a side was handed over, and both can be started. No
    /// part of [`Barrier::ALL`], the barriers of one target.
    Job,
}

impl Barrier {
    /// Every barrier of one target.
    pub const ALL: [Self; 26] = [
        Self::Begun,
        Self::Names,
        Self::Found,
        Self::FoundName,
        Self::Window,
        Self::Compacted,
        Self::CompactedName,
        Self::Stage,
        Self::Sealed,
        Self::Marker,
        Self::MarkerName,
        Self::Committed,
        Self::Payload,
        Self::Unverified,
        Self::Verified,
        Self::Done,
        Self::RollingBack,
        Self::Restored,
        Self::OldRestored,
        Self::Aborted,
        Self::NewFile,
        Self::NewName,
        Self::Placed,
        Self::PlacedBack,
        Self::Undo,
        Self::LayerNames,
    ];
}

/// The one way to a barrier.
#[derive(Clone, Copy, Debug)]
pub struct Barriers {
    left_out: Option<Barrier>,
    window: WindowLen,
}

/// Bytes that may wait to become durable: what at most has to be sent again. Flushing goes on
/// beside the comparison, so a small window costs little and spreads the disk's work, but where
/// both sides are so fast that the disk does nothing else. The longest is the eighth of a second of
/// such a disk (docs/decisions/0029).
const WINDOW: WindowLen = WindowLen {
    min: 16 << 20,
    max: 256 << 20,
};

impl Default for Barriers {
    fn default() -> Self {
        Self {
            left_out: None,
            window: WINDOW,
        }
    }
}

impl Barriers {
    /// All of them.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All but one, to see a test fail. Never for a disk that anybody needs.
    #[must_use]
    pub fn without(barrier: Barrier) -> Self {
        Self {
            left_out: Some(barrier),
            ..Self::default()
        }
    }

    /// The same with windows of one length, in bytes.
    #[must_use]
    pub fn with_window(self, len: u64) -> Self {
        let window = WindowLen { min: len, max: len };
        Self { window, ..self }
    }

    pub(crate) fn window(&self) -> WindowLen {
        self.window
    }

    /// Waits until what `flush` flushes is durable.
    ///
    /// # Errors
    /// Those of `flush`. Nothing is known then about what was written since the last success, and a
    /// second try would hide that: the job is over.
    pub(crate) fn pass<E>(
        &self,
        barrier: Barrier,
        flush: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        match self.left_out == Some(barrier) {
            true => Ok(()),
            false => flush(),
        }
    }
}
