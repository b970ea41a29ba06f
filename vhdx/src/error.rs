//! What went wrong, in which structure, at which byte of the file.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// Result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault it was, and so what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file does not begin like a VHDX at all.
    NotVhdx,
    /// Bytes of the image contradict the format or each other.
    Damaged,
    /// The file is shorter than its structures say.
    Truncated,
    /// The image may be right, but needs something this release does not do.
    Unsupported,
    /// The image is a differencing one, and its parent was not given.
    ParentNeeded,
    /// The parent given is not the one this image was made from, or has changed since.
    WrongParent,
    /// The caller passed a range, size or option that cannot be.
    InvalidArgument,
    /// The image was opened for reading only.
    ReadOnly,
    /// An earlier write or sync failed, so what is on disk is not known.
    Poisoned,
    /// The system refused; the source says why.
    Io,
}

/// An error: kind, what was being done, to which structure, where, and the system's reason.
///
/// Displayed as `op: structure at 0xoffset: detail`, without its source.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    op: Option<&'static str>,
    structure: Option<&'static str>,
    at: Option<u64>,
    detail: Cow<'static, str>,
    source: Option<io::Error>,
}

impl Error {
    /// Whose fault it was.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done, such as `open`, when known.
    pub fn op(&self) -> Option<&'static str> {
        self.0.op
    }

    /// Which structure of the format is meant, when known.
    pub fn structure(&self) -> Option<&'static str> {
        self.0.structure
    }

    /// Byte offset in the file (in the virtual disk for [`ErrorKind::InvalidArgument`]), when
    /// known.
    pub fn at(&self) -> Option<u64> {
        self.0.at
    }

    /// What was found, without operation, structure and offset.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    pub(crate) fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            op: None,
            structure: None,
            at: None,
            detail: detail.into(),
            source: None,
        }))
    }

    pub(crate) fn damaged(structure: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Damaged, detail).of(structure)
    }

    pub(crate) fn unsupported(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, detail)
    }

    pub(crate) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, detail)
    }

    /// A failed call of [`FileAt`](crate::FileAt). A read past the end means a truncated image.
    pub(crate) fn io(op: &'static str, source: io::Error) -> Self {
        let (kind, detail) = match source.kind() {
            io::ErrorKind::UnexpectedEof => (ErrorKind::Truncated, "file ends too early"),
            _ => (ErrorKind::Io, "input/output error"),
        };
        Self::new(kind, detail).during(op).caused_by(source)
    }

    /// Adds the reason of the system.
    pub(crate) fn caused_by(mut self, source: io::Error) -> Self {
        self.0.source = Some(source);
        self
    }

    /// Names the operation, unless a deeper layer did.
    pub(crate) fn during(mut self, op: &'static str) -> Self {
        self.0.op.get_or_insert(op);
        self
    }

    /// Names the structure, unless a deeper layer did.
    pub(crate) fn of(mut self, structure: &'static str) -> Self {
        self.0.structure.get_or_insert(structure);
        self
    }

    /// Names the offset, unless a deeper layer did.
    pub(crate) fn offset(mut self, at: u64) -> Self {
        self.0.at.get_or_insert(at);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = self.0.op {
            write!(f, "{op}: ")?;
        }
        match (self.0.structure, self.0.at) {
            (Some(structure), Some(at)) => write!(f, "{structure} at {at:#x}: ")?,
            (Some(structure), None) => write!(f, "{structure}: ")?,
            (None, Some(at)) => write!(f, "at {at:#x}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.0.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    // Goal: messages keep one shape. Method: print one of each shape.
    use super::*;
    use std::error::Error as _;

    #[test]
    fn shows_operation_structure_and_hex_offset() {
        let error = Error::damaged("BAT entry", "reserved bits set").offset(0x30_0010);
        assert_eq!(
            error.during("open").to_string(),
            "open: BAT entry at 0x300010: reserved bits set"
        );
    }

    #[test]
    fn leaves_the_source_to_the_caller() {
        let error = Error::io("read", io::Error::other("disk on fire")).of("header");
        assert_eq!(error.to_string(), "read: header: input/output error");
        assert_eq!(error.source().unwrap().to_string(), "disk on fire");
    }
}
