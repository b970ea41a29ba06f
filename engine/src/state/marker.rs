//! What leads to the state of a target when it is kept elsewhere.
//!
//! Whoever comes without `--state-dir`, or with another one, looks in the default place. While the
//! target may be mixed, or an undo is kept, a file `elsewhere` says there where the state is:
//!
//! ```text
//! {"state":"the state directory","job":"its job"}      one line of JSON
//! the XXH3-64 of that line, 16 hexadecimal digits
//! ```
//! It is durable before COMMIT, and before a target is written in place. It goes when the job is
//! over for good; one that stays behind is stale, as the journal it leads to says.

use failback_vhdx::FileAt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::barrier::{Barrier, Barriers};
use super::folder::Folder;
use super::journal::Journal;
use crate::error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "elsewhere";
const NEW_NAME: &str = "elsewhere.new";
/// Bytes of a marker: the longest path fits, with every character of it escaped.
const MARKER_LEN_MAX: u64 = 64 << 10;

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The state directory.
    pub state: String,
    /// The job whose state is there.
    pub job: String,
}

impl Marker {
    /// The marker in the default place of a target's state, if there is one.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn read(place: &dyn Folder) -> Result<Option<Self>> {
        let failed = |e| Error::io(e, "read marker");
        match place.open(NAME).map_err(failed)? {
            None => Ok(None),
            Some(file) => Self::parse(file.as_ref()).map(Some),
        }
    }

    pub(super) fn parse(file: &dyn FileAt) -> Result<Self> {
        let failed = |e| Error::io(e, "read marker");
        let damaged = || {
            let message = "the marker of a state that is kept elsewhere is damaged";
            Error::new(ErrorKind::Damaged, message)
        };
        let len = file.len().map_err(failed)?;
        if len > MARKER_LEN_MAX {
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

    fn encode(&self) -> Result<Vec<u8>> {
        let line = serde_json::to_string(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "marker").caused_by(e))?;
        Ok(format!("{line}\n{}\n", sum_of(&line)).into_bytes())
    }
}

fn sum_of(line: &str) -> String {
    format!("{:016x}", xxh3_64(line.as_bytes()))
}

/// Leads others to the state in `folder`, if they would not look there: from here on the target may
/// be changed.
///
/// # Errors
/// `NoSpace`, `Io`.
pub(crate) fn lead_to(folder: &dyn Folder, barriers: Barriers, job: Uuid) -> Result<()> {
    let Some(elsewhere) = folder.elsewhere() else {
        return Ok(());
    };
    let failed = |e| Error::io(e, "mark that the state of the target is kept elsewhere");
    let marker = Marker {
        state: elsewhere.here.to_owned(),
        job: job.to_string(),
    };
    let place = elsewhere.place;
    let file = place.create(NEW_NAME).map_err(failed)?;
    file.write_at(0, &marker.encode()?).map_err(failed)?;
    barriers
        .pass(Barrier::Marker, || file.sync())
        .map_err(failed)?;
    place.rename(NEW_NAME, NAME).map_err(failed)?;
    barriers
        .pass(Barrier::MarkerName, || place.sync())
        .map_err(failed)
}

/// Removes what leads to the state in `folder`, if its job is over for good. The last word is
/// durable by then; whether this is does not matter.
///
/// # Errors
/// `Damaged`, `Io`.
pub(super) fn remove_if_over(folder: &dyn Folder) -> Result<()> {
    let Some(elsewhere) = folder.elsewhere() else {
        return Ok(());
    };
    let Some(journal) = Journal::open(folder, Barriers::new())? else {
        return Ok(());
    };
    // Of the same job also when the state was moved since.
    let is_ours =
        |marker: Marker| marker.state == elsewhere.here || marker.job == journal.job().to_string();
    match journal.is_over() && Marker::read(elsewhere.place)?.is_some_and(is_ours) {
        true => remove(elsewhere.place),
        false => Ok(()),
    }
}

/// Removes the marker from the default place.
///
/// # Errors
/// `Io`.
pub(super) fn remove(place: &dyn Folder) -> Result<()> {
    let failed = |e| Error::io(e, "remove marker");
    place.remove(NAME).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use failback_vhdx::MemoryFile;

    // Goal: a marker is read as it was written, whatever the path, and a rotted one leads nowhere.
    // Method: odd paths; a flip in every byte, every length.
    #[test]
    fn a_marker_is_whole_or_damaged() {
        for state in [
            "/a/b",
            "/with \"quotes\"\n and \u{7} lines",
            "/\u{e4}\u{f6}",
        ] {
            let marker = Marker {
                state: state.to_owned(),
                job: Uuid::from_u128(3).to_string(),
            };
            let bytes = marker.encode().unwrap();
            let parse = |bytes: &[u8]| Marker::parse(&MemoryFile::from_bytes(bytes));
            assert_eq!(parse(&bytes).unwrap(), marker);
            for at in 0..bytes.len() - 1 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 7);
                assert_eq!(parse(&flipped).unwrap_err().kind(), ErrorKind::Damaged);
                let cut = parse(&bytes[..at]).unwrap_err();
                assert_eq!(cut.kind(), ErrorKind::Damaged);
            }
        }
    }
}
