//! What TCP and Unix sockets have in common.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{HANDSHAKE_LIMIT, Link, LinkCloser, LinkReceiver, LinkSender, STALL_LIMIT};
use crate::buffer::RecycledBuffers;

/// Bytes of one read: many small frames, or a good part of a block.
const RECV_LEN: usize = 256 << 10;

/// Bytes of the first read after a payload was read straight into its place: most likely the next
/// payload follows, and what of it comes with this read is copied twice.
const RECV_SHORT_LEN: usize = 8 << 10;

/// A read of at most this many bytes is copied out, so that it does not keep the whole buffer.
const RECV_COPY_MAX: usize = 32 << 10;

/// Parts of one write: more than a coalesced batch has as a rule, and below what systems allow.
const PARTS_PER_WRITE: usize = 256;

/// A connected stream socket that several threads use through shared references.
pub(super) trait Socket: Send + Sync + 'static {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn set_read_timeout(&self, limit: Duration) -> io::Result<()>;
    fn set_write_timeout(&self, limit: Duration) -> io::Result<()>;
}

macro_rules! socket {
    ($stream:ty) => {
        impl $crate::link::socket::Socket for $stream {
            fn read(&self, buf: &mut [u8]) -> ::std::io::Result<usize> {
                ::std::io::Read::read(&mut &*self, buf)
            }

            fn write_vectored(&self, parts: &[::std::io::IoSlice<'_>]) -> ::std::io::Result<usize> {
                ::std::io::Write::write_vectored(&mut &*self, parts)
            }

            fn shutdown(&self, how: ::std::net::Shutdown) -> ::std::io::Result<()> {
                <$stream>::shutdown(self, how)
            }

            fn set_read_timeout(&self, limit: ::std::time::Duration) -> ::std::io::Result<()> {
                <$stream>::set_read_timeout(self, Some(limit))
            }

            fn set_write_timeout(&self, limit: ::std::time::Duration) -> ::std::io::Result<()> {
                <$stream>::set_write_timeout(self, Some(limit))
            }
        }
    };
}
#[cfg(unix)]
pub(super) use socket;

socket!(TcpStream);

/// The link over a connected socket.
pub(super) fn link(socket: impl Socket, peer: String) -> io::Result<Link> {
    socket.set_read_timeout(HANDSHAKE_LIMIT)?;
    socket.set_write_timeout(STALL_LIMIT)?;
    let socket = Arc::new(socket);
    Ok(Link {
        closer: Arc::new(SocketCloser {
            socket: Arc::downgrade(&socket),
        }),
        sender: Box::new(SocketSender {
            socket: Arc::clone(&socket),
        }),
        receiver: Box::new(SocketReceiver {
            socket,
            buffers: RecycledBuffers::default(),
            spare: None,
            after_direct: false,
        }),
        trusted_memory: false,
        peer,
    })
}

struct SocketSender<S: Socket> {
    socket: Arc<S>,
}

impl<S: Socket> LinkSender for SocketSender<S> {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        for batch in parts.chunks(PARTS_PER_WRITE) {
            let mut slices: Vec<_> = batch.iter().map(|part| IoSlice::new(part)).collect();
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match self.socket.write_vectored(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(len) => IoSlice::advance_slices(&mut rest, len),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

impl<S: Socket> Drop for SocketSender<S> {
    fn drop(&mut self) {
        // An error means that the connection is gone already.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

struct SocketReceiver<S: Socket> {
    socket: Arc<S>,
    buffers: RecycledBuffers,
    /// A buffer of at least [`RECV_LEN`] that nobody has a slice of.
    spare: Option<BytesMut>,
    /// The last read was through [`LinkReceiver::stream`].
    after_direct: bool,
}

impl<S: Socket> LinkReceiver for SocketReceiver<S> {
    fn recv(&mut self) -> io::Result<Option<Bytes>> {
        let len_max = if self.after_direct {
            RECV_SHORT_LEN
        } else {
            RECV_LEN
        };
        let mut buf = self
            .spare
            .take()
            .unwrap_or_else(|| self.buffers.take(RECV_LEN));
        let read = read_all_signals(&*self.socket, &mut buf[..len_max]);
        let len = *read.as_ref().unwrap_or(&0);
        if len > RECV_COPY_MAX {
            self.after_direct = false;
            return Ok(Some(self.buffers.hand_out(buf, len)));
        }
        let copy = (len > 0).then(|| Bytes::copy_from_slice(&buf[..len]));
        self.spare = Some(buf);
        self.after_direct = false;
        read.map(|_| copy)
    }

    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(limit)
    }

    fn stream(&mut self) -> Option<&mut dyn Read> {
        Some(self)
    }
}

impl<S: Socket> Read for SocketReceiver<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.after_direct = true;
        read_all_signals(&*self.socket, buf)
    }
}

fn read_all_signals(socket: &impl Socket, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

impl<S: Socket> Drop for SocketReceiver<S> {
    fn drop(&mut self) {
        // An error means that the connection is gone already.
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

/// Holds no reference that would keep the connection open after both halves are dropped.
struct SocketCloser<S: Socket> {
    socket: Weak<S>,
}

impl<S: Socket> LinkCloser for SocketCloser<S> {
    fn close(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // An error means that the connection is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
