//! The two roles of a session over a link: the side that is read and the side that is made equal.
//!
//! ```text
//!        source                                           target
//!   scan: read, hash ---.                       .--- scan: read, hash        both at the same time
//!                        v     HASHES, ZEROS    |
//!                     compare <-----------------'
//!            differs: WANT --------------------------> sums of its 4 KiB pieces, where asked for
//!                              SUB HASHES <-----------'
//!   pack dirty pieces: DATA -------------------------> patch, check the block's hash, apply
//!   COMPARED up to n ------------------------------->  the others below n are equal
//!   END with root ---------------------------------->  flush, read back, close
//!                              RESULT with root <------'
//! ```
//! Two disks of one process need none of this: [`Beside`].
//!
//! Neither side waits for a reply while it has blocks to compare; what is under way is bounded by
//! the window of hashes and by the source's buffers. No receiving thread ever waits for the sending
//! one of its own side, so the two streams cannot block each other.

mod beside;
mod compressor;
mod conclusion;
mod descending;
mod hash_batch;
mod kept_blocks;
mod ledger;
mod map_keeper;
mod outbox;
mod pack;
mod packing;
mod regions;
mod role;
mod session;
mod source_role;
mod target_role;
mod their_stream;

pub use beside::Beside;
pub(crate) use outbox::KEEP_ALIVE;
pub(crate) use pack::unpack;
pub use regions::RegionPolicy;
pub(crate) use role::watch;
pub(crate) use session::scan_threads;
pub use session::{
    Phase, Replanned, Session, SessionLink, SessionOptions, SessionProgress, SideMap, Task, Until,
    source_mark,
};
pub(crate) use source_role::map_rejected;
pub use source_role::run_source;
pub use target_role::{Changes, Finish, InPlaceChanges, Peer, run_target};
