//! Links: two ordered byte streams to a peer, nothing else.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod bundle;
mod listener;
pub mod loopback;
mod shaped;
mod socket;
pub mod tcp;
#[cfg(unix)]
pub mod unix;
#[cfg(not(unix))]
#[path = "link/unix_absent.rs"]
pub mod unix;
#[cfg(unix)]
mod wake;
#[cfg(not(unix))]
#[path = "link/wake_by_clock.rs"]
mod wake;

pub use bundle::{LINKS_MAX, bundle};
pub use listener::{Listener, StopHandle};
pub use shaped::{DELAY_MAX, RATE_MIN, Shape, shaped};

/// A peer must have said hello within this time.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// A peer that sent nothing for this long is given up: six keepalives were missed.
pub const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// A peer that took nothing for this long is given up. Longer than [`IDLE_LIMIT`]: a target that
/// waits for its disk takes nothing and still sends keepalives.
pub const STALL_LIMIT: Duration = Duration::from_secs(300);

/// The bytes to the peer.
///
/// Dropping it tells the peer that no more bytes come.
pub trait LinkSender: Send {
    /// Hands over all bytes of all parts, in order; the peer may see them split anywhere. Blocks
    /// while the peer takes nothing. When it returns, the bytes are on their way, not yet received.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` or `ConnectionReset` when either side closed the link, `TimedOut` when the peer
    /// took nothing for [`STALL_LIMIT`]. Some of the bytes may have gone; the link is of no more
    /// use.
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()>;
}

/// The bytes from the peer.
pub trait LinkReceiver: Send {
    /// Waits for the next bytes, at least one, split anywhere. `None`: the peer closed in order, or
    /// this side closed.
    ///
    /// # Errors
    ///
    /// `TimedOut` or `WouldBlock` when nothing came for the idle limit; a later call may go well.
    /// `ConnectionReset` when the peer is gone without a close.
    fn recv(&mut self) -> io::Result<Option<Bytes>>;

    /// Sets how long [`Self::recv`] waits; [`HANDSHAKE_LIMIT`] on a new link. Never zero.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()>;

    /// The same bytes as a stream, for links that would else copy them once more: the rest of a
    /// long payload is then read into its own place. Reads wait and fail as [`Self::recv`] does;
    /// 0 bytes: closed. `None` for links that hand over memory, and for decorators, which must see
    /// every byte in [`Self::recv`].
    fn stream(&mut self) -> Option<&mut dyn Read> {
        None
    }
}

/// Ends a link from any thread.
pub trait LinkCloser: Send + Sync {
    /// Both halves on this side stop at once, also when they wait; the peer sees the end. Bytes on
    /// their way may be lost. A second call does nothing.
    fn close(&self);
}

/// A connection to a peer.
pub struct Link {
    /// Bytes to the peer.
    pub sender: Box<dyn LinkSender>,
    /// Bytes from the peer.
    pub receiver: Box<dyn LinkReceiver>,
    /// Ends both.
    pub closer: Arc<dyn LinkCloser>,
    /// The bytes never leave this process: payloads are not summed.
    pub trusted_memory: bool,
    /// Where the peer is, for reports.
    pub peer: String,
}

impl Link {
    /// Sets how long the receiver waits; [`HANDSHAKE_LIMIT`] on a new link.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.receiver.set_idle_limit(limit)
    }
}
