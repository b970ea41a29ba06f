//! What keeps that which a target becomes, until all of it is there.

use failback_transport as wire;
use serde::{Deserialize, Serialize};

/// See the module's head. Which one a job has is in its journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    /// The stage: a log of changes, applied to the target after COMMIT.
    #[default]
    Log,
    /// A new file beside the target that takes its place; the old file is the undo.
    File,
    /// The same, begun as a clone of the target that shares its bytes.
    Clone,
    /// A differencing child of the target, which is merged into it after COMMIT.
    Child,
}

impl Container {
    /// The word of `--stage` and of reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::File => "file",
            Self::Clone => "clone",
            Self::Child => "child",
        }
    }

    /// Whether a new file takes the target's place: the target is never mixed then.
    #[must_use]
    pub fn replaces(self) -> bool {
        matches!(self, Self::File | Self::Clone)
    }

    pub(crate) fn to_wire(self) -> wire::Container {
        match self {
            Self::Log => wire::Container::Log,
            Self::File => wire::Container::File,
            Self::Clone => wire::Container::Clone,
            Self::Child => wire::Container::Child,
        }
    }
}
