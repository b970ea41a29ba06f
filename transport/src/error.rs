//! The one error of this crate: kind, context, source.

use std::{error, fmt, io, result};

/// What calls of this crate return.
pub type Result<T> = result::Result<T, Error>;

/// Whose fault an [`Error`] was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer is gone, or nobody answers at its address.
    Closed,
    /// The peer said nothing, took nothing, or was too slow, for the whole of a time limit.
    TimedOut,
    /// The peer sent bytes that are no valid message at this place.
    Protocol,
    /// The two sides have no protocol version in common.
    Version,
    /// An address that plain connections may not use.
    Refused,
    /// The caller asked to send a message that breaks a limit of the protocol.
    Invalid,
    /// The system refused a call.
    Io,
}

/// A failed call: what was tried, whose fault it was, and the error below it.
///
/// `Display` prints the context without the source. Text that came from a peer is escaped.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    /// Whose fault it was.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call on a new link may go well: the peer went away, or was silent.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Closed | ErrorKind::TimedOut)
    }

    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// Sorts a system error: an end of the connection and an idle limit are no fault of the system.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::TimedOut,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => ErrorKind::Closed,
            // Of links that have a format of their own.
            io::ErrorKind::InvalidData => ErrorKind::Protocol,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
