//! One shape of error for the whole engine: kind, context, source.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use failback_transport as transport;

/// Result with the engine's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault it is, and so what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    Usage,
    /// Policy: the disks do not fit each other (length, sector size).
    GeometryMismatch,
    /// Policy: somebody else has the disk open.
    InUse,
    /// Policy: the disk must not be written.
    ReadOnly,
    /// Policy: the agent did not grant it.
    NotGranted,
    /// Policy: refused for another reason that the message names.
    Refused,
    /// The bytes on disk are not what the format demands.
    Damaged,
    /// Sound as far as it is known, but this release does not handle it.
    Unsupported,
    /// The peer went away, or could not be reached.
    PeerGone,
    /// The peer sent something that the protocol does not allow.
    Protocol,
    /// The system: reading or writing failed.
    Io,
    /// The system: no room is left.
    NoSpace,
    /// The caller cancelled.
    Cancelled,
    /// What was read back is not what was sent, or the roots differ.
    VerifyFailed,
    /// A defect of this program.
    Internal,
    /// A saved map that was believed is not what the disk holds: to be done again without it.
    MapRejected,
}

impl ErrorKind {
    /// Every kind; the position is its number on the wire, so new ones go to the end.
    const ALL: [Self; 16] = [
        Self::Usage,
        Self::GeometryMismatch,
        Self::InUse,
        Self::ReadOnly,
        Self::NotGranted,
        Self::Refused,
        Self::Damaged,
        Self::Unsupported,
        Self::PeerGone,
        Self::Protocol,
        Self::Io,
        Self::NoSpace,
        Self::Cancelled,
        Self::VerifyFailed,
        Self::Internal,
        Self::MapRejected,
    ];

    /// The name used in reports, events and scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::GeometryMismatch => "geometry_mismatch",
            Self::InUse => "in_use",
            Self::ReadOnly => "read_only",
            Self::NotGranted => "not_granted",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::PeerGone => "peer_gone",
            Self::Protocol => "protocol",
            Self::Io => "io",
            Self::NoSpace => "no_space",
            Self::Cancelled => "cancelled",
            Self::VerifyFailed => "verify_failed",
            Self::Internal => "internal",
            Self::MapRejected => "map_rejected",
        }
    }

    /// The kind of that name; a name of a newer release is some failure of the system.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.unwrap_or(Self::Io)
    }

    /// The kind of a failed operation of the system.
    pub(crate) fn of_io(source: &io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => Self::Io,
        }
    }

    /// Number of this kind in a failure message.
    #[must_use]
    pub(crate) fn wire(self) -> u16 {
        let at = Self::ALL
            .iter()
            .position(|kind| *kind == self)
            .expect("ALL lists every kind");
        u16::try_from(at).expect("there are few kinds")
    }

    /// Kind with that number. A number of a newer release is some failure of the peer's system.
    #[must_use]
    pub(crate) fn from_wire(number: u16) -> Self {
        Self::ALL
            .get(usize::from(number))
            .copied()
            .unwrap_or(Self::Io)
    }
}

/// What the caller can ask for instead, where he means it. How that is said to a user is up to the
/// program that he uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// [`OpenOptions::skip_sibling_check`](crate::disk::OpenOptions::skip_sibling_check).
    SkipSiblingCheck,
    /// [`OpenOptions::format`](crate::disk::OpenOptions::format) of the disk that is to be made.
    NameFormat,
    /// [`Format::Raw`](crate::disk::Format::Raw) as the format of a file that is there: its own
    /// bytes.
    OpenAsRaw,
    /// [`accept`](crate::operation::accept) of the new disk: the old one cannot be put together
    /// again.
    AcceptNew,
}

/// What failed, where, and why.
///
/// `Display` gives one line without the source; [`Error::chain`] adds the sources.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    is_from_peer: bool,
    remedy: Option<Remedy>,
}

impl Error {
    /// An error of `kind`; `message` is one lower-case line.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            source: None,
            is_from_peer: false,
            remedy: None,
        }
    }

    /// A failed operation of the system; a full disk and a read-only one get their own kinds.
    pub fn io(source: io::Error, message: impl Into<String>) -> Self {
        let kind = ErrorKind::of_io(&source);
        Self {
            source: Some(Box::new(source)),
            ..Self::new(kind, message)
        }
    }

    /// The same with the file it concerns, unless one is named already.
    #[must_use]
    pub fn path(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }

    /// The same with the byte offset in that file or disk, unless one is named already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset.get_or_insert(offset);
        self
    }

    /// The same with the error underneath.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The same with a way out.
    #[must_use]
    pub(crate) fn remedy_is(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// What can be asked for instead, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<Remedy> {
        self.remedy
    }

    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file it concerns, where there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The byte offset it concerns, where there is one.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// What failed, without file and offset.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same call may succeed later without anything being changed by hand.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::PeerGone | ErrorKind::InUse | ErrorKind::NoSpace
        )
    }

    /// Whether this is the peer's account of what failed on its side.
    #[must_use]
    pub fn is_from_peer(&self) -> bool {
        self.is_from_peer
    }

    /// Of the errors of both sides of a session, the one that began it: a side that failed by
    /// itself knows more than one that was told, and one that was told more than one whose link
    /// broke.
    #[must_use]
    pub(crate) fn first_cause(a: Self, b: Self) -> Self {
        let rank = |error: &Self| match error.kind {
            ErrorKind::Cancelled => 3,
            ErrorKind::PeerGone => 2,
            _ => u8::from(error.is_from_peer),
        };
        if rank(&b) < rank(&a) { b } else { a }
    }

    /// One line: this error and all its sources, control characters escaped.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            line.push_str(": ");
            line.push_str(&source.to_string());
            next = source.source();
        }
        one_line(&line)
    }

    /// The failure message that tells the peer.
    pub(crate) fn to_wire(&self) -> transport::Failure {
        let mut message = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            message.push_str(": ");
            message.push_str(&source.to_string());
            next = source.source();
        }
        transport::Failure {
            kind: self.kind.wire(),
            message: cut(&message, FAILURE_TEXT_MAX),
            // A path of this host is none of the peer's business: it knows the disk by its grant.
            path: String::new(),
            offset: self.offset,
        }
    }

    /// The peer's own account of why it ended the session.
    pub(crate) fn from_wire(failure: &transport::Failure, peer: &str) -> Self {
        let mut error = Self::new(
            ErrorKind::from_wire(failure.kind),
            one_line(&format!("peer {peer}: {}", failure.message)),
        );
        error.offset = failure.offset;
        error.is_from_peer = true;
        error
    }
}

impl Error {
    /// An error of the transport in the engine's words.
    #[must_use]
    pub fn from_transport(error: transport::Error) -> Self {
        use transport::ErrorKind as From;
        let kind = match error.kind() {
            From::Protocol | From::Version => ErrorKind::Protocol,
            From::Refused => ErrorKind::Refused,
            // Our own message broke a limit.
            From::Invalid => ErrorKind::Internal,
            _ => ErrorKind::PeerGone,
        };
        Self::new(kind, "link to the peer").caused_by(error)
    }
}

/// [`Error::from_transport`] for `map_err`.
pub(crate) fn peer_error(error: transport::Error) -> Error {
    Error::from_transport(error)
}

/// Bytes of an error text on the wire.
const FAILURE_TEXT_MAX: usize = 2048;

/// At most `max` bytes of `text`, cut between characters.
fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Foreign text (peer, image, path) must not move the cursor of a terminal or forge a line of a
/// log.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " at {offset:#x}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| {
            let plain: &(dyn std::error::Error + 'static) = source.as_ref();
            plain
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: one line with file, offset and cause. Method: an error with all parts and a hostile
    // path.
    #[test]
    fn chain_is_one_line_and_names_everything() {
        let error = Error::io(io::Error::other("input/output error"), "read block")
            .path(Path::new("web\n.vhdx"))
            .at(0x30_0010);
        assert_eq!(
            error.chain(),
            "web\\n.vhdx: read block at 0x300010: input/output error"
        );
    }

    // Goal: a full disk is told apart from other failures. Method: the system's own error number.
    #[test]
    fn no_space_has_its_own_kind() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Error::io(full, "write").kind(), ErrorKind::NoSpace);
    }

    // Goal: kinds survive the wire. Method: every kind there and back.
    #[test]
    fn kinds_round_trip_over_the_wire() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_wire(kind.wire()), kind);
        }
        assert_eq!(ErrorKind::from_wire(60_000), ErrorKind::Io);
    }
}
