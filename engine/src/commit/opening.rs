//! How a job begins, and what it takes over from an earlier one.

use std::sync::PoisonError;

use crate::disk::TargetAccess;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Mutex, MutexGuard};
use crate::state::{Barriers, Begun, Container, Entry, Folder, Journal, Word};
use crate::sync::Session;

/// What was found of an earlier run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// Blocks that are staged already.
    pub(crate) blocks: u64,
    /// Reason codes, of [`NOTES`].
    pub(crate) reasons: Vec<&'static str>,
}

impl Resumed {
    /// Whether an earlier run is gone on with.
    pub(crate) fn is_resumed(&self) -> bool {
        self.reasons.contains(&RESUMED)
    }

    /// The reasons as they travel in `Result`.
    pub(crate) fn notes(&self) -> u8 {
        notes_of(&self.reasons)
    }
}

/// Reason code of a run that goes on with an earlier one.
const RESUMED: &str = "resumed";

/// Reasons as they travel in `Result`.
pub(crate) fn notes_of(reasons: &[&'static str]) -> u8 {
    let bits = NOTES.iter().zip(0..);
    bits.filter(|(reason, _)| reasons.contains(reason))
        .fold(0, |notes, (_, bit)| notes | 1 << bit)
}

/// Reason codes by their bit in `Result`.
pub(crate) const NOTES: [&str; 8] = [
    RESUMED,
    "source_changed",
    "target_changed",
    "options_changed",
    "state_lost",
    "target_not_replaceable",
    "no_new_file",
    "no_clone",
];

/// A job that has not begun yet.
#[derive(Debug)]
pub(super) struct Opening {
    /// What its journal will begin with.
    first: Entry,
    pub(super) resumed: Resumed,
    /// The journal of an earlier job, while it calls the target mixed.
    left_mixed: Mutex<Option<Journal>>,
}

impl Opening {
    /// `begun` says what the job is; what the session knows of it is filled in here. `source_mark`
    /// tells the source from others. `access`: to the target, where there is one.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new(
        access: Option<&dyn TargetAccess>,
        session: &Session,
        begun: Begun,
        source_mark: u64,
    ) -> Result<Self> {
        let begun = Begun {
            identity: access.map_or(Ok(String::new()), TargetAccess::identity)?,
            disk_len: session.geometry.disk_len(),
            block_size: session.geometry.block_size().as_u32(),
            hash: session.hasher.kind().name().to_owned(),
            verify: session.options.verify_name().to_owned(),
            in_place: false,
            ..begun
        };
        Ok(Self {
            first: Entry {
                begun: Some(begun),
                source: Some(format!("{source_mark:016x}")),
                ..Entry::of(Word::Staging)
            },
            resumed: Resumed::default(),
            left_mixed: Mutex::default(),
        })
    }

    pub(super) fn begun(&self) -> &Begun {
        let begun = self.first.begun.as_ref();
        begun.expect("set when it was made")
    }

    /// Begins the journal.
    pub(super) fn begin(&self, folder: &dyn Folder, barriers: Barriers) -> Result<Journal> {
        Journal::begin(folder, barriers, self.first.clone())
    }

    /// The entry with which a job that was cut off goes on.
    pub(super) fn again(&self) -> Entry {
        Entry {
            begun: None,
            ..self.first.clone()
        }
    }

    /// Notes that an earlier run is gone on with.
    pub(super) fn note_resumed(&mut self, journal: &Journal) {
        if journal.source() != self.first.source.as_deref() {
            self.resumed.reasons.push("source_changed");
        }
        self.resumed.reasons.push(RESUMED);
    }

    /// Takes over what the next job has to know of an earlier one.
    pub(super) fn leave(&mut self, journal: Journal) {
        if journal.is_mixed() {
            self.leave_mixed(journal);
        }
    }

    /// Takes over from a job after COMMIT that nothing on this host can bring to its end: the new
    /// one ends it, if whoever began that said so.
    pub(super) fn leave_lost(&mut self, journal: Journal) -> Result<()> {
        if !self.begun().began_mixed {
            return Err(is_not_finished());
        }
        self.resumed.reasons.push("state_lost");
        self.leave_mixed(journal);
        Ok(())
    }

    pub(super) fn leave_mixed(&mut self, journal: Journal) {
        let begun = self.first.begun.as_mut();
        begun.expect("set when it was made").began_mixed = true;
        self.left_mixed = Mutex::new(Some(journal));
    }

    // A panic while it is held leaves the journal poisoned by itself.
    pub(super) fn left_mixed(&self) -> MutexGuard<'_, Option<Journal>> {
        self.left_mixed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the unfinished job of `journal` is not the one that begins now.
    pub(super) fn why_not_resumed(&self, journal: &Journal) -> Option<&'static str> {
        let (was, is) = (journal.begun(), self.begun());
        let is_same_target = was.identity == is.identity && was.disk_len == is.disk_len;
        let same = |begun: &Begun| {
            (
                begun.container,
                // What is proven at the end, also when only the journal is left to say.
                begun.verify.clone(),
                begun.has_undo,
                begun.keeps_undo,
                // A new file or child is compared anew, by whatever hash of whatever blocks.
                (begun.container == Container::Log).then(|| (begun.block_size, begun.hash.clone())),
            )
        };
        match (is_same_target, same(was) == same(is)) {
            (false, _) => Some("target_changed"),
            (_, false) => Some("options_changed"),
            _ => None,
        }
    }
}

/// Why nothing new begins before an earlier end.
pub(crate) fn waits_to_be_accepted() -> Error {
    let message = "an earlier sync waits to be accepted or undone";
    Error::new(ErrorKind::Refused, message)
}

pub(super) fn is_not_finished() -> Error {
    let message = "an earlier sync is not finished";
    Error::new(ErrorKind::Refused, message)
}
