//! A file or block device of this host, opened once, locked, and readable past the page cache.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use failback_vhdx::{FileAt, FileExtent};

use super::platform;
use super::unsynced::Unsynced;
use super::write_back::{LARGE_WRITE, WriteBack};
use crate::error::{Error, ErrorKind, Result};

/// What a file is opened for; the lock follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looked at only; takes no lock and respects none.
    Inspect,
    /// Read as a source: others may read, nobody may write.
    Read,
    /// Read now, changed later: nobody else may have it open.
    Stage,
    /// Changed: nobody else may have it open.
    Write,
}

/// Where a read past the page cache ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumAccess {
    /// The device under the file system.
    Medium,
    /// The page cache: the file system lives in memory, or offers no way around it.
    Cache,
    /// The server of a network file system.
    Server,
}

/// What a file system does that others need not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileSystemTraits {
    /// A range of a file is made durable when that is asked for. Others say so and send no word to
    /// their server (9p, FUSE with direct I/O).
    pub(super) syncs_ranges: bool,
    /// Each 4 KiB for which space is promised and not chosen is booked by itself; what has its
    /// space is not (ext4).
    pub(super) books_pages: bool,
}

/// What the system notes of a file when its bytes change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Names this very file, whatever state it is in; the same after a reboot.
    pub file_id: String,
    /// Bytes.
    pub len: u64,
    /// When bytes were last written, in nanoseconds since 1970; can be set at will.
    pub mtime_ns: i64,
    /// When anything of the file was last changed, in nanoseconds since 1970; cannot be set.
    pub ctime_ns: i64,
}

/// An open file or block device.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    /// What it is called: a new file is known by the name that it will get.
    path: PathBuf,
    /// Where it lies now.
    place: PathBuf,
    is_device: bool,
    /// A second descriptor of the same file that bypasses the page cache; `None` where that is not
    /// to be had.
    direct: OnceLock<Option<File>>,
    /// One write at a time, to a file. Its file system has them wait for each other anyhow, and
    /// some let them spin: on two processors one of them did nothing else (docs/decisions/0017).
    writing: Mutex<()>,
    write_back: WriteBack,
    unsynced: Unsynced,
    traits: OnceLock<FileSystemTraits>,
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // Not left to the closing: a process that another thread is about to start has the file as
        // well until it runs its program, and its lock would be held for that long.
        platform::unlock(&self.file);
    }
}

/// Alignment of reads past the page cache: the largest sector there is.
const DIRECT_ALIGN: usize = 4096;
/// Bytes of one read past the page cache.
const DIRECT_PIECE: usize = 1 << 20;

impl HostFile {
    /// Opens `path` and takes the lock that `access` implies.
    ///
    /// # Errors
    /// `InUse` when another program holds it, `ReadOnly` when it must not be written (also for
    /// root: a file without any write permission bit was made so on purpose), `Refused` when it is
    /// neither a file nor a block device, `Io`.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        Self::open_in(path, access, true)
    }

    /// As [`HostFile::open`], for a name that the operator did not give: a link is refused, also
    /// one that took the file's place a moment ago.
    ///
    /// # Errors
    /// As [`HostFile::open`].
    pub(crate) fn open_unlinked(path: &Path, access: Access) -> Result<Self> {
        Self::open_in(path, access, false)
    }

    fn open_in(path: &Path, access: Access, follows_links: bool) -> Result<Self> {
        let opened = platform::open(path, access, follows_links);
        let file = opened.map_err(|source| open_error(source, path, access))?;
        Self::checked(file, path, access)
    }

    /// Opens the same file for writing and takes its lock over. This one is not locked any more.
    ///
    /// # Errors
    /// As [`HostFile::open`].
    pub(crate) fn reopen_for_writing(&self) -> Result<Self> {
        let reopened = platform::reopen_for_writing(&self.file);
        let file = reopened.map_err(|source| open_error(source, &self.path, Access::Write))?;
        match platform::hand_lock_over(&self.file, &file) {
            Ok(true) => {}
            Ok(false) => return Err(in_use(&self.path)),
            Err(source) => return Err(Error::io(source, "lock").path(&self.path)),
        }
        let mut reopened = Self::around(file, &self.path, self.is_device);
        reopened.place.clone_from(&self.place);
        Ok(reopened)
    }

    /// Nothing is known of it but what is given.
    fn around(file: File, path: &Path, is_device: bool) -> Self {
        Self {
            file,
            path: path.to_owned(),
            place: path.to_owned(),
            is_device,
            direct: OnceLock::new(),
            writing: Mutex::new(()),
            write_back: WriteBack::default(),
            unsynced: Unsynced::default(),
            traits: OnceLock::new(),
        }
    }

    /// Whether it could be opened for writing, without doing it.
    ///
    /// # Errors
    /// `ReadOnly`.
    pub(crate) fn check_writable(&self) -> Result<()> {
        check_writable(&self.file, &self.path)
    }

    /// Wraps a file that this process just made at `path`, and locks it for writing; errors call it
    /// `shown`.
    ///
    /// # Errors
    /// As [`HostFile::open`].
    pub(crate) fn adopt(file: File, path: &Path, shown: &Path) -> Result<Self> {
        let mut adopted = Self::checked(file, shown, Access::Write)?;
        adopted.place = path.to_owned();
        Ok(adopted)
    }

    fn checked(file: File, path: &Path, access: Access) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|e| Error::io(e, "read metadata").path(path))?;
        let is_device = platform::is_block_device(&metadata);
        if !metadata.is_file() && !is_device {
            let message = "is neither a regular file nor a block device";
            return Err(Error::new(ErrorKind::Refused, message).path(path));
        }
        let is_to_change = matches!(access, Access::Write | Access::Stage);
        if is_to_change && !is_device && metadata.permissions().readonly() {
            let message = "is read-only (no write permission bit is set); allow writing first";
            return Err(Error::new(ErrorKind::ReadOnly, message).path(path));
        }
        if access == Access::Stage {
            check_writable(&file, path)?;
        }
        let locked = match access {
            Access::Inspect => Ok(true),
            Access::Read => platform::lock_shared(&file),
            Access::Stage => platform::lock_staged(&file),
            Access::Write => platform::lock_exclusive(&file),
        };
        match locked {
            Ok(true) => {}
            Ok(false) => return Err(in_use(path)),
            Err(source) => return Err(Error::io(source, "lock").path(path)),
        }
        Ok(Self::around(file, path, is_device))
    }

    /// The path it was opened by, or that it will get.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it lies now.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Whether it is a block device, whose length is fixed.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether `other` is the same file under whatever name.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        match (self.file.metadata(), other.file.metadata()) {
            (Ok(a), Ok(b)) => {
                platform::file_id(&a).is_some_and(|id| Some(id) == platform::file_id(&b))
            }
            _ => false,
        }
    }

    /// A text that names this very file and its present state: file id, length, time of last
    /// change.
    ///
    /// # Errors
    /// The system's error.
    pub fn identity(&self) -> io::Result<String> {
        Ok(platform::identity(&self.file_id()?, &self.file.metadata()?))
    }

    /// A text that names this very file, whatever state it is in; the same after a reboot.
    ///
    /// # Errors
    /// The system's error.
    pub fn file_id(&self) -> io::Result<String> {
        let metadata = self.file.metadata()?;
        Ok(match self.is_device {
            true => platform::device_id(&metadata, self.len()?),
            false => platform::lasting_id(&metadata),
        })
    }

    /// A text that names this very file and changes with its bytes, not with its names.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn content_mark(&self) -> io::Result<String> {
        Ok(platform::content_mark(
            &self.file_id()?,
            &self.file.metadata()?,
        ))
    }

    /// A text that stays the same as long as nobody writes to the file; `None` where nobody can
    /// tell: of a device, and where the system does not say since when it runs.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn use_mark(&self) -> io::Result<Option<String>> {
        let Some(boot) = platform::boot_id().filter(|_| !self.is_device) else {
            return Ok(None);
        };
        Ok(Some(format!("{}:{boot}", self.content_mark()?)))
    }

    /// Sectors that were written to a device since it was there, by the system's own count, once
    /// all that waits in memory has been: of it nothing else tells a write. `None` of a file, which
    /// notes when it was changed, and where the system does not count.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn sectors_written(&self) -> io::Result<Option<u64>> {
        if !self.is_device {
            return Ok(None);
        }
        FileAt::sync(&self.file)?;
        Ok(platform::sectors_written(&self.file.metadata()?))
    }

    /// What the system notes of the file when its bytes change; `None` where it notes nothing.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn stamp(&self) -> io::Result<Option<FileStamp>> {
        Ok(platform::stamp(&self.file.metadata()?))
    }

    /// Names that the file has.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn link_count(&self) -> io::Result<u64> {
        Ok(platform::link_count(&self.file.metadata()?))
    }

    /// The open file itself, for the calls of this folder.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }

    /// Bytes that its file system has left; `None` where the system does not tell.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn room(&self) -> io::Result<Option<u64>> {
        platform::room(&self.file)
    }

    /// Bytes that the file occupies on its file system.
    ///
    /// # Errors
    /// The system's error.
    pub fn allocated_len(&self) -> io::Result<u64> {
        match self.is_device {
            true => self.len(),
            false => Ok(platform::allocated_len(&self.file.metadata()?)),
        }
    }

    /// Where [`HostFile::read_past_cache`] reads from.
    #[must_use]
    pub fn medium_access(&self) -> MediumAccess {
        // A device node lies in a file system in memory, its bytes do not.
        let access = match self.is_device {
            true => MediumAccess::Medium,
            false => platform::medium_access(&self.file),
        };
        match (access, self.direct()) {
            (MediumAccess::Medium, None) => MediumAccess::Cache,
            (access, _) => access,
        }
    }

    /// Fills `buf` from the medium, not from the page cache, where the system can do that. Flush
    /// first: dirty pages are not on the medium yet.
    ///
    /// # Errors
    /// The system's error; `UnexpectedEof` past the end.
    pub fn read_past_cache(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(direct) = self.direct() else {
            platform::drop_cache(&self.file, at, buf.len() as u64);
            return self.file.read_at(at, buf);
        };
        let mut scratch = vec![0; DIRECT_PIECE.min(buf.len() + 2 * DIRECT_ALIGN) + DIRECT_ALIGN];
        let skew = scratch.as_ptr().align_offset(DIRECT_ALIGN);
        let window = scratch.len() - DIRECT_ALIGN;
        let aligned = &mut scratch[skew..skew + window / DIRECT_ALIGN * DIRECT_ALIGN];
        let mut done = 0;
        while done < buf.len() {
            let position = at + done as u64;
            let lead = usize::try_from(position % DIRECT_ALIGN as u64).expect("below 4096");
            let wanted = (lead + buf.len() - done)
                .next_multiple_of(DIRECT_ALIGN)
                .min(aligned.len());
            let got = platform::read_some(direct, position - lead as u64, &mut aligned[..wanted])?;
            if got <= lead {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let usable = (got - lead).min(buf.len() - done);
            buf[done..done + usable].copy_from_slice(&aligned[lead..lead + usable]);
            done += usable;
        }
        Ok(())
    }

    /// Asks the system to read from the medium again what it has in memory. What an earlier process
    /// wrote and did not flush goes to the medium first: it would be believed, and could be lost.
    pub(crate) fn forget_cache(&self) {
        if let Err(error) = self.file.sync_all() {
            // What it could not write is gone, and is seen to be.
            let error = error.to_string();
            tracing::warn!(error, "what was left unflushed is lost");
        }
        platform::drop_cache(&self.file, 0, 0);
    }

    fn traits(&self) -> FileSystemTraits {
        match self.is_device {
            true => FileSystemTraits::default(),
            false => *self.traits.get_or_init(|| platform::traits_of(&self.file)),
        }
    }

    fn direct(&self) -> Option<&File> {
        self.direct
            .get_or_init(|| platform::open_direct(&self.file, &self.place).ok())
            .as_ref()
    }
}

impl FileAt for HostFile {
    fn len(&self) -> io::Result<u64> {
        match self.is_device {
            true => (&self.file).seek(SeekFrom::End(0)),
            false => Ok(self.file.metadata()?.len()),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let lock = || self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (!self.is_device).then(lock);
        if data.len() as u64 >= LARGE_WRITE && self.traits().books_pages {
            platform::reserve(&self.file, at, data.len() as u64);
        }
        let written = self.file.write_at(at, data);
        drop(turn);
        self.unsynced.wrote(at, data.len() as u64);
        written?;
        self.write_back.wrote(&self.file, at, data.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let set = FileAt::set_len(&self.file, len);
        self.unsynced.changed_otherwise();
        set
    }

    fn sync(&self) -> io::Result<()> {
        self.unsynced.sync(&self.file)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.traits().syncs_ranges {
            true => self.unsynced.sync_data(&self.file),
            false => self.sync(),
        }
    }

    // Not in turn: others write while the medium is waited for.
    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let done = match self.traits().syncs_ranges {
            true => platform::write_through(&self.file, at, data).inspect_err(|_| {
                self.unsynced.changed_otherwise();
            })?,
            false => 0,
        };
        if done < data.len() {
            self.write_at(at + done as u64, &data[done..])?;
            self.sync()?;
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let zeroed = self.file.zero(range);
        self.unsynced.changed_otherwise();
        zeroed
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let allocated = self.file.allocate(range);
        self.unsynced.changed_otherwise();
        allocated
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        match self.is_device {
            // A device answers SEEK_HOLE with nothing useful: all of it is data.
            true => Ok(FileExtent {
                is_hole: false,
                end: self.len()?,
            }),
            false => self.file.extent_at(at),
        }
    }
}

fn check_writable(file: &File, path: &Path) -> Result<()> {
    platform::check_writable(file).map_err(|source| {
        let message = "cannot be written: no right to it, an attribute, or a read-only mount";
        Error::new(ErrorKind::ReadOnly, message)
            .path(path)
            .caused_by(source)
    })
}

fn in_use(path: &Path) -> Error {
    let message = "is in use by another program; stop it (or the VM) first";
    Error::new(ErrorKind::InUse, message).path(path)
}

fn open_error(source: io::Error, path: &Path, access: Access) -> Error {
    if platform::is_sharing_violation(&source) {
        return in_use(path);
    }
    let is_denied = source.kind() == io::ErrorKind::PermissionDenied;
    let error = Error::io(source, "open").path(path);
    match (access, is_denied) {
        (Access::Write, true) => Error::new(ErrorKind::ReadOnly, "must not be written")
            .path(path)
            .caused_by(error),
        _ => error,
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::super::unsynced::Changed;
    use super::*;

    // Goal: every change is covered by the next sync. Method: each way to change a file, after a
    // sync that covered all before.
    #[test]
    fn every_change_waits_for_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 8192]).unwrap();
        let file = HostFile::open(&path, Access::Write).unwrap();
        let pending = |change: &dyn Fn()| {
            FileAt::sync(&file).unwrap();
            assert_eq!(file.unsynced.pending(), Changed::Bytes(0..0));
            change();
            file.unsynced.pending()
        };
        assert_eq!(
            pending(&|| file.write_at(10, &[2; 5]).unwrap()),
            Changed::Bytes(10..15)
        );
        assert_eq!(pending(&|| file.zero(0..4096).unwrap()), Changed::Anything);
        assert_eq!(pending(&|| file.set_len(5000).unwrap()), Changed::Anything);
        assert_eq!(
            pending(&|| file.allocate(0..4096).unwrap()),
            Changed::Anything
        );
        assert_eq!(
            pending(&|| file.write_through(7, &[3; 2]).unwrap()),
            Changed::Bytes(0..0)
        );

        let mut found = [0; 5];
        file.read_at(6, &mut found).unwrap();
        assert_eq!(found, [0, 3, 3, 0, 0]);
        let other = HostFile::open_in(&path, Access::Inspect, true).unwrap();
        assert_eq!(other.unsynced.pending(), Changed::Anything);
    }

    // Goal: a lock ends with its owner, though a process that is about to be started has the file
    // as well. Method: a second descriptor of the same opening, as a fork makes it.
    #[test]
    fn a_fork_keeps_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"disk").unwrap();
        for access in [Access::Read, Access::Stage, Access::Write] {
            let held = HostFile::open(&path, access).unwrap();
            let _of_a_child = held.file.try_clone().unwrap();
            drop(held);
            HostFile::open(&path, Access::Write).unwrap();
        }
    }
}
