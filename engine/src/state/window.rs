//! A bound on what is written and not durable yet.
//!
//! ```text
//! below a window     nobody waits
//! from a window on   one writer flushes what is there; the others go on
//! from two on        they wait for it, so that no flush takes longer than two windows, and no more
//!                    has to be sent again
//! ```
//! A flush costs a disk some milliseconds whatever it flushes. So a window may grow, up to a bound,
//! while it is filled in a moment and flushed in less: what may be lost stays the work of a moment.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::schedule::{Condvar, Mutex, MutexGuard, now};

/// A flush that others wait for ends, and wakes them.
const FLUSH_POLL: Duration = Duration::from_millis(100);

/// After a flush in less time the next window may be twice as long, ...
const QUICK: Duration = Duration::from_millis(32);
/// ... if this one was filled in less than that. After more of either it is half as long.
const SLOW: Duration = Duration::from_millis(128);

/// Bytes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowLen {
    /// Of the first one, and the shortest.
    pub(crate) min: u64,
    /// Of the longest.
    pub(crate) max: u64,
}

impl WindowLen {
    /// That of the window after one of `len` bytes which was filled and flushed in so much time.
    fn next(self, len: u64, filled_in: Duration, flushed_in: Duration) -> u64 {
        match (filled_in, flushed_in) {
            (filled, flushed) if filled > SLOW || flushed > SLOW => (len / 2).max(self.min),
            (_, flushed) if flushed < QUICK => (2 * len).min(self.max),
            _ => len,
        }
    }

    /// Always as long as the first one.
    pub(crate) fn at_first(self) -> Self {
        Self {
            max: self.min,
            ..self
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct FlushWindow {
    len: WindowLen,
    inner: Mutex<Inner>,
    flushed: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// Bytes of the present window.
    len: u64,
    /// Bytes that were written since the last flush that went well.
    unflushed: u64,
    /// When the present window began to be filled: with the flush of the one before.
    begun: Instant,
    /// Whether a thread flushes now.
    is_flushing: bool,
}

impl FlushWindow {
    /// With windows of so many bytes.
    pub(crate) fn new(len: WindowLen) -> Self {
        Self {
            len,
            inner: Mutex::new(Inner {
                len: len.min,
                unflushed: 0,
                begun: now(),
                is_flushing: false,
            }),
            flushed: Condvar::new(),
        }
    }

    /// Counts `written` bytes, after they were, and flushes or waits where that is due.
    ///
    /// # Errors
    /// Those of `flush`, which is called once at most.
    pub(crate) fn add(&self, written: u64, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut inner = self.inner();
        inner.unflushed += written;
        while inner.unflushed >= inner.len {
            if !inner.is_flushing {
                inner.is_flushing = true;
                let covered = inner.unflushed;
                let started = now();
                let filled_in = started - std::mem::replace(&mut inner.begun, started);
                drop(inner);
                let mut flushing = Flushing {
                    window: self,
                    done: 0,
                    took: None,
                };
                flush()?;
                flushing.done = covered;
                flushing.took = Some((filled_in, now() - started));
                return Ok(());
            }
            if inner.unflushed < 2 * inner.len {
                return Ok(());
            }
            let waited = self.flushed.wait_timeout(inner, FLUSH_POLL);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    // It is left whole at every moment.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that flushes; others take its place when it ends, also by a panic.
struct Flushing<'a> {
    window: &'a FlushWindow,
    /// Bytes that are durable now.
    done: u64,
    /// In how much time the window was filled, and flushed; `None`: that failed.
    took: Option<(Duration, Duration)>,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let mut inner = self.window.inner();
        inner.unflushed -= self.done;
        if let Some((filled_in, flushed_in)) = self.took {
            inner.len = self.window.len.next(inner.len, filled_in, flushed_in);
        }
        inner.is_flushing = false;
        drop(inner);
        self.window.flushed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    const LEN: u64 = 1000;
    const FIXED: WindowLen = WindowLen { min: LEN, max: LEN };

    // Goal: writers do not run ahead of a slow flush by more than two windows, and go on after it.
    // Method: a flush that ends when it is told to; others write until they wait.
    #[test]
    fn writers_wait_for_a_slow_flush() {
        let window = &FlushWindow::new(FIXED);
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let written = &AtomicU64::new(LEN);
        thread::scope(|scope| {
            scope.spawn(move || {
                window.add(LEN, || {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let writer = scope.spawn(move || {
                for _ in 0..100 {
                    written.fetch_add(100, Ordering::SeqCst);
                    window.add(100, || Ok(())).unwrap();
                }
            });
            thread::sleep(3 * FLUSH_POLL);

            assert_eq!(written.load(Ordering::SeqCst), 2 * LEN);
            end.send(()).unwrap();
            writer.join().unwrap();
        });

        assert_eq!(written.load(Ordering::SeqCst), LEN + 100 * 100);
        assert!(window.inner().unflushed < LEN);
    }

    // Goal: a flush that fails or panics leaves nobody waiting. Method: one of each, then one more
    // writer, which has to flush itself.
    #[test]
    fn a_flush_that_fails_is_not_waited_for() {
        let window = FlushWindow::new(FIXED);
        let failed = || Err(Error::new(ErrorKind::Io, "flush"));
        assert!(window.add(2 * LEN, failed).is_err());
        let panicked = || window.add(0, || panic!("in a flush"));
        assert!(catch_unwind(AssertUnwindSafe(panicked)).is_err());

        window.add(LEN, || Ok(())).unwrap();

        assert_eq!(window.inner().unflushed, 0);
    }

    // Goal: a window grows only where it is filled in a moment and flushed in less, to its bound,
    // and shrinks where either takes long: behind a slow link it stays as short as it was. Method:
    // a table of times.
    #[test]
    fn a_window_is_the_work_of_a_moment() {
        let bounds = WindowLen { min: 16, max: 256 };
        let table = [
            (16, 8, 8, 32),
            (128, 60, 20, 256),
            (256, 100, 20, 256),
            // Neither quick nor slow.
            (64, 8, 33, 64),
            (64, 128, 128, 64),
            // The disk is slow, then the link.
            (64, 8, 129, 32),
            (64, 1500, 1, 32),
            (16, 1500, 1, 16),
            (16, 8, 1000, 16),
        ];
        for (len, filled, flushed, wanted) in table {
            let [filled_in, flushed_in] = [filled, flushed].map(Duration::from_millis);
            let next = bounds.next(len, filled_in, flushed_in);
            assert_eq!(next, wanted, "{len} after {filled} and {flushed} ms");
        }
    }

    // Goal: no writer leaves more than two windows behind that are not durable, also while windows
    // grow and shrink. Method: seeded writes and flushes of all speeds, whose lengths are set as
    // they would follow; one writer, which flushes whenever that is due.
    #[test]
    fn two_windows_bound_what_is_lost() {
        let bounds = WindowLen {
            min: LEN,
            max: 16 * LEN,
        };
        let window = FlushWindow::new(bounds);
        let mut draws = crate::draws::Draws::of(29);
        for _ in 0..10_000 {
            let len = window.inner().len;
            let written = draws.below(LEN);
            window.add(written, || Ok(())).unwrap();
            assert!(window.inner().unflushed < 2 * len);
            let [filled, flushed] = [(); 2].map(|()| Duration::from_millis(draws.below(200)));
            let next = bounds.next(window.inner().len, filled, flushed);
            assert!((bounds.min..=bounds.max).contains(&next));
            window.inner().len = next;
        }
        assert!(
            window
                .add(16 * LEN, || Err(Error::new(ErrorKind::Io, "flush")))
                .is_err()
        );
        assert!(window.inner().unflushed >= 16 * LEN);
    }
}
