//! What a job leaves on disk to go on from, or back: journal, names, locks, barriers.

mod barrier;
mod folder;
mod journal;
mod place;

pub use barrier::{Barrier, Barriers};
pub use folder::{Folder, HostFolder};
pub use journal::{Begun, Entry, Journal, Sealed, Word, peek};
pub(crate) use place::absolute;
pub use place::state_directory;

/// Name of the stage in a state directory.
pub(crate) const STAGE_NAME: &str = "stage";
