//! What format a file is in, by its magic at both ends. A name decides nothing; it only makes a
//! missing magic suspicious.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use failback_vhdx::FileAt;

use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::system::HostFile;

/// Format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk, nothing else.
    Raw,
    /// VHDX.
    Vhdx,
    /// VHD.
    Vhd,
    /// The format of another product, by name.
    Foreign(&'static str),
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Self::Raw),
            "vhdx" => Ok(Self::Vhdx),
            "vhd" => Ok(Self::Vhd),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("unknown format `{text}`; known: raw, vhdx, vhd"),
            )),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Foreign(name) => name,
        })
    }
}

impl Format {
    /// The format that a new file of that name gets; `None` for names that say nothing.
    #[must_use]
    pub fn of_suffix(path: &Path) -> Option<Self> {
        let suffix = path.extension()?.to_str()?.to_ascii_lowercase();
        match suffix.as_str() {
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "vhd" | "avhd" => Some(Self::Vhd),
            "raw" | "img" => Some(Self::Raw),
            _ => None,
        }
    }
}

/// Bytes of a VHD footer; old files may have one byte less.
const VHD_FOOTER_LEN: u64 = 512;
const VHD_MAGIC: &[u8] = b"conectix";

/// Magics at the start of other products' images, with their offset.
const FOREIGN: [(usize, &[u8], &str); 5] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"QED\0", "qed"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
];

/// The format of `file` by its magic.
///
/// # Errors
/// `Io` when the ends cannot be read.
pub fn probe(file: &HostFile) -> Result<Format> {
    let failed = |e| Error::io(e, "read magic").path(file.path());
    let len = file.len().map_err(failed)?;
    let mut head = [0; 512];
    let head_len = usize::try_from(len.min(512)).expect("at most 512");
    file.read_at(0, &mut head[..head_len]).map_err(failed)?;
    let head = &head[..head_len];
    if failback_vhdx::is_vhdx(head) {
        return Ok(Format::Vhdx);
    }
    if head.starts_with(VHD_MAGIC) || has_vhd_footer(file, len).map_err(failed)? {
        return Ok(Format::Vhd);
    }
    let foreign = FOREIGN
        .iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    Ok(foreign.map_or(Format::Raw, |(_, _, name)| Format::Foreign(name)))
}

fn has_vhd_footer(file: &HostFile, len: u64) -> std::io::Result<bool> {
    for footer_len in [VHD_FOOTER_LEN, VHD_FOOTER_LEN - 1] {
        let mut magic = [0; 8];
        if let Some(at) = len.checked_sub(footer_len) {
            file.read_at(at, &mut magic)?;
        }
        if magic == VHD_MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The format to read `file` in: `wanted` when it was named, else by magic.
///
/// # Errors
/// `Refused` for another product's image, `Damaged` for a name that promises an image which is not
/// there.
pub(crate) fn decide(file: &HostFile, wanted: Option<Format>) -> Result<Format> {
    let found = match wanted {
        Some(format) => format,
        None => probe(file)?,
    };
    match found {
        Format::Foreign(name) => {
            let message = format!("is a {name} image, which is not supported");
            Err(Error::new(ErrorKind::Refused, message)
                .path(file.path())
                .remedy_is(Remedy::OpenAsRaw))
        }
        Format::Raw if wanted.is_none() && !file.is_device() => {
            match Format::of_suffix(file.path()) {
                Some(promised @ (Format::Vhdx | Format::Vhd)) => {
                    let message =
                        format!("is named as a {promised}, but has no such magic: damaged?");
                    Err(Error::new(ErrorKind::Damaged, message)
                        .path(file.path())
                        .at(0)
                        .remedy_is(Remedy::OpenAsRaw))
                }
                _ => Ok(Format::Raw),
            }
        }
        format => Ok(format),
    }
}
