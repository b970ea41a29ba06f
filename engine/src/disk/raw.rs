//! A raw image file or a block device: the bytes of the disk, nothing else.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use failback_vhdx::FileAt;

use super::{DiskInfo, Extent, ExtentKind, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Facts, ImageFacts};
use crate::system::{HostFile, MediumAccess};
use crate::units::{ByteOffset, DISK_LEN_MAX};

/// A raw disk on a file or block device of this host.
#[derive(Debug)]
pub struct RawDisk {
    file: Arc<HostFile>,
    len: u64,
    identity: String,
    is_poisoned: AtomicBool,
}

impl RawDisk {
    /// The disk whose bytes are those of `file`; its length is taken now and kept.
    ///
    /// # Errors
    /// `Io`; `Unsupported` above 64 TiB.
    pub fn open(file: Arc<HostFile>) -> Result<Self> {
        let len = file
            .len()
            .map_err(|e| Error::io(e, "read length").path(file.path()))?;
        if len > DISK_LEN_MAX {
            let message = format!("{len} bytes are more than the 64 TiB a disk can have");
            return Err(Error::new(ErrorKind::Unsupported, message).path(file.path()));
        }
        let identity = file
            .identity()
            .map_err(|e| Error::io(e, "stat").path(file.path()))?;
        Ok(Self {
            file,
            len,
            identity: format!("raw:{identity}"),
            is_poisoned: AtomicBool::new(false),
        })
    }

    fn checked(&self, at: ByteOffset, len: usize) -> Result<()> {
        match at
            .0
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len)
        {
            true => Ok(()),
            false => Err(
                Error::new(ErrorKind::Usage, "range past the end of the disk")
                    .path(self.file.path())
                    .at(at.0),
            ),
        }
    }

    fn changed(&self, op: &str, at: u64, result: std::io::Result<()>) -> Result<()> {
        result.map_err(|source| {
            self.is_poisoned.store(true, Ordering::SeqCst);
            Error::io(source, op).path(self.file.path()).at(at)
        })
    }

    fn sound(&self) -> Result<()> {
        match self.is_poisoned.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Io,
                "an earlier write or flush failed; nothing more is written",
            )
            .path(self.file.path())),
        }
    }
}

impl Source for RawDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "raw".into(),
            virtual_size: self.len,
            logical_sector_size: None,
            image_block_size: None,
            identity: self.identity.clone(),
            warnings: Vec::new(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.checked(at, buf.len())?;
        self.file.read_at(at.0, buf).map_err(|e| {
            Error::io(e, format!("read {} bytes", buf.len()))
                .path(self.file.path())
                .at(at.0)
        })
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        self.checked(at, 1)?;
        let found = self
            .file
            .extent_at(at.0)
            .map_err(|e| Error::io(e, "find data").path(self.file.path()).at(at.0))?;
        let kind = if found.is_hole {
            ExtentKind::Absent
        } else {
            ExtentKind::Data
        };
        Ok(Extent {
            kind,
            end: ByteOffset(found.end.clamp(at.0 + 1, self.len)),
        })
    }

    fn facts(&self) -> Result<Option<Facts>> {
        let image = ImageFacts::of_file(self.file.as_ref(), "raw", self.len);
        Ok(image?.and_then(|image| Facts::now(vec![image])))
    }
}

impl Target for RawDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.checked(at, data.len())?;
        self.sound()?;
        self.changed("write", at.0, self.file.write_at(at.0, data))
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        let end = range.end.0.min(self.len);
        self.checked(range.start, 0)?;
        self.sound()?;
        self.changed("zero", range.start.0, self.file.zero(range.start.0..end))
    }

    fn zero_undefined(&self) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        self.sound()?;
        self.changed("flush", 0, self.file.sync())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.checked(at, buf.len())?;
        self.file
            .read_past_cache(at.0, buf)
            .map_err(|e| Error::io(e, "read back").path(self.file.path()).at(at.0))
    }

    fn medium(&self) -> MediumAccess {
        self.file.medium_access()
    }

    fn mark(&self) -> Result<Option<String>> {
        let mark = self.file.use_mark();
        mark.map_err(|e| Error::io(e, "stat").path(self.file.path()))
    }

    fn close(&self) -> Result<()> {
        self.flush()
    }
}
