//! Snapshots of disk images: what a pass over a disk reads while its machine goes on writing.
//!
//! ```text
//! Reflink         a clone beside the image, on file systems that share bytes (XFS, btrfs)
//! HookSnapshots   commands of the operator
//! ```

mod hooks;
mod reflink;

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use hooks::HookSnapshots;
pub use reflink::Reflink;
pub(crate) use reflink::is_clone_name;

use crate::error::{Error, ErrorKind, Result};
use crate::step::Step;

/// A snapshot by name: of which job, and which of its snapshots.
///
/// Each has one to 64 letters, digits, `-` and `_`: they become parts of file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct SnapshotId {
    job: String,
    name: String,
}

impl SnapshotId {
    /// The snapshot `name` of `job`.
    ///
    /// # Errors
    /// `Usage` for names that are none.
    pub fn new(job: impl Into<String>, name: impl Into<String>) -> Result<Self> {
        let (job, name) = (job.into(), name.into());
        match is_plain(&job) && is_plain(&name) {
            true => Ok(Self { job, name }),
            false => {
                let message = format!("{job:?} and {name:?} cannot name a snapshot");
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }

    /// The job that made it.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Which of its snapshots.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.name)
    }
}

fn is_plain(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=PART_LEN_MAX).contains(&part.len()) && part.chars().all(is_plain)
}

/// Characters of either part.
const PART_LEN_MAX: usize = 64;

/// An id as it stands in journals.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    job: String,
    name: String,
}

impl TryFrom<Written> for SnapshotId {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        Self::new(written.job, written.name)
    }
}

impl From<SnapshotId> for Written {
    fn from(SnapshotId { job, name }: SnapshotId) -> Self {
        Self { job, name }
    }
}

/// Makes snapshots of disk images.
///
/// A snapshot holds what the image held at one moment, as after a power cut at that moment, and
/// does not change while it is kept. The caller does not make, release or list snapshots of one job
/// from two threads at once.
pub trait SnapshotProvider: Send + Sync + Debug {
    /// Freezes the disk image at `image`, which may be in use, and says where the snapshot is.
    /// Asked again for the same id: the same snapshot if it is whole, else made anew.
    ///
    /// # Errors
    /// `Unsupported` where it cannot be had at all, `NoSpace`, `Io`, `Refused`, `Cancelled`.
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf>;

    /// Lets it go; one that is gone is let go already.
    ///
    /// # Errors
    /// `Io`, `Refused`, `Cancelled`.
    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()>;

    /// What exists of this job for this image, in order, also what was not made to its end: to find
    /// what a crash left behind.
    ///
    /// # Errors
    /// `Io`, `Refused`, `Cancelled`.
    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: no id leads out of a folder or splits a name. Method: names, and what is none.
    #[test]
    fn parts_are_letters_digits_and_dashes() {
        assert!(SnapshotId::new("job-1_A", "p".repeat(64)).is_ok());
        for part in [
            "",
            ".",
            "a.b",
            "a/b",
            "a b",
            "a\n",
            "\u{e4}",
            &"p".repeat(65),
        ] {
            assert!(SnapshotId::new(part, "p").is_err(), "{part:?}");
            assert!(SnapshotId::new("j", part).is_err(), "{part:?}");
        }
    }

    // Goal: an id from a journal is checked as well. Method: one that is none.
    #[test]
    fn ids_are_checked_when_they_are_read() {
        let id = SnapshotId::new("j", "p").unwrap();
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SnapshotId>(&text).unwrap(), id);
        let wrong = serde_json::from_str::<SnapshotId>(r#"{"job":"j","name":"../p"}"#);
        assert!(wrong.is_err());
    }
}
