//! What only one operating system has: locks, reads past the page cache, devices. Each system has a
//! twin file with the same functions; nothing outside this folder asks which system it is.

#[cfg(unix)]
mod device_name;
mod extents;
mod host_file;
mod own_file;
mod past_cache;
mod replace;
#[cfg(unix)]
mod unix;
mod unsynced;
#[cfg(windows)]
mod windows;
mod write_back;

#[cfg(unix)]
use unix as platform;
#[cfg(windows)]
use windows as platform;

pub(crate) use extents::{FilePlace, FileRun};
pub use host_file::{Access, FileStamp, HostFile, MediumAccess};
pub(crate) use own_file::map_own_file;
pub(crate) use past_cache::PastCache;
pub(crate) use replace::{
    clone_bytes, exchange, give_name, is_mount_point, is_no_clone, make_file, make_private_clone,
    may_clone, open_made_file, probe_beside, remove_file, try_clone, try_exchange,
};

/// Flushes the directory that holds `path`, so that a new or renamed entry survives a power cut.
///
/// # Errors
/// The system's error. Windows has no such call and needs none: its file systems journal names.
pub(crate) fn sync_directory_of(path: &std::path::Path) -> std::io::Result<()> {
    platform::sync_directory_of(path)
}

/// Makes an empty file that survives a power cut; one that is there is emptied.
///
/// # Errors
/// The system's error.
pub(crate) fn create_marker(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::File::create(path)?.sync_all()?;
    sync_directory_of(path)
}

/// Makes a directory, and what is missing above it, for its owner alone. All names that are new
/// survive a power cut.
///
/// # Errors
/// The system's error.
pub(crate) fn create_private_directories(path: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    platform::keep_directory_private(&mut builder);
    let new = missing(path);
    builder.create(path)?;
    new.into_iter().try_for_each(sync_directory_of)
}

/// The directories that are to be made, the last one first.
fn missing(path: &std::path::Path) -> Vec<&std::path::Path> {
    let is_free =
        |path: &&std::path::Path| !path.as_os_str().is_empty() && path.symlink_metadata().is_err();
    path.ancestors().take_while(is_free).collect()
}

/// Whether the directory at `path` is one, belongs to this user, and is nobody else's business.
///
/// # Errors
/// The system's error.
pub(crate) fn is_private_directory(path: &std::path::Path) -> std::io::Result<bool> {
    let metadata = path.symlink_metadata()?;
    Ok(metadata.is_dir() && platform::is_private(&metadata))
}

/// Removes such a file, so that no power cut brings it back; one that is gone is gone.
///
/// # Errors
/// The system's error.
pub(crate) fn remove_marker(path: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_directory_of(path)),
    }
}

/// Gives such a file another name, in one step, in place of whatever has that: a power cut leaves
/// one of the two. Whether there was one.
///
/// # Errors
/// The system's error.
pub(crate) fn rename_marker(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<bool> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        renamed => renamed.and_then(|()| sync_directory_of(to)).map(|()| true),
    }
}

/// Whether `path` is a directory that belongs to this user or to root, and that nobody else can
/// write to.
///
/// # Errors
/// The system's error.
pub(crate) fn is_kept_from_others(path: &std::path::Path) -> std::io::Result<bool> {
    let metadata = path.symlink_metadata()?;
    Ok(metadata.is_dir() && platform::is_kept_from_others(&metadata))
}

/// Whether an open file belongs to this user, and is nobody else's business.
///
/// # Errors
/// The system's error.
pub(crate) fn is_private_file(file: &std::fs::File) -> std::io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && platform::is_private(&metadata))
}

/// Whether an open file is the one that has this name now. Where the system does not tell files
/// apart, a file that is open cannot lose its name either.
///
/// # Errors
/// The system's error.
pub(crate) fn is_at(file: &std::fs::File, path: &std::path::Path) -> std::io::Result<bool> {
    let (open, named) = (file.metadata()?, path.symlink_metadata()?);
    Ok(platform::file_id(&open) == platform::file_id(&named))
}

/// A file that these options make is for its owner alone; a link is not followed.
pub(crate) fn keep_private(options: &mut std::fs::OpenOptions) {
    platform::keep_private(options);
}

/// Whether `path` is a file that this user may run.
pub(crate) fn is_executable(path: &std::path::Path) -> bool {
    path.is_file() && platform::may_execute(path)
}

/// Whether two paths lead to one file, also by two names of it. What is not there is no file.
pub(crate) fn is_same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => {
            let id = platform::file_id(&a);
            id.is_some() && id == platform::file_id(&b)
        }
        _ => false,
    }
}

/// Whether `path` is a block device.
pub(crate) fn is_device(path: &std::path::Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| platform::is_block_device(&metadata))
}

/// Bytes that the file system has left where `path` is, or is to be; `None` where it does not say.
pub(crate) fn free_beside(path: &std::path::Path) -> Option<u64> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(std::path::Path::new("."))).ok()?;
    platform::room(&folder).ok()?
}

/// Whether this user may write to a file or directory, as far as that can be told without doing so.
pub(crate) fn may_write(path: &std::path::Path) -> bool {
    platform::may_write(path)
}

/// What tells this boot of this host from all others; `None` where the system does not say.
pub(crate) fn boot_id() -> Option<String> {
    platform::boot_id()
}

/// Whether a process of this host has this id; `true` where the system does not say.
pub(crate) fn may_be_running(pid: u32) -> bool {
    platform::may_be_running(pid)
}

/// Asks the system to read from the medium again what it has of `file` in memory, from that byte
/// on.
pub(crate) fn forget_cache(file: &std::fs::File, from: u64) {
    platform::drop_cache(file, from, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: each new directory's name is made durable. Method: which ones those are; then they are
    // there, and none is new.
    #[test]
    fn all_new_directories_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        let all = [path.clone(), dir.path().join("a/b"), dir.path().join("a")];
        assert_eq!(missing(&path), all);

        create_private_directories(&path).unwrap();

        assert!(missing(&path).is_empty());
        assert!(is_private_directory(&path).unwrap());
    }
}
