//! SHA-256 of files, the sum in which the expected contents are written down.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Sum of a whole file, in lower-case hex.
///
/// # Panics
///
/// When the file cannot be read.
pub fn of_file(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    of_reader(file)
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
