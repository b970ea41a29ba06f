//! Threads, locks, queues and time, as the engine uses them: the one place where they come from.
//!
//! ```text
//! as shipped           std and crossbeam under other names: nothing in between
//! feature `simulate`   each call asks whether its thread belongs to a simulation
//!     no                   the same as above
//!     yes                  a seed decides who goes on; exactly one thread runs at a time, and time
//!                          passes only when nobody has anything to do
//! ```
//! What a role does with its threads goes through here, so that a whole session of both sides can
//! be run again by its seed. Locks that are never held across a disk's or a link's call need not.

#[cfg(not(feature = "simulate"))]
mod direct;
#[cfg(not(feature = "simulate"))]
pub(crate) use direct::*;

#[cfg(feature = "simulate")]
pub mod channel;
#[cfg(feature = "simulate")]
mod clock;
#[cfg(feature = "simulate")]
mod dice;
#[cfg(feature = "simulate")]
mod lock;
#[cfg(feature = "simulate")]
mod pool;
#[cfg(feature = "simulate")]
mod simulation;
#[cfg(feature = "simulate")]
mod thread;
#[cfg(feature = "simulate")]
mod trace;

#[cfg(feature = "simulate")]
pub use clock::{now, random_id, sleep};
#[cfg(feature = "simulate")]
pub use dice::Dice;
#[cfg(feature = "simulate")]
pub use lock::{Condvar, Mutex, MutexGuard, WaitTimeoutResult};
#[cfg(feature = "simulate")]
pub use pool::{Pool, with_pool};
#[cfg(feature = "simulate")]
pub use simulation::{Hang, is_simulated, note, pause, simulate};
#[cfg(feature = "simulate")]
pub use thread::{Scope, ScopedJoinHandle, scope};
#[cfg(feature = "simulate")]
pub use trace::{Event, Trace};
