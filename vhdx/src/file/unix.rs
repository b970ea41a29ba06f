//! [`FileAt`] for the files of Unix systems; holes are known on Linux only.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};

use super::{FileAt, FileExtent, fill_holes, write_zeros};

impl FileAt for File {
    fn len(&self) -> io::Result<u64> {
        device_or_file_len(self)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let range = range.start..range.end.min(device_or_file_len(self)?);
        if range.is_empty() || punch(self, &range) {
            return Ok(());
        }
        write_zeros(self, range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        let range = range.start..range.end.min(device_or_file_len(self)?);
        if range.is_empty() || reserve(self, &range)? {
            return Ok(());
        }
        fill_holes(self, range)
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        if let Some(found) = extent(self, at) {
            return Ok(found);
        }
        // Asked once more, after the length: what was appended meanwhile is no hole.
        let len = device_or_file_len(self)?;
        let is_hole = at < len && has_no_data(self, at);
        Ok(FileExtent {
            is_hole,
            end: len.max(at.saturating_add(1)),
        })
    }
}

/// A block device states no length in its metadata; its end can be sought.
fn device_or_file_len(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    match metadata.file_type().is_block_device() {
        true => (&*file).seek(SeekFrom::End(0)),
        false => Ok(metadata.len()),
    }
}

/// Frees the space of `range`; `false` where the system cannot.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn punch(file: &File, range: &Range<u64>) -> bool {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, range.start, range.end - range.start).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn punch(_file: &File, _range: &Range<u64>) -> bool {
    false
}

/// Takes the space of `range`; `false` where the file system does not know how, or the file is a
/// device, whose space is all there.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reserve(file: &File, range: &Range<u64>) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    let flags = FallocateFlags::KEEP_SIZE;
    let reserved =
        rustix::io::retry_on_intr(|| fallocate(file, flags, range.start, range.end - range.start));
    match reserved {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reserve(_file: &File, _range: &Range<u64>) -> io::Result<bool> {
    Ok(false)
}

/// Asks the file system; `None` when its answer cannot be used, or there are only holes from here
/// to the end. The file's cursor moves, which nobody here uses.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn extent(file: &File, at: u64) -> Option<FileExtent> {
    use rustix::fs::{SeekFrom, seek};
    let data = seek(file, SeekFrom::Data(at)).ok()?;
    let (is_hole, end) = match data > at {
        true => (true, data),
        false => (false, seek(file, SeekFrom::Hole(at)).ok()?),
    };
    (end > at).then_some(FileExtent { is_hole, end })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn extent(_file: &File, _at: u64) -> Option<FileExtent> {
    None
}

/// Whether there are only holes from `at`, within the file, to its end.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn has_no_data(file: &File, at: u64) -> bool {
    let data = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at));
    data == Err(rustix::io::Errno::NXIO)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn has_no_data(_file: &File, _at: u64) -> bool {
    false
}
