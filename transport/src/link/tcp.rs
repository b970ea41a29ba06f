//! Plain TCP, on loopback addresses only: nothing else keeps others from reading it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

use super::{HANDSHAKE_LIMIT, Link, Listener, socket};
use crate::error::{Error, ErrorKind, Result};

/// Connects to `IP:PORT`, with an IP of this host's loopback, or `localhost:PORT`.
///
/// # Errors
///
/// [`ErrorKind::Refused`]: another address; no name but `localhost` is looked up.
/// [`ErrorKind::Closed`]: nobody listens. [`ErrorKind::TimedOut`]: no answer within
/// [`HANDSHAKE_LIMIT`]. [`ErrorKind::Io`]: the system refused.
pub fn connect(addr: &str) -> Result<Link> {
    let context = || format!("connect to tcp://{}", addr.escape_debug());
    let mut last = None;
    for candidate in loopback_addrs(addr)? {
        let link = TcpStream::connect_timeout(&candidate, HANDSHAKE_LIMIT)
            .and_then(|stream| link(stream, candidate));
        match link {
            Ok(link) => return Ok(link),
            Err(e) => last = Some(e),
        }
    }
    Err(Error::io(
        context(),
        last.unwrap_or_else(|| io::ErrorKind::NotFound.into()),
    ))
}

/// Listens on `IP:PORT` as for [`connect`]; port 0: the system picks one, see
/// [`Listener::local_addr`].
///
/// # Errors
///
/// [`ErrorKind::Refused`]: not a loopback address. [`ErrorKind::Io`]: the system refused, or the
/// port is in use.
pub fn listen(addr: &str) -> Result<Listener> {
    let context = || format!("listen on tcp://{}", addr.escape_debug());
    let addrs = loopback_addrs(addr)?;
    TcpListener::bind(&addrs[..])
        .and_then(Listener::from_tcp)
        .map_err(|e| Error::io(context(), e))
}

/// The link over a stream that was connected or accepted.
pub(super) fn link(stream: TcpStream, peer: SocketAddr) -> io::Result<Link> {
    stream.set_nodelay(true)?;
    socket::link(stream, format!("tcp://{peer}"))
}

/// The addresses meant by `addr`: at least one, all loopback.
fn loopback_addrs(addr: &str) -> Result<Vec<SocketAddr>> {
    let refused = |why: &str| {
        let context = format!("tcp://{}: {why}", addr.escape_debug());
        Error::new(ErrorKind::Refused, context)
    };
    if let Ok(literal) = addr.parse::<SocketAddr>() {
        return if is_loopback(literal.ip()) {
            Ok(vec![literal])
        } else {
            Err(refused("plain TCP is for loopback addresses only"))
        };
    }
    let port = addr
        .strip_prefix("localhost:")
        .and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| refused("neither a loopback IP:PORT nor localhost:PORT"))?;
    let found = ("localhost", port)
        .to_socket_addrs()
        .map_err(|e| Error::io("look up localhost", e));
    let addrs: Vec<_> = found?.filter(|found| is_loopback(found.ip())).collect();
    if addrs.is_empty() {
        return Err(refused("localhost is no loopback address on this host"));
    }
    Ok(addrs)
}

/// An IPv4 address written as IPv6 is refused: it is not worth a rule of its own.
fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}
