//! What of a disk may have changed since a snapshot of it: hints that spare reads, and prove
//! nothing.
//!
//! ```text
//! Untracked   knows nothing
//! Extents     compares where the bytes lie on the device (FIEMAP)
//! ```

mod extents;
mod layout;

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

pub use extents::{Extents, ExtentsAs};

use crate::error::Result;
use crate::step::Step;
use crate::units::ByteOffset;

/// What of a disk may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Ascending, apart from each other; may name more than changed, never less.
    Ranges(Vec<Range<ByteOffset>>),
    /// It cannot tell, and why: code for `hint_rejected:<why>`.
    Unknown(&'static str),
}

/// Knows what may have changed on a disk.
///
/// An answer is a hint: whoever leaves out what is not named has to hold it against the whole disk
/// before anything rests on it.
pub trait ChangeTracker: Send + Sync + Debug {
    /// What of the disk in `now` may differ from that in `then`, a snapshot that this host's
    /// provider made and still keeps. `now` stands still meanwhile: a snapshot as well, or an image
    /// that nobody writes to. Ranges of the virtual disk.
    ///
    /// # Errors
    /// `Io`, `Damaged` and the others of opening `now`; `Cancelled`. Whatever is wrong with `then`
    /// is [`Changed::Unknown`].
    fn changed(&self, then: &Path, now: &Path, step: &Step<'_>) -> Result<Changed>;
}

/// Knows nothing: everything may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untracked;

impl ChangeTracker for Untracked {
    fn changed(&self, _then: &Path, _now: &Path, step: &Step<'_>) -> Result<Changed> {
        step.check()?;
        Ok(Changed::Unknown("no_tracker"))
    }
}
