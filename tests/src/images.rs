//! Real images: `shared/images` beside the checkout, with the list of what each must hold.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools;

/// One line of `contents.tsv`.
#[derive(Clone, Debug)]
pub struct Image {
    /// File name of the unpacked image.
    pub name: String,
    /// Sum of the unpacked file.
    pub file_sha256: String,
    /// Length of the virtual disk in bytes.
    pub virtual_size: u64,
    /// Sum of the whole virtual disk as raw bytes.
    pub content_sha256: String,
}

/// The folder of the images, or `None` in a checkout that stands alone.
pub fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/images");
    folder.join("contents.tsv").is_file().then_some(folder)
}

/// Looks an image up and unpacks it into `into`. `None`, said aloud, where there is no folder.
///
/// # Panics
///
/// When there is a folder without this image; when there is none and `CI` is set.
pub fn unpack(name: &str, into: &Path) -> Option<(Image, PathBuf)> {
    let Some(folder) = folder() else {
        // A name that no program has: skips or fails the same way as a missing program.
        assert!(!tools::are_there(&["shared/images"]));
        return None;
    };
    let image = list(&folder).into_iter().find(|image| image.name == name);
    let image = image.unwrap_or_else(|| panic!("{name} is not in contents.tsv"));
    let path = into.join(name);
    let packed = [("gz", "gzip"), ("bz2", "bzip2")]
        .map(|(suffix, program)| (folder.join(format!("{name}.{suffix}")), program))
        .into_iter()
        .find(|(packed, _)| packed.is_file());
    let (packed, program) = packed.unwrap_or_else(|| panic!("{name} is not in the folder"));
    let status = Command::new(program)
        .arg("-dc")
        .stdin(File::open(packed).expect("packed image"))
        .stdout(Stdio::from(
            File::create(&path).expect("place for the image"),
        ))
        .status()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    assert!(status.success(), "{program} {name}: {status}");
    Some((image, path))
}

fn list(folder: &Path) -> Vec<Image> {
    let text = fs::read_to_string(folder.join("contents.tsv")).expect("contents.tsv");
    text.lines().skip(1).map(parse).collect()
}

fn parse(line: &str) -> Image {
    let fields: Vec<&str> = line.split('\t').collect();
    Image {
        name: fields[0].into(),
        file_sha256: fields[2].into(),
        virtual_size: fields[3].parse().expect("virtual size"),
        content_sha256: fields[4].into(),
    }
}
