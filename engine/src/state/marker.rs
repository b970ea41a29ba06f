//! What leads to the state of a target when it is kept elsewhere.
//!
//! Whoever comes without `--state-dir`, or with another one, looks in the default place. While the
//! target may be mixed, or an undo is kept, a file `elsewhere` says there where the state is:
//!
//! ```text
//! {"state":"the state directory","job":"its job"}      and its sum
//! ```
//! It is durable before COMMIT, and before a target is written in place. It goes when the job is
//! over for good; one that stays behind is stale, as the journal it leads to says.

use failback_vhdx::FileAt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::barrier::Barriers;
use super::folder::Folder;
use super::journal::Journal;
use super::signed::{self, Names};
use crate::error::{Error, Result};

pub(super) const NAME: &str = NAMES.name;
const NAMES: Names = Names {
    name: "elsewhere",
    new: "elsewhere.new",
};

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
        signed::parse(file)
    }
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
    let marker = Marker {
        state: elsewhere.here.to_owned(),
        job: job.to_string(),
    };
    signed::put(elsewhere.place, NAMES, &marker, barriers)
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
    use crate::error::ErrorKind;
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
            let bytes = signed::encode(&marker).unwrap();
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
