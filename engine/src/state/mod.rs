//! What a job leaves on disk to go on from, or back: journal, names, locks, barriers.

mod barrier;
mod container;
mod folder;
mod journal;
mod place;

pub use barrier::{Barrier, Barriers};
pub use container::Container;
pub use folder::{Folder, HostFolder};
pub use journal::{Begun, Entry, FileMark, Journal, Layered, Made, Sealed, Word, peek};
pub use place::state_directory;
pub(crate) use place::{absolute, new_file_of};

/// Name of the stage in a state directory.
pub(crate) const STAGE_NAME: &str = "stage";
