//! What a job leaves on disk to go on from, or back: journal, names, locks, barriers.

mod barrier;
mod container;
mod elsewhere;
mod ending;
mod entry;
mod folder;
mod journal;
mod lock;
mod marker;
mod owner;
mod place;
mod record_log;
mod signed;
mod window;

pub use barrier::{Barrier, Barriers};
pub use container::Container;
pub(crate) use elsewhere::{find_elsewhere, lock_state, refuse_elsewhere};
pub(crate) use ending::{
    CHILD_NAME, STAGE_NAME, STAGE_NEW_NAME, UNDO_NAME, has_needless, remove_needless,
};
pub use entry::{Begun, Entry, FileMark, Layered, Made, Sealed, Word};
pub use folder::{Elsewhere, Folder, HostFolder};
pub use journal::{Journal, peek};
pub use marker::Marker;
pub(crate) use marker::lead_to;
pub(crate) use owner::{Owner, refuse_owned};
pub use place::state_directory;
pub(crate) use place::{absolute, new_file_of};
pub(crate) use record_log::{LogEntry, RecordLog};
pub(crate) use window::FlushWindow;
