//! Waits for a connection or for a stop, whichever comes first.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Ends the waits of its [`Waiter`].
pub(super) struct Waker {
    signal: UnixStream,
}

/// Waits on behalf of a listener.
pub(super) struct Waiter {
    signal: UnixStream,
}

pub(super) fn pair() -> io::Result<(Waker, Waiter)> {
    let (waker, waiter) = UnixStream::pair()?;
    waker.set_nonblocking(true)?;
    Ok((Waker { signal: waker }, Waiter { signal: waiter }))
}

impl Waker {
    pub(super) fn wake(&self) {
        // The byte is never read, so every later wait ends at once. A full pipe does as well.
        let _ = (&self.signal).write(&[0]);
    }
}

impl Waiter {
    /// Returns when `listener` may have a connection or the waker was used.
    pub(super) fn wait(&self, listener: &impl AsFd) -> io::Result<()> {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&self.signal, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
