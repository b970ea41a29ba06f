//! From staged blocks to a new disk, and back: what a target goes through that is never mixed
//! without its journal saying so.
//!
//! ```text
//! staging      records go to the stage; the target is open for reading only
//!              stage flushed, read again, target unchanged, room there
//! staged       SEAL durable: nobody else is needed any more
//! committing   COMMIT durable: the target is opened for writing; every record is written to its
//!              place, which is the same however often it is done; flush
//! new_unverified   every run is read back past the page cache
//! new_verified     accepted at once, or kept for an undo: old bytes to their places, flush, read
//! done             back, compare: old_restored
//! ```

mod exchange;
mod finish;
mod holder;
mod layer;
mod marked;
mod merged;
mod merging;
mod opening;
mod places;
mod recovery;
mod replacing;
mod room;
mod staging;
mod used;

pub use finish::Outcome;
pub use marked::Marked;
pub use recovery::{Reopen, Unfinished};
pub use replacing::Replacing;
pub use staging::Staging;

pub(crate) use exchange::{drop_replaced, is_placed};
pub(crate) use merging::drop_child;
pub(crate) use opening::{NOTES, Resumed, notes_of, waits_to_be_accepted};
