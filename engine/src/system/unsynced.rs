//! What of a file a sync has not covered yet: docs/decisions/0027.
//!
//! A sync of a whole file waits for what is written while it waits: on a quick disk it ends when
//! the writers do. One of the bytes written before it does not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::own_file::sync_range;

/// The longest range that is synced by itself. It takes addresses, and no memory.
const RANGE_LEN_MAX: u64 = 1 << 40;

/// What was changed since the last sync that covers it.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    changed: Mutex<Changed>,
    /// Held during a sync: what one has taken is not durable for the next one before it ends.
    syncing: Mutex<()>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Changed {
    /// Nothing is known, as of a file that was just opened.
    #[default]
    Anything,
    /// Nothing but these bytes, which were written.
    Bytes(Range<u64>),
}

impl Unsynced {
    /// So many bytes were written at `at`; to be called after it.
    pub(super) fn wrote(&self, at: u64, len: u64) {
        let mut changed = self.changed();
        if let Changed::Bytes(bytes) = &mut *changed {
            let end = at.saturating_add(len);
            *bytes = match bytes.is_empty() {
                true => at..end,
                false => bytes.start.min(at)..bytes.end.max(end),
            };
        }
    }

    /// The file was changed in another way, or may have been; to be called after it.
    pub(super) fn changed_otherwise(&self) {
        *self.changed() = Changed::Anything;
    }

    /// Makes all durable that was changed before, and times and length with it.
    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.cover(|_| file.sync_all())
    }

    /// Makes all durable that was changed before, on a file system that syncs ranges; times of the
    /// file need not be.
    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        self.cover(|changed| {
            let is_synced = match changed {
                Changed::Bytes(bytes) if bytes.is_empty() => true,
                Changed::Bytes(bytes) if bytes.end - bytes.start <= RANGE_LEN_MAX => {
                    sync_range(file, bytes)?
                }
                _ => false,
            };
            if is_synced { Ok(()) } else { file.sync_all() }
        })
    }

    /// What the next sync has to cover.
    #[cfg(all(test, unix))]
    pub(super) fn pending(&self) -> Changed {
        self.changed().clone()
    }

    fn cover(&self, sync: impl FnOnce(&Changed) -> io::Result<()>) -> io::Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::mem::replace(&mut *self.changed(), Changed::Bytes(0..0));
        let synced = sync(&changed);
        if synced.is_err() {
            self.changed_otherwise();
        }
        synced
    }

    // It is left whole at every moment.
    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// What the next sync has to cover; it succeeds.
    fn taken(unsynced: &Unsynced) -> Changed {
        let mut taken = None;
        let note = |changed: &Changed| {
            taken = Some(changed.clone());
            Ok(())
        };
        unsynced.cover(note).unwrap();
        taken.unwrap()
    }

    // Goal: a sync covers all that was changed before it, once. Method: writes, another change, and
    // a sync that fails.
    #[test]
    fn what_was_changed_is_covered() {
        let unsynced = Unsynced::default();
        unsynced.wrote(5, 1);
        assert_eq!(taken(&unsynced), Changed::Anything);

        unsynced.wrote(100, 10);
        unsynced.wrote(20, 5);
        assert_eq!(taken(&unsynced), Changed::Bytes(20..110));
        assert_eq!(taken(&unsynced), Changed::Bytes(0..0));

        unsynced.wrote(7, 1);
        let failed = unsynced.cover(|_| Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        unsynced.wrote(9, 1);
        assert_eq!(taken(&unsynced), Changed::Anything);

        unsynced.wrote(7, 1);
        unsynced.changed_otherwise();
        assert_eq!(taken(&unsynced), Changed::Anything);
    }

    // Goal: a sync that has nothing left to cover waits for the one that covers it. Method: one
    // that ends late, and another begun meanwhile.
    #[test]
    fn a_sync_waits_for_the_one_before() {
        let unsynced = &Unsynced::default();
        let is_durable = &AtomicBool::new(false);
        let (begun, has_begun) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                unsynced.cover(|_| {
                    begun.send(()).unwrap();
                    thread::sleep(Duration::from_millis(100));
                    is_durable.store(true, Ordering::SeqCst);
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            unsynced.cover(|_| Ok(())).unwrap();
            assert!(is_durable.load(Ordering::SeqCst));
        });
    }

    // Goal: any range of a real file can be synced by itself, also past its end. Method: a file in
    // a temporary directory; that it is durable cannot be seen here.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_range_of_a_file_is_synced() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for range in [0..1, 4095..4097, 70_000..(1 << 20) + 5] {
            assert!(sync_range(&file, &range).unwrap(), "{range:?}");
        }
    }
}
