//! Unix sockets, on systems without them: each call says so.

use std::io;
use std::path::Path;

use super::{Link, Listener};
use crate::error::{Error, Result};

/// Fails.
///
/// # Errors
///
/// Always [`Io`](crate::ErrorKind::Io), from [`io::ErrorKind::Unsupported`].
pub fn connect(path: &Path) -> Result<Link> {
    Err(unsupported(path))
}

/// Fails.
///
/// # Errors
///
/// Always [`Io`](crate::ErrorKind::Io), from [`io::ErrorKind::Unsupported`].
pub fn listen(path: &Path) -> Result<Listener> {
    Err(unsupported(path))
}

fn unsupported(path: &Path) -> Error {
    let context = format!("use unix://{}", path.display());
    Error::io(context, io::ErrorKind::Unsupported.into())
}
