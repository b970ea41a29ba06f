//! What a journal says: the state of a target in a word, and what its end needs to know.

use serde::{Deserialize, Serialize};

use super::container::Container;

/// What the target holds, in a word. docs/operating.md says what each allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Old; the stage grows.
    Staging,
    /// Old; the stage is complete and durable.
    Staged,
    /// Mixed.
    Committing,
    /// New, not read back.
    NewUnverified,
    /// New, proven; the old one can be restored.
    NewVerified,
    /// New; nothing is left to undo it with.
    Done,
    /// Old; the stage was given up.
    Aborted,
    /// Mixed, on the way back.
    RollingBack,
    /// Old again.
    OldRestored,
}

impl Word {
    /// The word itself.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::Committing => "committing",
            Self::NewUnverified => "new_unverified",
            Self::NewVerified => "new_verified",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::RollingBack => "rolling_back",
            Self::OldRestored => "old_restored",
        }
    }

    /// Whether nothing is left to do or undo.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Aborted | Self::OldRestored)
    }

    /// Whether the target is neither the old disk nor the new one, and must not be started.
    #[must_use]
    pub fn is_mixed(self) -> bool {
        matches!(self, Self::Committing | Self::RollingBack)
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The state from here on.
    pub word: Word,
    /// With the first entry: what the job is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// With `staging`: what the source called itself; differs between runs when it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// With `staged`: what was staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// With `staged`, where a new file takes the target's place: the two files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// With `staged`, where a child is merged into the target: the three images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layered: Option<Layered>,
    /// With `new_unverified` and `new_verified`: a mark of the target as the job left it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

impl Entry {
    /// An entry that says nothing but its word.
    #[must_use]
    pub fn of(word: Word) -> Self {
        Self {
            word,
            begun: None,
            source: None,
            sealed: None,
            made: None,
            layered: None,
            left: None,
        }
    }
}

/// What a job is: all that its end needs when nobody is there to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The target as it was named, made absolute.
    pub target: String,
    /// What tells this very file from others, whatever state it is in.
    pub file_id: String,
    /// Its format, where it was named.
    pub format: Option<String>,
    /// Its parents, nearest first.
    pub parents: Vec<String>,
    /// Whether further parents were taken from where the images name them.
    pub follow_parents: bool,
    /// What tells this very file in this very state from others.
    pub identity: String,
    /// Bytes of the disk.
    pub disk_len: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// `blake3` or `xxh3`.
    pub hash: String,
    /// `full`, `changed` or `off`.
    pub verify: String,
    /// Written to the target directly, without a stage: an interrupted job leaves a mixed target.
    pub in_place: bool,
    /// The target was mixed when the job began: an earlier one wrote it in place and did not end.
    /// "Old" is mixed then, and only "new" ends that.
    #[serde(default)]
    pub began_mixed: bool,
    /// What keeps the new disk until all of it is there.
    #[serde(default)]
    pub container: Container,
    /// The stage holds what the target had before.
    pub has_undo: bool,
    /// The stage stays, for an undo, until somebody accepts the result.
    pub keeps_undo: bool,
}

impl Begun {
    /// Whether the target is neither an old disk nor the new one while the job is in this state.
    #[must_use]
    pub fn is_mixed_at(&self, word: Word) -> bool {
        let is_old = matches!(
            word,
            Word::Staging | Word::Staged | Word::Aborted | Word::OldRestored
        );
        match (self.container.replaces(), word.is_mixed()) {
            // The name is the old file's or the new one's at every moment.
            (true, is_between) => self.began_mixed && (is_old || is_between),
            (false, is_mixed) => is_mixed || self.began_mixed && is_old,
        }
    }
}

/// What was staged, when it was complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Root of the disk once the stage is applied, in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// Records of the stage.
    pub records: u64,
    /// Bytes of the stage.
    pub stage_len: u64,
    /// BLAKE3 of all record headers in order, which hold the sums of all payload.
    pub stage_hash: String,
}

/// The new file that is to take the target's place, when all of it was there, and the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Root of the new disk in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// The new file.
    pub new: FileMark,
    /// The old one; absent when there was no target.
    pub old: Option<FileMark>,
}

/// The child that is to be merged into the target, when all of it was there. VHDX images are known
/// by their `DataWriteGuid`, which changes with their content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layered {
    /// Root of the new disk in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// The target before it was written to.
    pub old: String,
    /// The child, and the target that it was merged into.
    pub new: String,
    /// The image of what the target had, and the target that it was merged into; absent without an
    /// undo.
    pub undo: Option<String>,
    /// BLAKE3 of what the child holds: the places, and what is there then.
    pub new_sum: String,
    /// The same of what the target had at these places; absent without an undo.
    pub old_sum: Option<String>,
}

/// What a file is known by, whatever its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// What tells this very file from others.
    pub id: String,
    /// Changes when its bytes do.
    pub content: String,
}
