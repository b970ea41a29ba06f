//! [`FileAt`] for the files of Windows. They are never made sparse: Windows refuses to attach a
//! VHDX in a sparse file, so space is not freed and every byte counts as data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::windows::fs::FileExt;

use super::{FileAt, FileExtent, write_zeros};

impl FileAt for File {
    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.seek_read(buf, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buf = &mut buf[count..];
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match self.seek_write(data, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    data = &data[count..];
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(self, range)
    }

    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        // A file that is not sparse has its space from the moment it gets its length.
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        let len = self.metadata()?.len();
        Ok(FileExtent {
            is_hole: false,
            end: len.max(at.saturating_add(1)),
        })
    }
}
