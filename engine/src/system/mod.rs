//! What only one operating system has: locks, reads past the page cache, devices. Each system has a
//! twin file with the same functions; nothing outside this folder asks which system it is.

mod host_file;
mod own_file;
mod past_cache;
mod replace;
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
pub(crate) use past_cache::PastCache;
pub(crate) use replace::{
    clone_bytes, exchange, give_name, is_mount_point, make_file, open_made_file, remove_file,
    try_clone, try_exchange,
};

/// Flushes the directory that holds `path`, so that a new or renamed entry survives a power cut.
///
/// # Errors
/// The system's error. Windows has no such call and needs none: its file systems journal names.
pub(crate) fn sync_directory_of(path: &std::path::Path) -> std::io::Result<()> {
    platform::sync_directory_of(path)
}

/// Makes a directory, and what is missing above it, for its owner alone.
///
/// # Errors
/// The system's error.
pub(crate) fn create_private_directories(path: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    platform::keep_directory_private(&mut builder);
    builder.create(path)
}

/// A file that these options make is for its owner alone.
pub(crate) fn keep_private(options: &mut std::fs::OpenOptions) {
    platform::keep_private(options);
}

/// Whether `path` is a block device.
pub(crate) fn is_device(path: &std::path::Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| platform::is_block_device(&metadata))
}

/// Asks the system to read from the medium again what it has of `file` in memory.
pub(crate) fn forget_cache(file: &std::fs::File) {
    platform::drop_cache(file, 0, 0);
}
