//! From a new file that is whole to one that has the target's name, and back.
//!
//! ```text
//! staging       the new file grows beside the target; its bytes are flushed and read back
//!               its name durable; target unchanged
//! staged        SEAL names both files: nobody else is needed any more
//! committing    COMMIT durable; the names are swapped in one step; names durable
//! new_verified  the old file stands beside: the undo
//! done          it is removed
//! ```
//! The name belongs to the old file or to the new one at every moment: which, is looked up.

use super::finish::check_unchanged;
use super::opening::{is_not_finished, waits_to_be_accepted};
use crate::abort::Abort;
use crate::disk::{NewFile, Standing, TargetAccess};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::hash::Digest;
use crate::state::{
    Barrier, Barriers, Entry, FileMark, Folder, Journal, Made, Word, lead_to, remove_needless,
};

/// Whose the target's name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// The old file's, or nobody's where there was no target.
    Old,
    New,
    /// Somebody else's.
    Neither,
}

/// Takes a new file to its place.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) folder: &'a dyn Folder,
    pub(super) new_file: &'a dyn NewFile,
    pub(super) barriers: Barriers,
    pub(super) abort: &'a Abort,
}

impl Exchange<'_> {
    /// From `staging` to `staged`: the new file is closed, proven, and has `new_root`.
    pub(super) fn seal(
        &self,
        journal: &mut Journal,
        old: Option<&dyn TargetAccess>,
        new_root: Option<Digest>,
    ) -> Result<()> {
        let new_file = self.new_file;
        self.barriers
            .pass(Barrier::NewName, || new_file.sync())
            .map_err(|e| Error::io(e, "flush directory"))?;
        if let Some(old) = old {
            check_unchanged(old, &journal.begun().identity)?;
        }
        let Standing { target, beside } = new_file.standing()?;
        let expected = old.map(TargetAccess::file_id).transpose()?;
        if target.as_ref().map(|file| &file.id) != expected.as_ref() {
            return Err(taken());
        }
        let made = Made {
            new_root: new_root.map(|root| root.to_string()),
            new: beside.ok_or_else(gone)?,
            old: target,
        };
        let staged = Entry {
            made: Some(made),
            ..Entry::of(Word::Staged)
        };
        journal.append(staged, Barrier::Sealed)
    }

    /// From `staged`, or from what a rotted COMMIT left.
    pub(super) fn go_on(&self, journal: &mut Journal) -> Result<()> {
        // The last moment at which all can be left as it is.
        self.abort.check()?;
        let made = made_of(journal)?;
        let standing = self.new_file.standing()?;
        let is_as_sealed = match placed(&standing, &made) {
            Placed::Old => standing.target == made.old && standing.beside == Some(made.new),
            // COMMIT was durable once: its entry has rotted since.
            Placed::New => true,
            Placed::Neither => false,
        };
        if !is_as_sealed {
            let message = "the target or the file that was to take its place was changed by \
                           somebody else; the target was left as it is";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        lead_to(self.folder, self.barriers, journal.job())?;
        journal.append(Entry::of(Word::Committing), Barrier::Committed)?;
        self.place(journal)
    }

    /// From `committing`.
    pub(super) fn place(&self, journal: &mut Journal) -> Result<()> {
        let made = made_of(journal)?;
        match placed(&self.new_file.standing()?, &made) {
            Placed::New => {}
            Placed::Old => self.swap_to(Placed::New, &made)?,
            Placed::Neither => return Err(taken()),
        }
        let new_file = self.new_file;
        self.barriers
            .pass(Barrier::Placed, || new_file.sync())
            .map_err(|e| Error::io(e, "flush directory"))?;
        let word = match journal.begun().verify.as_str() {
            // Nothing was read back of it.
            "off" => Word::NewUnverified,
            _ => Word::NewVerified,
        };
        let left = Entry {
            left: Some(String::new()),
            ..Entry::of(word)
        };
        journal.append(left, Barrier::Verified)?;
        match journal.begun().keeps_undo {
            true => Ok(()),
            false => self.accept(journal),
        }
    }

    /// From `new_verified`: the old file goes.
    pub(super) fn accept(&self, journal: &mut Journal) -> Result<()> {
        journal.append(Entry::of(Word::Done), Barrier::Done)?;
        self.remove_needless()
    }

    /// From any word after COMMIT: the old file gets its name back.
    pub(super) fn roll_back(&self, journal: &mut Journal) -> Result<()> {
        let made = made_of(journal)?;
        // Looked at before the word: a roll-back that cannot be done must not have begun.
        let standing = self.new_file.standing()?;
        let placed = placed(&standing, &made);
        match placed {
            Placed::Old => {}
            Placed::New if standing.beside == made.old => {}
            Placed::New => {
                let message = "the old disk is not there any more, or was changed";
                return Err(Error::new(ErrorKind::Refused, message).remedy_is(Remedy::AcceptNew));
            }
            Placed::Neither => return Err(taken()),
        }
        if journal.word() != Word::RollingBack {
            journal.append(Entry::of(Word::RollingBack), Barrier::RollingBack)?;
        }
        if placed == Placed::New {
            self.swap_to(Placed::Old, &made)?;
        }
        let new_file = self.new_file;
        self.barriers
            .pass(Barrier::PlacedBack, || new_file.sync())
            .map_err(|e| Error::io(e, "flush directory"))?;
        journal.append(Entry::of(Word::OldRestored), Barrier::OldRestored)?;
        self.remove_needless()
    }

    /// Gives the new file up, before COMMIT.
    pub(super) fn abandon(&self, journal: &mut Journal) -> Result<()> {
        if journal.word() == Word::Staging {
            // On a disk that is full this makes the room for the word. Without the file the next
            // run begins anew; what was sealed goes after its word.
            self.new_file.remove()?;
        }
        journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
        self.remove_needless()
    }

    /// Removes what a last word makes needless.
    pub(super) fn remove_needless(&self) -> Result<()> {
        self.new_file.remove()?;
        remove_needless(self.folder)
    }

    /// Swaps the names, and makes sure that it was these two files': a name can be taken by
    /// somebody else between a look and a step.
    fn swap_to(&self, wanted: Placed, made: &Made) -> Result<()> {
        self.new_file.swap()?;
        let after = self.new_file.standing()?;
        let beside = match wanted {
            Placed::New => made.old.as_ref(),
            _ => Some(&made.new),
        };
        let is_right = placed(&after, made) == wanted
            && after.beside.as_ref().map(|file| &file.id) == beside.map(|file| &file.id);
        if is_right {
            return Ok(());
        }
        self.new_file.swap()?;
        Err(taken())
    }
}

/// Whether the new file of an unfinished job has the target's name already.
pub(crate) fn is_placed(new_file: &dyn NewFile, journal: &Journal) -> Result<bool> {
    match journal.made() {
        Some(made) => Ok(placed(&new_file.standing()?, made) == Placed::New),
        None => Ok(false),
    }
}

/// Clears away what an earlier job has beside the target, where a job of another kind begins.
/// Whether that job was given up for it.
///
/// # Errors
/// `Refused` while its result waits, `Io`.
pub(crate) fn drop_replaced(
    folder: &dyn Folder,
    new_file: &dyn NewFile,
    barriers: Barriers,
    mut journal: Journal,
) -> Result<bool> {
    if !journal.begun().container.replaces() {
        return Ok(false);
    }
    let abort = Abort::new();
    let exchange = Exchange {
        folder,
        new_file,
        barriers,
        abort: &abort,
    };
    match journal.word() {
        _ if journal.waits_to_be_accepted() => Err(waits_to_be_accepted()),
        word if word.is_final() => exchange.remove_needless().map(|()| false),
        Word::Staging | Word::Staged => exchange.abandon(&mut journal).map(|()| true),
        Word::NewVerified => exchange.accept(&mut journal).map(|()| false),
        _ => Err(is_not_finished()),
    }
}

fn placed(standing: &Standing, made: &Made) -> Placed {
    let id = |file: Option<&FileMark>| file.map(|file| file.id.clone());
    let target = id(standing.target.as_ref());
    match () {
        () if target == id(Some(&made.new)) => Placed::New,
        () if target == id(made.old.as_ref()) => Placed::Old,
        () => Placed::Neither,
    }
}

fn made_of(journal: &Journal) -> Result<Made> {
    journal.made().cloned().ok_or_else(|| {
        let message = "journal is damaged: COMMIT without a seal";
        Error::new(ErrorKind::Damaged, message)
    })
}

fn taken() -> Error {
    let message = "the name of the target went to another file meanwhile; nothing was changed";
    Error::new(ErrorKind::Refused, message)
}

fn gone() -> Error {
    let message = "the file that was to take the target's place is gone; the target was left as \
                   it is";
    Error::new(ErrorKind::Refused, message)
}
