//! Small files beside a target's state that lead somewhere else: one line of JSON, and its sum.
//!
//! ```text
//! {...}                                        one line of JSON
//! the XXH3-64 of that line, 16 hexadecimal digits
//! ```

use failback_vhdx::FileAt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use super::barrier::{Barrier, Barriers};
use super::folder::Folder;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of such a file: the longest path fits, with every character of it escaped.
const LEN_MAX: u64 = 64 << 10;

/// Names of such a file, for good and while it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) name: &'static str,
    pub(super) new: &'static str,
}

/// What the file holds, if it is whole.
///
/// # Errors
/// `Damaged`, `Io`.
pub(super) fn parse<T: DeserializeOwned>(file: &dyn FileAt) -> Result<T> {
    let failed = |e| Error::io(e, "read marker");
    let damaged = || {
        let message = "a marker beside the state of a target is damaged";
        Error::new(ErrorKind::Damaged, message)
    };
    let len = file.len().map_err(failed)?;
    if len > LEN_MAX {
        return Err(damaged());
    }
    let mut bytes = vec![0; usize::try_from(len).expect("at most 64 KiB")];
    file.read_at(0, &mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| damaged())?;
    let (line, sum) = text.split_once('\n').ok_or_else(damaged)?;
    match sum.trim_end() == sum_of(line) {
        true => serde_json::from_str(line).map_err(|_| damaged()),
        false => Err(damaged()),
    }
}

/// The bytes of such a file.
///
/// # Errors
/// `Internal`.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let line = serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "marker").caused_by(e))?;
    Ok(format!("{line}\n{}\n", sum_of(&line)).into_bytes())
}

/// Writes such a file, durably, in place of the one that is there.
///
/// # Errors
/// `NoSpace`, `Io`.
pub(super) fn put<T: Serialize>(
    place: &dyn Folder,
    names: Names,
    value: &T,
    barriers: Barriers,
) -> Result<()> {
    let failed = |e| Error::io(e, "leave a marker at the target");
    let file = place.create(names.new).map_err(failed)?;
    file.write_at(0, &encode(value)?).map_err(failed)?;
    barriers
        .pass(Barrier::Marker, || file.sync())
        .map_err(failed)?;
    place.rename(names.new, names.name).map_err(failed)?;
    barriers
        .pass(Barrier::MarkerName, || place.sync())
        .map_err(failed)
}

/// Removes such a file, durably.
///
/// # Errors
/// `Io`.
pub(super) fn remove(place: &dyn Folder, names: Names, barriers: Barriers) -> Result<()> {
    let failed = |e| Error::io(e, "remove marker");
    place.remove(names.name).map_err(failed)?;
    barriers
        .pass(Barrier::MarkerName, || place.sync())
        .map_err(failed)
}

fn sum_of(line: &str) -> String {
    format!("{:016x}", xxh3_64(line.as_bytes()))
}
