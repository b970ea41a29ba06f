//! What has to hold after each step, whatever went wrong in it.

use std::sync::Arc;

use failback_engine::state::{Journal, Word};

use crate::content::{Content, Goal, first_difference, is_made_of};
use crate::disk::FileDisk;
use crate::session::Place;
use crate::world::SECTOR;

/// A broken promise.
pub(crate) type Broken = String;

/// What is known of the target without looking at it.
#[derive(Debug)]
pub(crate) struct Belief {
    /// The job that its journal is about, by the journal's own name for it.
    job: Option<u128>,
    /// What it holds while the journal says "old".
    pub(crate) old: Content,
    /// What it may hold once the journal says "new".
    news: Vec<Goal>,
    /// While it is marked as mixed: of what. What was written and not flushed may go again.
    mixed_of: Vec<Content>,
    /// Somebody else changed it since it was staged for: nothing may be applied to it.
    pub(crate) is_stale: bool,
}

/// A session that may or may not have begun a job.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) before: Content,
    pub(crate) goal: Goal,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) word: Option<Word>,
    pub(crate) is_in_place: bool,
    pub(crate) has_undo: bool,
    pub(crate) is_mixed: bool,
    pub(crate) has_broken_end: bool,
    /// The result stays with its undo until somebody accepts it.
    pub(crate) waits: bool,
    pub(crate) seen: Content,
}

impl Belief {
    pub(crate) fn new(content: Content) -> Self {
        Self {
            job: None,
            old: content,
            news: Vec::new(),
            mixed_of: Vec::new(),
            is_stale: false,
        }
    }

    /// Somebody else has changed it since it was staged for: what was staged must not be applied.
    pub(crate) fn change(&mut self, content: Content) {
        self.old = content;
        self.news.clear();
        self.is_stale = true;
    }

    /// What is there now is all that is known: nothing is under way.
    pub(crate) fn settle(&mut self, content: &Content, is_mixed: bool) {
        match is_mixed {
            true => {
                let news = self.news.iter().flat_map(|goal| goal.0.iter().cloned());
                self.mixed_of.extend(news.chain([self.old.clone()]));
            }
            false => self.mixed_of.clear(),
        }
        self.old = content.clone();
        self.news = vec![Goal(vec![content.clone()])];
        self.is_stale = false;
    }

    /// Looks at the target and its journal, after `attempt` where there was one.
    pub(crate) fn judge(
        &mut self,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<Found, Broken> {
        let told = |what: &str, e: &failback_engine::Error| format!("{what}: {}", e.chain());
        let journal = place.journal().map_err(|e| told("journal", &e))?;
        let disk = FileDisk::open(&place.host, place.format);
        let seen = disk.and_then(|disk| disk.content());
        let seen = Arc::new(seen.map_err(|e| told("target", &e))?);
        self.take_in(journal.as_ref(), attempt);
        let word = journal.as_ref().map(Journal::word);
        let is_mixed = journal.as_ref().is_some_and(Journal::is_mixed);
        match word {
            _ if is_mixed => self.is_between(&seen)?,
            None | Some(Word::Staging | Word::Staged | Word::Aborted | Word::OldRestored) => {
                self.is_old(&seen, word)?;
            }
            Some(Word::NewUnverified | Word::NewVerified | Word::Done) => {
                self.is_new(&seen, word)?;
            }
            Some(Word::Committing | Word::RollingBack) => self.is_between(&seen)?,
        }
        Ok(Found {
            word,
            is_in_place: journal.as_ref().is_some_and(|j| j.begun().in_place),
            has_undo: journal.as_ref().is_some_and(|j| j.begun().has_undo),
            is_mixed,
            has_broken_end: journal.as_ref().is_some_and(Journal::has_broken_end),
            waits: journal.as_ref().is_some_and(Journal::waits_to_be_accepted),
            seen,
        })
    }

    /// Which job the journal is about now.
    fn take_in(&mut self, journal: Option<&Journal>, attempt: Option<&Attempt>) {
        let job = journal.map(|journal| journal.job().as_u128());
        match attempt {
            Some(attempt) if job != self.job => {
                self.job = job;
                self.old = attempt.before.clone();
                self.news = vec![attempt.goal.clone()];
                self.is_stale = false;
            }
            Some(attempt) => self.news.push(attempt.goal.clone()),
            None => self.job = job,
        }
    }

    fn is_old(&self, seen: &Content, word: Option<Word>) -> Result<(), Broken> {
        match *seen == self.old {
            true => Ok(()),
            false => Err(format!(
                "the journal says {word:?}, and the target is not the old disk at {:?}",
                first_difference(seen, &self.old)
            )),
        }
    }

    fn is_new(&mut self, seen: &Content, word: Option<Word>) -> Result<(), Broken> {
        if !self.news.iter().any(|goal| goal.admits(seen)) {
            let differs = self.news.iter().map(|g| first_difference(seen, &g.0[0]));
            let differs = differs.collect::<Vec<_>>();
            return Err(format!(
                "the journal says {word:?}, and the target is no new disk: differs at {differs:?}"
            ));
        }
        self.news = vec![Goal(vec![seen.clone()])];
        Ok(())
    }

    fn is_between(&self, seen: &Content) -> Result<(), Broken> {
        let news = self.news.iter().flat_map(|goal| goal.0.iter().cloned());
        let before = self.mixed_of.iter().chain([&self.old]).cloned();
        let all: Vec<Content> = news.chain(before).collect();
        match is_made_of(seen, &all, SECTOR) {
            true => Ok(()),
            false => Err("the target holds what neither the old nor the new disk has".into()),
        }
    }
}
