//! Windows: share modes as locks, unbuffered reads.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::host_file::FileSystemTraits;
use super::{Access, FileStamp, MediumAccess};

const FILE_SHARE_READ: u32 = 1;
const FILE_SHARE_ALL: u32 = 7;
/// Opens a link itself.
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const FILE_FLAG_NO_BUFFERING: u32 = 0x2000_0000;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_LOCK_VIOLATION: i32 = 33;

/// The share mode is the lock: taken by the open itself, gone with the last handle. A writer shares
/// reading, as the engine itself opens a second, unbuffered handle for the proof; a second writer,
/// or a program that may write, is refused.
pub(super) fn open(path: &Path, access: Access, follows_links: bool) -> io::Result<File> {
    let share = if access == Access::Inspect {
        FILE_SHARE_ALL
    } else {
        FILE_SHARE_READ
    };
    let flags = match follows_links {
        true => 0,
        false => FILE_FLAG_OPEN_REPARSE_POINT,
    };
    // A link that is opened itself is no regular file, which is refused later.
    OpenOptions::new()
        .read(true)
        .write(matches!(access, Access::Write | Access::Stage))
        .share_mode(share)
        .custom_flags(flags)
        .open(path)
}

/// The same handle: share modes let no second one be opened for writing. So here the handle of a
/// staged target can write from the start, though nothing does before its time.
pub(super) fn reopen_for_writing(file: &File) -> io::Result<File> {
    file.try_clone()
}

/// New files take the rights of their directory.
pub(super) fn keep_private(_options: &mut OpenOptions) {}

pub(super) fn keep_directory_private(_builder: &mut DirBuilder) {}

/// Devices are not opened here.
pub(super) fn sectors_written(_metadata: &Metadata) -> Option<u64> {
    None
}

/// Windows has no such id.
pub(super) fn boot_id() -> Option<String> {
    None
}

/// Not asked for here: `std` cannot.
pub(super) fn may_be_running(_pid: u32) -> bool {
    true
}

/// Not asked for here: `std` cannot.
pub(super) fn room(_file: &File) -> io::Result<Option<u64>> {
    Ok(None)
}

pub(super) fn lock_staged(_file: &File) -> io::Result<bool> {
    Ok(true)
}

pub(super) fn hand_lock_over(_staged: &File, _writable: &File) -> io::Result<bool> {
    Ok(true)
}

/// Rights are those of the directory above.
pub(super) fn is_private(_metadata: &Metadata) -> bool {
    true
}

pub(super) fn is_kept_from_others(_metadata: &Metadata) -> bool {
    true
}

/// Any file may be tried.
pub(super) fn may_execute(_path: &Path) -> bool {
    true
}

/// The attribute is looked at elsewhere; rights show when it is opened.
pub(super) fn check_writable(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Not asked for here: `std` cannot.
pub(super) fn may_write(_path: &Path) -> bool {
    true
}

pub(super) fn is_block_device(_metadata: &Metadata) -> bool {
    false
}

/// `std` has no stable file id on Windows; share modes already refuse a file opened as source and
/// target at once.
pub(super) fn file_id(_metadata: &Metadata) -> Option<(u64, u64)> {
    None
}

pub(super) fn identity(id: &str, metadata: &Metadata) -> String {
    let written = metadata.last_write_time();
    format!("{id}:{:x}:{written:x}", metadata.len())
}

/// `std` has no stable file id on Windows; the time it was made has to do.
pub(super) fn lasting_id(metadata: &Metadata) -> String {
    format!("{:x}", metadata.creation_time())
}

/// Nothing is known to be a device there.
pub(super) fn device_id(metadata: &Metadata, _len: u64) -> String {
    lasting_id(metadata)
}

pub(super) fn content_mark(id: &str, metadata: &Metadata) -> String {
    identity(id, metadata)
}

/// `std` tells neither a file's id nor the time of its last change there, but that of its last
/// write, which anybody can set back.
pub(super) fn stamp(_metadata: &Metadata) -> Option<FileStamp> {
    None
}

/// Not asked for here: `std` cannot. More than one keeps a file from being replaced.
pub(super) fn link_count(_metadata: &Metadata) -> u64 {
    u64::MAX
}

/// Files are no mount points there.
pub(super) fn is_mount_point(_path: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Windows has no such call.
pub(super) fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// ReFS could; `std` cannot.
pub(super) fn clone_file(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether an error of [`clone_file`] says that there are no clones.
pub(super) fn is_no_clone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

pub(super) fn may_clone(_path: &Path) -> bool {
    false
}

pub(super) fn allocated_len(metadata: &Metadata) -> u64 {
    metadata.len()
}

pub(super) fn lock_shared(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// Nothing is locked but by being open.
pub(super) fn unlock(_file: &File) {}

pub(super) fn lock_exclusive(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// By name, as no handle can be reopened here; the share mode of the first handle keeps the name on
/// this file.
pub(super) fn open_direct(_file: &File, path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .share_mode(FILE_SHARE_ALL)
        .custom_flags(FILE_FLAG_NO_BUFFERING)
        .open(path)
}

pub(super) fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    file.seek_read(buf, at)
}

pub(super) fn drop_cache(_file: &File, _at: u64, _len: u64) {}

pub(super) fn start_write_back(_file: &File, _at: u64, _len: u64) {}

pub(super) fn reserve(_file: &File, _at: u64, _len: u64) {}

pub(super) fn write_through(_file: &File, _at: u64, _data: &[u8]) -> io::Result<usize> {
    Ok(0)
}

pub(super) fn traits_of(_file: &File) -> FileSystemTraits {
    FileSystemTraits::default()
}

/// Local volumes are assumed; a share is not told apart here yet (`unverified`: there is no Windows
/// to try it on).
pub(super) fn medium_access(_file: &File) -> MediumAccess {
    MediumAccess::Medium
}

pub(super) fn is_sharing_violation(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION)
    )
}

pub(super) fn sync_directory_of(_path: &Path) -> io::Result<()> {
    Ok(())
}
