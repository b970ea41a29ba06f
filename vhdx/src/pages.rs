//! Pages of the structures that change while an image is written: the BAT and sector bitmaps.
//!
//! ```text
//! clean   as in the file, a bounded number, the oldest dropped first
//! dirty   changed in memory; readers see them at once, the file through the log with a flush
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::Result;
use crate::format::{PAGE, PAGE_LEN};

/// One page as it lies in the file.
pub(crate) type Page = [u8; PAGE_LEN];

/// The cache. Pages are named by their byte offset in the file, a multiple of 4 KiB.
#[derive(Debug, Default)]
pub(crate) struct Pages(RwLock<Held>);

#[derive(Debug, Default)]
struct Held {
    clean: HashMap<u64, Arc<Page>>,
    /// Clean pages, oldest first.
    order: VecDeque<u64>,
    dirty: BTreeMap<u64, DirtyPage>,
    /// Counts every change of any page.
    changes: u64,
}

#[derive(Clone, Debug)]
struct DirtyPage {
    page: Arc<Page>,
    /// Number of the latest change in the page, so that a flush sees whether one came later.
    change: u64,
}

/// A changed page as it was when a flush began.
#[derive(Debug)]
pub(crate) struct PendingPage {
    /// Byte offset in the file.
    pub(crate) at: u64,
    pub(crate) page: Arc<Page>,
    change: u64,
}

impl Pages {
    /// What `look` sees in the page at `at`, changes included. `load` reads and checks a page that
    /// is not held.
    pub(crate) fn look<T>(
        &self,
        at: u64,
        load: impl FnOnce() -> Result<Box<Page>>,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T> {
        let changes = {
            let held = self.held();
            if let Some(page) = held.find(at) {
                return Ok(look(page));
            }
            held.changes
        };
        let page: Arc<Page> = Arc::from(load()?);
        let seen = look(&page);
        let mut held = self.held_mut();
        // Whatever changed meanwhile may be newer than what was loaded.
        if held.changes == changes {
            held.keep(at, page);
        }
        Ok(seen)
    }

    /// Changes the page at `at`.
    pub(crate) fn change(
        &self,
        at: u64,
        load: impl FnOnce() -> Result<Box<Page>>,
        edit: impl FnOnce(&mut Page),
    ) -> Result<()> {
        let mut held = self.held_mut();
        let page = match held.find(at) {
            Some(page) => page.clone(),
            None => Arc::from(load()?),
        };
        held.changes += 1;
        let change = held.changes;
        let dirty = held.dirty.entry(at).or_insert(DirtyPage { page, change });
        edit(Arc::make_mut(&mut dirty.page));
        dirty.change = change;
        Ok(())
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.held().dirty.len()
    }

    /// The first changed page at or behind `at`.
    pub(crate) fn dirty_from(&self, at: u64) -> Option<(u64, Arc<Page>)> {
        let held = self.held();
        let (at, dirty) = held.dirty.range(at..).next()?;
        Some((*at, dirty.page.clone()))
    }

    /// The changed pages as they are now, in the order in which they may become durable.
    ///
    /// Everything outside of `table`, then the table from its end. The bits of a partially present
    /// block are thus durable before its entry, and so is the entry of its bitmap, which lies
    /// behind it in the table: no crash between two log entries leaves a block that says "ask the
    /// bitmap" with a bitmap that is not there or tells of another time.
    pub(crate) fn pending(&self, table: &Range<u64>) -> Vec<PendingPage> {
        let held = self.held();
        let pending = |(at, dirty): (&u64, &DirtyPage)| PendingPage {
            at: *at,
            page: dirty.page.clone(),
            change: dirty.change,
        };
        let (before, after) = (
            held.dirty.range(..table.start),
            held.dirty.range(table.end..),
        );
        let outside = before.chain(after).map(pending);
        outside
            .chain(held.dirty.range(table.clone()).rev().map(pending))
            .collect()
    }

    /// These pages are durable, in the file or its log; those changed again since stay pending.
    pub(crate) fn flushed(&self, written: &[PendingPage]) {
        let mut held = self.held_mut();
        // Loads that began before the write must not be kept after it.
        held.changes += 1;
        for done in written {
            if held
                .dirty
                .get(&done.at)
                .is_some_and(|dirty| dirty.change == done.change)
            {
                held.dirty.remove(&done.at);
                held.keep(done.at, done.page.clone());
            }
        }
    }

    // Nothing between two changes of the maps can panic.
    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Held> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn find(&self, at: u64) -> Option<&Arc<Page>> {
        match self.dirty.get(&at) {
            Some(dirty) => Some(&dirty.page),
            None => self.clean.get(&at),
        }
    }

    fn keep(&mut self, at: u64, page: Arc<Page>) {
        if self.clean.len() >= CLEAN_PAGES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.clean.remove(&oldest);
        }
        if self.clean.insert(at, page).is_none() {
            self.order.push_back(at);
        }
    }
}

/// The page that holds byte `at` of the file, and where in it.
pub(crate) fn place(at: u64) -> (u64, usize) {
    let within = usize::try_from(at % PAGE).expect("an offset within a page");
    (at / PAGE * PAGE, within)
}

/// 16 MiB of unchanged pages: of a BAT they map 2 TiB at 1 MiB blocks, 64 TiB at 32 MiB.
const CLEAN_PAGES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    // Goal: pages become durable in the promised order, and a page changed during a flush stays
    // pending. Method: change pages around a table, look at the list, flush a stale copy.
    use super::*;

    fn dirtied(places: &[u64]) -> Pages {
        let pages = Pages::default();
        for at in places {
            pages
                .change(*at, || Ok(Box::new([0; PAGE_LEN])), |page| page[0] += 1)
                .unwrap();
        }
        pages
    }

    #[test]
    fn the_table_comes_last_and_from_its_end() {
        let pages = dirtied(&[4 * PAGE, 20 * PAGE, 6 * PAGE, PAGE, 5 * PAGE]);
        let order: Vec<u64> = pages
            .pending(&(4 * PAGE..10 * PAGE))
            .iter()
            .map(|page| page.at / PAGE)
            .collect();
        assert_eq!(order, [1, 20, 6, 5, 4]);
    }

    #[test]
    fn a_change_during_a_flush_stays_pending() {
        let pages = dirtied(&[0, PAGE]);
        let written = pages.pending(&(0..0));
        pages
            .change(0, || unreachable!("held"), |page| page[0] = 9)
            .unwrap();
        pages.flushed(&written);
        assert_eq!(pages.dirty_count(), 1);
        let seen = pages.look(0, || unreachable!("held"), |page| page[0]);
        assert_eq!(seen.unwrap(), 9);
    }

    #[test]
    fn the_cache_is_bounded() {
        let pages = Pages::default();
        for at in 0..2 * CLEAN_PAGES_MAX as u64 {
            pages
                .look(at * PAGE, || Ok(Box::new([0; PAGE_LEN])), |_| ())
                .unwrap();
        }
        assert_eq!(pages.held().clean.len(), CLEAN_PAGES_MAX);
        assert_eq!(pages.held().order.len(), CLEAN_PAGES_MAX);
    }
}
