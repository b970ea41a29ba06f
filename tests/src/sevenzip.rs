//! 7-Zip: a judge that shares no code with QEMU or failback.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::qemu::Format;
use crate::sha256;

/// Sum of the whole virtual disk as 7-Zip reads it; of a raw disk, of its file.
///
/// # Panics
///
/// When 7-Zip cannot read the image.
pub fn content_sha256(path: &Path, format: Format) -> String {
    if format == Format::Raw {
        return sha256::of_file(path);
    }
    // The type is named: by itself 7-Zip would go on into the file system on the disk.
    let mut child = Command::new("7zz")
        .args(["x", "-so", &format!("-t{}", format.name())])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start 7zz: {e}"));
    let sum = sha256::of_reader(child.stdout.take().expect("piped"));
    let status = child.wait().expect("7zz ends");
    assert!(status.success(), "7zz {}: {status}", path.display());
    sum
}
