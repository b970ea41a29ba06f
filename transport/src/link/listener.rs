//! Where peers connect to.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(unix)]
use super::unix;
use super::wake::{self, Waiter, Waker};
use super::{Link, tcp};
use crate::error::{Error, Result};

/// Accepts peers, on a Unix socket or a loopback TCP port. Made by [`tcp::listen`] and
/// [`unix::listen`](super::unix::listen); stops listening when it is dropped.
pub struct Listener {
    socket: Socket,
    local_addr: String,
    stop: Arc<Stop>,
    waiter: Waiter,
}

enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(unix::BoundSocket),
}

/// Ends [`Listener::accept`] from any thread.
#[derive(Clone)]
pub struct StopHandle {
    stop: Arc<Stop>,
}

struct Stop {
    stopped: AtomicBool,
    waker: Waker,
}

impl Listener {
    /// Waits for the next peer; `None` once it was stopped. Nothing is known of the peer yet: talk
    /// to it on another thread, beginning with [`handshake`](crate::handshake).
    ///
    /// # Errors
    ///
    /// [`Io`](crate::ErrorKind::Io): the system refused, such as for want of descriptors; a later
    /// call may go well.
    pub fn accept(&self) -> Result<Option<Link>> {
        let failed = |e| Error::io(format!("accept on {}", self.local_addr), e);
        while !self.stop.stopped.load(Ordering::Acquire) {
            match self.try_accept() {
                Ok(link) => return Ok(Some(link)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait().map_err(failed)?,
                // The peer, not this side, is at fault: it left before it was accepted.
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(None)
    }

    /// Where it listens: `tcp://IP:PORT`, with the port the system picked, or `unix://PATH`.
    #[must_use]
    pub fn local_addr(&self) -> &str {
        &self.local_addr
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle {
            stop: Arc::clone(&self.stop),
        }
    }

    pub(super) fn from_tcp(socket: TcpListener) -> io::Result<Self> {
        let local_addr = format!("tcp://{}", socket.local_addr()?);
        socket.set_nonblocking(true)?;
        Self::new(Socket::Tcp(socket), local_addr)
    }

    #[cfg(unix)]
    pub(super) fn from_unix(bound: unix::BoundSocket) -> io::Result<Self> {
        let local_addr = format!("unix://{}", bound.path.display());
        bound.socket.set_nonblocking(true)?;
        Self::new(Socket::Unix(bound), local_addr)
    }

    fn new(socket: Socket, local_addr: String) -> io::Result<Self> {
        let (waker, waiter) = wake::pair()?;
        let stop = Arc::new(Stop {
            stopped: AtomicBool::new(false),
            waker,
        });
        Ok(Self {
            socket,
            local_addr,
            stop,
            waiter,
        })
    }

    fn try_accept(&self) -> io::Result<Link> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                stream.set_nonblocking(false)?;
                tcp::link(stream, peer)
            }
            #[cfg(unix)]
            Socket::Unix(bound) => {
                let (stream, _) = bound.socket.accept()?;
                stream.set_nonblocking(false)?;
                unix::link(stream, &bound.path)
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => self.waiter.wait(socket),
            #[cfg(unix)]
            Socket::Unix(bound) => self.waiter.wait(&bound.socket),
        }
    }
}

impl StopHandle {
    /// Makes each call of [`Listener::accept`] return `None`, now and later. Links that were
    /// accepted live on.
    pub fn stop(&self) {
        self.stop.stopped.store(true, Ordering::Release);
        self.stop.waker.wake();
    }
}

fn is_gone(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
    )
}
