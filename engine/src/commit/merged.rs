//! The end of a job whose child is merged into the target, from its journal and images alone.

use super::finish::Outcome;
use super::holder::Context;
use super::merging::{Progress, changed, layered_of};
use super::recovery::{Unfinished, session_of};
use crate::abort::{Abort, CancelToken};
use crate::disk::TargetAccess;
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::state::{Barrier, Entry, Journal, Word, remove_needless};

impl Unfinished<'_> {
    /// As [`Unfinished::finish`].
    pub(super) fn finish_merged(
        &self,
        mut journal: Journal,
        cancel: &CancelToken,
    ) -> Result<(Word, Outcome)> {
        let word = journal.word();
        match word {
            // A roll-back may have begun in what does not check: looked at.
            Word::NewVerified if journal.has_broken_end() => {}
            _ if journal.waits_to_be_accepted() => return Ok((word, Outcome::default())),
            Word::NewVerified if !journal.begun().keeps_undo => return self.accept(journal),
            Word::Staging | Word::NewVerified => return Ok((word, Outcome::default())),
            Word::Done | Word::Aborted | Word::OldRestored => {
                remove_needless(self.folder)?;
                return Ok((word, Outcome::default()));
            }
            Word::Staged | Word::Committing | Word::NewUnverified | Word::RollingBack => {}
        }
        let session = session_of(journal.begun())?;
        let abort = Abort::with_cancel(cancel);
        let (access, layers) = self.reopen.layers(journal.begun())?;
        let merging = self.context(&session, &abort).merging(layers.as_ref());
        let layered = layered_of(&journal)?;
        let progress = merging.progress(&layered)?;
        let outcome = match (word, progress) {
            (_, Progress::Neither) => Err(changed()),
            (Word::Staged, Progress::Old) => {
                check_untouched(access.as_ref(), &journal)?;
                merging.check_child(&layered)?;
                merging.go_on(&mut journal, access.as_ref())
            }
            // A COMMIT that has rotted since.
            (Word::Staged, _) => merging.go_on(&mut journal, access.as_ref()),
            (Word::Committing, _) => {
                merging.check_child(&layered)?;
                merging.take_in(&mut journal)
            }
            (Word::RollingBack, _) | (_, Progress::BecomesOld | Progress::OldAgain) => {
                merging.roll_back(&mut journal)
            }
            _ => merging.prove(&mut journal),
        }?;
        Ok((journal.word(), outcome))
    }

    /// As [`Unfinished::roll_back`].
    pub(super) fn roll_back_merged(
        &self,
        mut journal: Journal,
        cancel: &CancelToken,
    ) -> Result<(Word, Outcome)> {
        let is_sealed = journal.word() == Word::Staged;
        if journal.word() == Word::Staging || is_sealed && !self.is_merging(&journal)? {
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            remove_needless(self.folder)?;
            return Ok((Word::Aborted, Outcome::default()));
        }
        if !journal.begun().has_undo {
            let message = "was written without an undo: the old disk is gone";
            return Err(Error::new(ErrorKind::Refused, message).remedy_is(Remedy::AcceptNew));
        }
        let session = session_of(journal.begun())?;
        let abort = Abort::with_cancel(cancel);
        let (_access, layers) = self.reopen.layers(journal.begun())?;
        let merging = self.context(&session, &abort).merging(layers.as_ref());
        let outcome = merging.roll_back(&mut journal)?;
        Ok((journal.word(), outcome))
    }

    /// Whether COMMIT of a sealed job is what does not check. The target is only looked at where
    /// the journal leaves a doubt: it may be in use.
    pub(crate) fn is_merging(&self, journal: &Journal) -> Result<bool> {
        if journal.word() != Word::Staged || !journal.has_broken_end() {
            return Ok(false);
        }
        let session = session_of(journal.begun())?;
        let abort = Abort::new();
        let (_access, layers) = self.reopen.layers(journal.begun())?;
        let merging = self.context(&session, &abort).merging(layers.as_ref());
        let progress = merging.progress(&layered_of(journal)?)?;
        Ok(!matches!(progress, Progress::Old | Progress::Neither))
    }

    fn context<'b>(&'b self, session: &'b crate::sync::Session, abort: &'b Abort) -> Context<'b> {
        Context {
            folder: self.folder,
            barriers: self.barriers,
            session,
            abort,
        }
    }
}

fn check_untouched(access: &dyn TargetAccess, journal: &Journal) -> Result<()> {
    match access.identity()? == journal.begun().identity {
        true => Ok(()),
        false => {
            let message = "was changed since it was staged for; nothing was written to it";
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}
