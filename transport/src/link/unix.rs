//! Unix sockets: for peers on this host that may open a file.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as listen_on, socket_with,
};

use super::{Link, Listener, socket};
use crate::error::{Error, Result};

/// Connections that wait to be accepted; the hello limit bounds how long they may be kept.
const BACKLOG: i32 = 64;

socket::socket!(UnixStream);

/// Connects to the socket at `path`.
///
/// # Errors
///
/// [`Closed`](crate::ErrorKind::Closed): nobody listens. [`Io`](crate::ErrorKind::Io): there is no
/// socket, it may not be opened, or the path is too long for one.
pub fn connect(path: &Path) -> Result<Link> {
    UnixStream::connect(path)
        .and_then(|stream| link(stream, path))
        .map_err(|e| Error::io(format!("connect to unix://{}", path.display()), e))
}

/// Listens at `path`, with mode 0600 from the first moment. A socket that is there is replaced when
/// nobody answers on it; any other file is left alone. The file is removed when the listener is
/// dropped, unless another took its place.
///
/// # Errors
///
/// [`Io`](crate::ErrorKind::Io): somebody listens there, something else is there, or the system
/// refused.
pub fn listen(path: &Path) -> Result<Listener> {
    bind_private(path)
        .or_else(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind_private(path)
            }
            _ => Err(e),
        })
        .and_then(Listener::from_unix)
        .map_err(|e| Error::io(format!("listen on unix://{}", path.display()), e))
}

/// The link over a stream that was connected or accepted.
pub(super) fn link(stream: UnixStream, path: &Path) -> io::Result<Link> {
    socket::link(stream, format!("unix://{}", path.display()))
}

/// A listening socket and the file it made.
pub(super) struct BoundSocket {
    pub(super) socket: UnixListener,
    pub(super) path: PathBuf,
    /// Device and inode of the file, to remove no other one.
    file: (u64, u64),
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // An error leaves a stale socket, which the next listener replaces.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_private(path: &Path) -> io::Result<BoundSocket> {
    let flags = SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file that `bind` makes gets the mode of the socket: nobody else connects in between.
    fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    let mode = fs::symlink_metadata(path)?.mode();
    if mode & 0o077 != 0 {
        fs::remove_file(path)?;
        return Err(io::Error::other(
            "the system gives the socket a wider mode than 0600",
        ));
    }
    let file = identity(path)?;
    listen_on(&fd, BACKLOG)?;
    Ok(BoundSocket {
        socket: fd.into(),
        path: path.to_owned(),
        file,
    })
}

/// Removes a socket that nobody answers on. Two listeners that start at once on the same stale
/// socket may both get here; one of them then serves a socket without a name.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why.to_owned()));
    let file = identity(path)?;
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("a file that is no socket is in the way");
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(_) | Err(_) => return in_use("somebody listens there"),
    }
    if identity(path)? != file {
        return in_use("somebody else took the place");
    }
    fs::remove_file(path)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
