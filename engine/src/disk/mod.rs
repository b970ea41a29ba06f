//! Disks: what can be read ([`Source`]) and what can be changed ([`Target`]).

mod access;
mod chain;
mod create;
mod layers;
mod memory;
mod new_file;
mod on_medium;
mod open;
mod probe;
mod raw;
mod siblings;
pub mod vhd;
mod vhdx;

use std::fmt::Debug;
use std::ops::Range;

use serde::Serialize;

pub use access::{HostTarget, TargetAccess};
pub use create::{NewDisk, PendingDisk, create, create_child};
pub use layers::{ImageFile, Layer, Layers};
pub use memory::MemoryDisk;
pub use new_file::{HostNewFile, NewFile, Standing};
pub use open::{OpenOptions, open_source, open_target};
pub(crate) use open::{another_file, open_known_target};
pub use probe::{Format, probe};
pub use raw::RawDisk;
pub use vhd::VhdDisk;
pub use vhdx::VhdxDisk;

pub(crate) use chain::open_parents;
pub(crate) use create::Recipe;
pub(crate) use layers::{HostLayers, open_chain};
pub(crate) use open::refuse_same_file;
pub(crate) use probe::decide as decide_format;
pub(crate) use siblings::{children_of, find_children, refuse_children};
pub(crate) use vhdx::{
    convert as vhdx_error, convert_at as vhdx_error_at, convert_bare as vhdx_error_bare,
    open_images,
};

use crate::error::Result;
use crate::identity::Facts;
use crate::system::MediumAccess;
use crate::units::ByteOffset;

/// What a run of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that have to be read to be known. Also "in doubt".
    Data,
    /// Known to read as zeros.
    Zero,
    /// Nothing is stored; reads as zeros.
    Absent,
}

/// A run of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it holds.
    pub kind: ExtentKind,
    /// One past its last byte. The next run may be of the same kind.
    pub end: ByteOffset,
}

/// What a disk is, apart from its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskInfo {
    /// `raw`, `vhdx`, `vhd` ...
    pub format: String,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Logical sector in bytes; `None` where the format states none (raw).
    pub logical_sector_size: Option<u32>,
    /// Block size of the image format in bytes; `None` where it has none.
    pub image_block_size: Option<u32>,
    /// A text that changes when the image is replaced or, as far as its format tells, rewritten.
    pub identity: String,
    /// What is odd about the image and was got over, one line each.
    pub warnings: Vec<String>,
}

/// A readable disk. Methods take `&self` and run on many threads at once.
///
/// The content does not change while it is open for reading: the implementation holds a lock or a
/// snapshot.
pub trait Source: Send + Sync + Debug {
    /// What it is.
    fn info(&self) -> DiskInfo;

    /// Fills `buf` with the bytes from `at` on. The implementation checks the range; absent space
    /// gives zeros.
    ///
    /// # Errors
    /// `Io` with the offset, `Damaged` when the image turns out to be broken there.
    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()>;

    /// The run that holds `at`, which lies below the end of the disk. May be cut short, never says
    /// zero of data.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn extent_at(&self, at: ByteOffset) -> Result<Extent>;

    /// What tells the disk with this content from itself with any other, for whoever comes later;
    /// `None` where nothing does. Nobody can write while it is asked for: by the lock, and, of a
    /// [`Target`], after [`Target::close`].
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    fn facts(&self) -> Result<Option<Facts>> {
        Ok(None)
    }
}

/// A disk that can be changed.
///
/// Methods take `&self` and run on many threads at once. The implementation checks every range,
/// since a caller's check can be stale by now. A write that `read` sees is not yet durable.
pub trait Target: Source {
    /// Replaces the bytes from `at` on. Same bytes, same place: doing it twice is doing it once.
    /// Position and length are multiples of the sector, but for the end of a disk whose format has
    /// no sectors.
    ///
    /// # Errors
    /// `NoSpace`, `Io` with the offset.
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()>;

    /// Makes `range` read as zeros; may free its space.
    ///
    /// # Errors
    /// As [`Target::write`].
    fn zero(&self, range: Range<ByteOffset>) -> Result<()>;

    /// Turns space whose content the format leaves undefined, and which [`Source::read`] gives as
    /// zeros, into zeros for every reader; does nothing where the format knows no such space.
    /// Returns how many blocks of the image that were.
    ///
    /// # Errors
    /// As [`Target::write`].
    fn zero_undefined(&self) -> Result<u64>;

    /// Returns once all earlier writes survive a power cut. After an error the disk is poisoned:
    /// each later call fails, because a second try would hide what the first one lost.
    ///
    /// # Errors
    /// As [`Target::write`].
    fn flush(&self) -> Result<()>;

    /// Like [`Source::read`], but from the medium and not from a cache, as far as
    /// [`Target::medium`] says. Only bytes that were flushed are there.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()>;

    /// Where [`Target::read_back`] reads from.
    fn medium(&self) -> MediumAccess;

    /// A text that is another one once somebody else wrote to the disk; `None` where nobody can
    /// tell. Asked for after [`Target::close`], and before anything is written.
    ///
    /// # Errors
    /// `Io`.
    fn mark(&self) -> Result<Option<String>>;

    /// Flushes and leaves the image in order (a VHDX: log empty, space trimmed). Nothing may be
    /// written afterwards; what is read back then is what the next reader gets.
    ///
    /// # Errors
    /// As [`Target::write`]; `VerifyFailed` when the medium does not hold the image's structures.
    fn close(&self) -> Result<()>;
}
