//! Where the bytes of a file lie on its device, by FIEMAP.

use std::io;

use super::HostFile;

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "nothing is known elsewhere")
)]
pub(crate) struct FileRun {
    /// First byte.
    pub(crate) start: u64,
    /// The byte after the last; can lie behind the end of the file.
    pub(crate) end: u64,
    pub(crate) place: FilePlace,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "nothing is known elsewhere")
)]
pub(crate) enum FilePlace {
    /// On the device from this byte on, where they belong to other files as well: whoever writes
    /// to one of them writes elsewhere.
    Shared { at: u64 },
    /// Nowhere, or in space that was never written: they read zero.
    Zero,
    /// Only reading tells: not shared, compressed, among metadata, not yet written.
    Unknown,
}

impl HostFile {
    /// Names the file system that the file lies on, as long as it is mounted; `None` of a device,
    /// and where the system does not say.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn file_system_id(&self) -> io::Result<Option<u64>> {
        #[cfg(unix)]
        if !self.is_device() {
            use std::os::unix::fs::MetadataExt;
            return Ok(Some(self.as_file().metadata()?.dev()));
        }
        Ok(None)
    }

    /// Where the bytes of the file are: runs that ascend and lie apart, holes between them. What
    /// the system has in memory is written first. Nobody writes to the file meanwhile.
    ///
    /// # Errors
    /// `Unsupported` where it cannot be told; `QuotaExceeded` when the runs would not fit in the
    /// memory that they may have; the system's error.
    pub(crate) fn places(&self) -> io::Result<Vec<FileRun>> {
        #[cfg(target_os = "linux")]
        if !self.is_device() {
            return linux::places(self);
        }
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use failback_vhdx::FileAt;
    use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags as Flags, FiemapFlags};

    use super::*;

    pub(super) fn places(file: &HostFile) -> io::Result<Vec<FileRun>> {
        // What is in memory only has no place yet, or is about to get another one. FIEMAP's own
        // flag alone does not wait on every kernel until btrfs has noted where it wrote.
        file.as_file().sync_data()?;
        let mut runs = Vec::new();
        for found in Fiemap::with_flags(file.as_file(), FiemapFlags::SYNC) {
            let extent = found.map_err(told_apart)?;
            push(file, &mut runs, &extent)?;
            if runs.len() > RUNS_MAX {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
        }
        Ok(runs)
    }

    fn push(file: &HostFile, runs: &mut Vec<FileRun>, extent: &FiemapExtent) -> io::Result<()> {
        let start = extent.fe_logical;
        let end = start.checked_add(extent.fe_length);
        let end = end.filter(|end| *end > start && runs.last().is_none_or(|r| r.end <= start));
        let end = end.ok_or_else(|| io::Error::other("extents out of order"))?;
        let flags = extent.fe_flags.difference(Flags::LAST | Flags::MERGED);
        let mut add = |start, end, place| runs.push(FileRun { start, end, place });
        if flags.bits() == Flags::SHARED.bits() {
            let at = extent.fe_physical;
            add(start, end, FilePlace::Shared { at });
        } else if flags.difference(Flags::SHARED).bits() == Flags::UNWRITTEN.bits() {
            each_unwritten(file, start, end, add)?;
        } else {
            add(start, end, FilePlace::Unknown);
        }
        Ok(())
    }

    /// Space that was never written reads zero, unless something waits in memory to be written
    /// there: asked for holes, the system looks into its memory, too.
    fn each_unwritten(
        file: &HostFile,
        start: u64,
        end: u64,
        mut add: impl FnMut(u64, u64, FilePlace),
    ) -> io::Result<()> {
        let len = file.len()?;
        let mut at = start;
        while at < end.min(len) {
            let found = file.extent_at(at)?;
            let to = found.end.clamp(at + 1, end);
            let place = match found.is_hole {
                true => FilePlace::Zero,
                false => FilePlace::Unknown,
            };
            add(at, to, place);
            at = to;
        }
        Ok(())
    }

    fn told_apart(error: io::Error) -> io::Error {
        use nix::libc::{EBADR, EINVAL, ENOSYS, ENOTTY, EOPNOTSUPP};
        let is_unknown = [EBADR, EINVAL, ENOSYS, ENOTTY, EOPNOTSUPP];
        match error
            .raw_os_error()
            .is_some_and(|code| is_unknown.contains(&code))
        {
            true => io::ErrorKind::Unsupported.into(),
            false => error,
        }
    }

    /// Runs of one file that are kept, 128 MiB of memory.
    const RUNS_MAX: usize = 4 << 20;
}
