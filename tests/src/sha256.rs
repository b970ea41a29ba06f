//! SHA-256 of files, the sum in which the expected contents are written down.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Sum of a whole file, in lower-case hex.
///
/// # Panics
///
/// When the file cannot be read.
pub fn of_file(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let meta = file.metadata().expect("length");
    // A device has no length here, and no holes.
    assert!(meta.is_file(), "{}", path.display());
    let len = meta.len();
    of_reader(Sparse {
        file,
        len,
        at: 0,
        data: 0..0,
    })
}

/// A file whose holes are not read: they would fill all memory with zeros, which takes five times
/// as long as their sum.
/// The system says where they are, not `FileAt::extent_at`: a judge asks nobody who is judged.
struct Sparse {
    file: File,
    len: u64,
    at: u64,
    /// What was found last: it ends behind `at`, or nothing is known of what comes there.
    data: Range<u64>,
}

impl Sparse {
    fn find_data(&mut self) -> io::Result<()> {
        let start = match seek(&self.file, SeekFrom::Data(self.at)) {
            Err(Errno::NXIO) => self.len,
            start => start?.min(self.len),
        };
        let end = match start < self.len {
            true => seek(&self.file, SeekFrom::Hole(start))?,
            false => self.len,
        };
        self.data = start..end.min(self.len);
        Ok(())
    }
}

impl Read for Sparse {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.data.end && self.at < self.len {
            self.find_data()?;
        }
        let is_hole = self.at < self.data.start;
        let end = if is_hole {
            self.data.start
        } else {
            self.data.end
        };
        let len = usize::try_from(end - self.at).map_or(buf.len(), |rest| rest.min(buf.len()));
        match is_hole {
            true => buf[..len].fill(0),
            false => self.file.read_exact_at(&mut buf[..len], self.at)?,
        }
        self.at += len as u64;
        Ok(len)
    }
}

/// Sum of all that `reader` gives, in lower-case hex.
///
/// # Panics
///
/// When reading fails.
pub fn of_reader(mut reader: impl Read) -> String {
    let mut sum = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buf).expect("readable") {
            0 => break,
            len => sum.update(&buf[..len]),
        }
    }
    sum.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: holes count as the zeros that they are. Method: files with holes at the start, in the
    // middle, at the end, nothing else, and nothing at all; the sum of all their bytes.
    #[test]
    fn holes_are_zeros() {
        const PAGE_LEN: usize = 64 << 10;
        const PAGE: u64 = PAGE_LEN as u64;
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("sparse");
        let cases: [(u64, &[u64]); 5] = [
            (0, &[]),
            (5 * PAGE + 7, &[]),
            (5 * PAGE + 7, &[0, 3]),
            (5 * PAGE + 7, &[1, 2, 4]),
            (5 * PAGE, &[4]),
        ];
        for (len, written) in cases {
            let file = File::create(&path).expect("file");
            file.set_len(len).expect("length");
            for page in written {
                let bytes = [u8::try_from(page + 1).expect("small"); PAGE_LEN];
                file.write_all_at(&bytes, page * PAGE).expect("written");
            }

            let all = of_reader(File::open(&path).expect("file"));

            assert_eq!(of_file(&path), all, "{len} {written:?}");
        }
    }
}
