//! A bound on what is written and not durable yet.
//!
//! ```text
//! below a window     nobody waits
//! from a window on   one writer flushes what is there; the others go on
//! from two on        they wait for it, so that no flush takes longer than two windows, and no more
//!                    has to be sent again
//! ```
//! A flush costs a disk some milliseconds whatever it flushes. So a window may grow, up to a bound,
//! while flushes take next to no time: what may be lost stays what the disk does in a moment.

use std::sync::PoisonError;
use std::time::Duration;

use crate::error::Result;
use crate::schedule::{Condvar, Mutex, MutexGuard, now};

/// A flush that others wait for ends, and wakes them.
const FLUSH_POLL: Duration = Duration::from_millis(100);

/// A window after whose flush in less time the next one may be twice as long.
const QUICK: Duration = Duration::from_millis(32);
/// One after whose flush in more time it is half as long.
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
                drop(inner);
                let mut flushing = Flushing {
                    window: self,
                    done: 0,
                    took: None,
                };
                let started = now();
                flush()?;
                flushing.done = covered;
                flushing.took = Some(now() - started);
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
    /// How long that took; `None`: it failed.
    took: Option<Duration>,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let mut inner = self.window.inner();
        inner.unflushed -= self.done;
        inner.len = match self.took {
            Some(took) if took < QUICK => (2 * inner.len).min(self.window.len.max),
            Some(took) if took > SLOW => (inner.len / 2).max(self.window.len.min),
            _ => inner.len,
        };
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

    // Goal: windows grow while flushes take no time, to their bound, and shrink as soon as they take
    // long; one that fails says nothing. Method: flushes that take no time, long, and fail.
    #[test]
    fn a_window_grows_while_flushes_are_quick() {
        let window = FlushWindow::new(WindowLen {
            min: LEN,
            max: 4 * LEN,
        });
        let len = || window.inner().len;
        let mut seen = Vec::new();
        for _ in 0..4 {
            window.add(len(), || Ok(())).unwrap();
            seen.push(len() / LEN);
        }
        assert_eq!(seen, [2, 4, 4, 4]);
        assert!(
            window
                .add(4 * LEN, || Err(Error::new(ErrorKind::Io, "flush")))
                .is_err()
        );
        assert_eq!(len(), 4 * LEN);
        let slow = || {
            thread::sleep(SLOW + Duration::from_millis(1));
            Ok(())
        };
        for wanted in [2, 1, 1] {
            window.add(len(), slow).unwrap();
            assert_eq!(len(), wanted * LEN);
        }
        let neither = || {
            thread::sleep(QUICK + Duration::from_millis(1));
            Ok(())
        };
        window.add(LEN, neither).unwrap();
        // A machine that is busy may take longer, and never less.
        assert_eq!(len(), LEN);
    }
}
