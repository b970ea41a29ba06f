//! What only one operating system has: locks, reads past the page cache, devices. Each system has a
//! twin file with the same functions; nothing outside this folder asks which system it is.

mod host_file;
mod own_file;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix as platform;
#[cfg(windows)]
use windows as platform;

pub use host_file::{Access, HostFile, MediumAccess};
pub(crate) use own_file::map_own_file;

/// Flushes the directory that holds `path`, so that a new or renamed entry survives a power cut.
///
/// # Errors
/// The system's error. Windows has no such call and needs none: its file systems journal names.
pub(crate) fn sync_directory_of(path: &std::path::Path) -> std::io::Result<()> {
    platform::sync_directory_of(path)
}
