//! Waits for a connection or for a stop where the system cannot wait for both: looks often enough.

use std::io;
use std::thread;
use std::time::Duration;

/// How long a connection or a stop may stay unseen.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Does nothing: the listener looks by itself.
pub(super) struct Waker;

/// Waits on behalf of a listener.
pub(super) struct Waiter;

pub(super) fn pair() -> io::Result<(Waker, Waiter)> {
    Ok((Waker, Waiter))
}

impl Waker {
    pub(super) fn wake(&self) {}
}

impl Waiter {
    /// Returns after a short while, whether there is a connection or not.
    pub(super) fn wait<L>(&self, _listener: &L) -> io::Result<()> {
        thread::sleep(LOOK_EVERY);
        Ok(())
    }
}
