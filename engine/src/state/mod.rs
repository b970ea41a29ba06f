//! What a job leaves on disk to go on from, or back: journal, names, locks, barriers.

mod barrier;
mod ending;
mod folder;
mod journal;
mod lock;
mod place;

pub use barrier::{Barrier, Barriers};
pub(crate) use ending::{STAGE_NAME, STAGE_NEW_NAME, remove_stage};
pub use folder::{Folder, HostFolder};
pub use journal::{Begun, Entry, Journal, Sealed, Word, peek};
pub(crate) use place::absolute;
pub use place::state_directory;
