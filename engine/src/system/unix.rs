//! Linux: OFD locks that QEMU respects, `O_DIRECT`, device lengths.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::host_file::FileSystemTraits;
use super::{Access, FileStamp, MediumAccess, device_name};

pub(super) fn open(path: &Path, access: Access, follows_links: bool) -> io::Result<File> {
    let writable = access == Access::Write;
    let is_device = || std::fs::metadata(path).is_ok_and(|metadata| is_block_device(&metadata));
    // Non-blocking: a FIFO must be refused, not waited on. It means nothing for files and devices.
    let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    if matches!(access, Access::Write | Access::Stage) && is_device() {
        // Claims the device for as long as this is open: a mounted one, or one under RAID or LVM,
        // is busy, and none can be mounted meanwhile.
        flags |= libc::O_EXCL;
    }
    if !follows_links {
        flags |= libc::O_NOFOLLOW;
    }
    OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(flags)
        .open(path)
}

/// Opens the file behind `file` once more, for writing: through the descriptor, since the name may
/// lead elsewhere by now. A device stays claimed by `file`, which has to outlive the new one: two
/// claims of one device would stand in each other's way.
pub(super) fn reopen_for_writing(file: &File) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether `file` could be opened for writing, without doing it: by rights, by the mount, and by
/// attributes that forbid it even to root.
pub(super) fn check_writable(file: &File) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, IFlags, accessat, ioctl_getflags};
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?;
    // Not every file system has such attributes.
    match ioctl_getflags(file) {
        Ok(flags) if flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND) => {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        _ => Ok(()),
    }
}

pub(super) fn keep_private(options: &mut OpenOptions) {
    // Of a pipe that stands in a file's place nobody waits for the other end.
    options
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
}

/// This user's, and nobody else may look into it or change it.
pub(super) fn is_private(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0
}

/// This user's or root's, and nobody else may change it.
pub(super) fn is_kept_from_others(metadata: &Metadata) -> bool {
    let owner = metadata.uid();
    let is_ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    is_ours && metadata.mode() & 0o022 == 0
}

pub(super) fn may_execute(path: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

pub(super) fn keep_directory_private(builder: &mut DirBuilder) {
    builder.mode(0o700);
}

pub(super) fn may_be_running(pid: u32) -> bool {
    // Without it nothing is known.
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
}

/// Bytes that the file system of `file` has left.
pub(super) fn room(file: &File) -> io::Result<Option<u64>> {
    let found = rustix::fs::fstatvfs(file)?;
    Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
}

pub(super) fn may_write(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

pub(super) fn is_block_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_block_device()
}

pub(super) fn file_id(metadata: &Metadata) -> Option<(u64, u64)> {
    match metadata.file_type().is_block_device() {
        true => Some((u64::MAX, metadata.rdev())),
        false => Some((metadata.dev(), metadata.ino())),
    }
}

/// A text that names a file for as long as it lives. Not by its device: that number can be another
/// one after a reboot, when a target that was left half written has to be found again.
pub(super) fn lasting_id(metadata: &Metadata) -> String {
    // An inode's number is used again; the time it was made is not.
    let made = metadata.created().ok();
    let made = made.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    format!(
        "{:x}:{:x}",
        metadata.ino(),
        made.unwrap_or_default().as_nanos()
    )
}

/// The same of a block device of so many bytes. Its number is another one after a reboot, and
/// stands in only where the system knows nothing better.
pub(super) fn device_id(metadata: &Metadata, len: u64) -> String {
    let number = metadata.rdev();
    let parts = (libc::major(number).into(), libc::minor(number).into());
    let name = device_name::lasting_name(Path::new("/sys"), Path::new("/dev"), parts);
    let name = name.unwrap_or_else(|| format!("number:{number:x}"));
    format!("device:{name}:{len:x}")
}

/// The count of a device's `stat` (Documentation/block/stat.rst), its seventh field.
pub(super) fn sectors_written(metadata: &Metadata) -> Option<u64> {
    let number = metadata.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    text.split_whitespace().nth(6)?.parse().ok()
}

/// `id` is what the file is known by, whatever state it is in.
pub(super) fn identity(id: &str, metadata: &Metadata) -> String {
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    format!("{id}:{:x}:{seconds}.{nanoseconds:09}", metadata.len())
}

/// Changes whenever bytes or length of the file do; a new name or another owner change nothing.
pub(super) fn content_mark(id: &str, metadata: &Metadata) -> String {
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    format!("{id}:{:x}:{seconds}.{nanoseconds:09}", metadata.len())
}

/// What the system notes of a regular file when its bytes change; `None` of a device, of which it
/// notes nothing.
pub(super) fn stamp(metadata: &Metadata) -> Option<FileStamp> {
    let nanoseconds =
        |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    metadata.is_file().then(|| FileStamp {
        file_id: lasting_id(metadata),
        len: metadata.len(),
        mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Tells this start of the system from others: a power cut can set the time of a file's last change
/// back, which was in memory only, and keep the change.
pub(super) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Names that the file has.
pub(super) fn link_count(metadata: &Metadata) -> u64 {
    metadata.nlink()
}

/// A file that is bound over another has a mount of its own.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let above = path.parent().unwrap_or(Path::new("/"));
    let mount_of = |path: &Path| {
        statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
            .map(|found| found.stx_mnt_id)
    };
    Ok(mount_of(path)? != mount_of(above)?)
}

/// Swaps two names in one step.
pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Makes the empty file `to` share all bytes of `from` until one of the two is written to.
pub(super) fn clone_file(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Whether an error of [`clone_file`] says that there are no clones: not of such files, or not on
/// such file systems.
pub(super) fn is_no_clone(error: &io::Error) -> bool {
    let no_clone = [
        libc::EOPNOTSUPP,
        libc::ENOTTY,
        libc::EINVAL,
        libc::EXDEV,
        libc::ENOSYS,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| no_clone.contains(&code))
}

/// Whether files there are of a kind of file system that has clones. Some of them were made
/// without.
pub(super) fn may_clone(path: &Path) -> bool {
    let kind = rustix::fs::statfs(path).map(|found| found.f_type);
    matches!(kind, Ok(XFS | BTRFS))
}

/// Magics of file systems, as `statfs` gives them.
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683e;

pub(super) fn allocated_len(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// Byte that QEMU locks while it may read consistently, and the base of its other permissions.
const QEMU_PERMISSION: i64 = 100;
/// Byte at which QEMU marks the permissions that it does *not* share.
const QEMU_UNSHARED: i64 = 200;
const QEMU_WRITE: i64 = 1;
const QEMU_RESIZE: i64 = 3;

/// Read locks on the bytes by which QEMU says "I read, and nobody may write or resize", refused
/// when somebody does.
pub(super) fn lock_shared(file: &File) -> io::Result<bool> {
    let held = [
        QEMU_PERMISSION,
        QEMU_UNSHARED + QEMU_WRITE,
        QEMU_UNSHARED + QEMU_RESIZE,
    ];
    for at in held {
        if !set_lock(file, libc::F_RDLCK, at, 1)? {
            return Ok(false);
        }
    }
    for at in [QEMU_PERMISSION + QEMU_WRITE, QEMU_PERMISSION + QEMU_RESIZE] {
        if is_locked(file, at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A write lock on everything: neither QEMU nor another `failback` can have it open.
pub(super) fn lock_exclusive(file: &File) -> io::Result<bool> {
    set_lock(file, libc::F_WRLCK, 0, 0)
}

/// Keeps everybody else out of a file that is open for reading only, as a writer would: read locks
/// on the bytes by which QEMU says "I read, write and resize, and share none of it".
pub(super) fn lock_staged(file: &File) -> io::Result<bool> {
    if !mark_staged(file)? {
        return Ok(false);
    }
    for at in 0..=QEMU_RESIZE {
        // The bytes that this descriptor holds do not stand in its own way.
        if is_locked(file, QEMU_PERMISSION + at)? || is_locked(file, QEMU_UNSHARED + at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn mark_staged(file: &File) -> io::Result<bool> {
    for at in 0..=QEMU_RESIZE {
        for base in [QEMU_PERMISSION, QEMU_UNSHARED] {
            if !set_lock(file, libc::F_RDLCK, base + at, 1)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Hands the lock of `staged` to `writable`, another descriptor of the same file, without a moment
/// in which nobody has it.
pub(super) fn hand_lock_over(staged: &File, writable: &File) -> io::Result<bool> {
    if !mark_staged(writable)? {
        return Ok(false);
    }
    set_lock(staged, libc::F_UNLCK, 0, 0)?;
    // Nobody can keep the file open while it is marked, but whoever asks for it holds some of its
    // bytes for a moment before being turned away. This comes after COMMIT: it is worth a wait.
    let until = Instant::now() + HAND_OVER_MAX;
    loop {
        if lock_exclusive(writable)? {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        thread::sleep(HAND_OVER_POLL);
    }
}

const HAND_OVER_MAX: Duration = Duration::from_secs(10);
const HAND_OVER_POLL: Duration = Duration::from_millis(1);

/// Lets go of every lock, at once.
pub(super) fn unlock(file: &File) {
    // The closing that follows does the same in the end.
    let _closing_will_do = set_lock(file, libc::F_UNLCK, 0, 0);
}

fn set_lock(file: &File, kind: i32, start: i64, len: i64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(kind, start, len))) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn is_locked(file: &File, at: i64) -> io::Result<bool> {
    let mut found = region(libc::F_WRLCK, at, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn region(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock kinds are small numbers"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Opens the same inode once more, bypassing the page cache: through the descriptor, since the name
/// may lead elsewhere by now.
pub(super) fn open_direct(file: &File, _path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

pub(super) fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match FileExt::read_at(file, buf, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Asks the kernel to forget clean pages; it may decline, which [`MediumAccess::Cache`] admits.
pub(super) fn drop_cache(file: &File, at: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    let _declined = rustix::fs::fadvise(file, at, len, rustix::fs::Advice::DontNeed);
}

/// Lets the kernel begin to write what is dirty in a range: so does Linux when it is asked to
/// forget it. What is under way to the medium stays in memory; what has arrived there may be
/// dropped.
pub(super) fn start_write_back(file: &File, at: u64, len: u64) {
    drop_cache(file, at, len);
}

/// Takes the space of what is about to be written. What cannot be taken is not missed: the write
/// finds that out by itself.
pub(super) fn reserve(file: &File, at: u64, len: u64) {
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    let _declined = rustix::fs::fallocate(file, flags, at, len);
}

/// Writes by calls that return when their bytes are durable; how many from the start went that way.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn write_through(file: &File, at: u64, data: &[u8]) -> io::Result<usize> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2, retry_on_intr};
    let mut done = 0;
    while done < data.len() {
        let rest = [io::IoSlice::new(&data[done..])];
        let from = at + done as u64;
        match retry_on_intr(|| pwritev2(file, &rest, from, ReadWriteFlags::DSYNC)) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
            Ok(len) => done += len,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn write_through(_file: &File, _at: u64, _data: &[u8]) -> io::Result<usize> {
    Ok(0)
}

/// What can be said of the file system.
pub(super) fn traits_of(file: &File) -> FileSystemTraits {
    let found = file_system_of(file);
    FileSystemTraits {
        syncs_ranges: cfg!(target_os = "linux") && matches!(found, Some(EXT | XFS | BTRFS | F2FS)),
        books_pages: found == Some(EXT),
    }
}

/// Magic numbers of statfs(2).
const EXT: i64 = 0xef53;
const F2FS: i64 = 0xf2f5_2010;

fn file_system_of(file: &File) -> Option<i64> {
    rustix::fs::fstatfs(file).ok().map(|found| found.f_type)
}

/// Only file systems that are known to read from their device count as that; the rest may answer
/// an `O_DIRECT` read from memory.
pub(super) fn medium_access(file: &File) -> MediumAccess {
    const EXFAT: i64 = 0x2011_bab0;
    const NTFS3: i64 = 0x7366_746e;
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0x517b;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const FUSE: i64 = 0x6573_5546;
    const PLAN9: i64 = 0x0102_1997;
    const CEPH: i64 = 0x00c3_6400;
    match file_system_of(file) {
        Some(EXT | XFS | BTRFS | F2FS | EXFAT | NTFS3) => MediumAccess::Medium,
        Some(NFS | SMB | CIFS | SMB2 | FUSE | PLAN9 | CEPH) => MediumAccess::Server,
        _ => MediumAccess::Cache,
    }
}

pub(super) fn is_sharing_violation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETXTBSY | libc::EBUSY))
}

pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a program that asks for the file and is turned away does not end a sync after COMMIT.
    // Method: another descriptor holds a byte for a moment while the lock is handed over.
    #[test]
    fn hand_over_outlasts_a_short_look() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let open = || File::options().read(true).write(true).open(file.path());
        let [staged, writable, looker] = [(); 3].map(|()| open().expect("open"));
        assert!(lock_staged(&staged).expect("lock"));
        assert!(!lock_shared(&looker).expect("turned away"));

        let handed_over = thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(50));
                drop(looker);
            });
            hand_lock_over(&staged, &writable)
        });

        assert!(handed_over.expect("lock"));
    }
}
