//! A bound on what is written and not durable yet.
//!
//! ```text
//! below a window     nobody waits
//! from a window on   one writer flushes what is there; the others go on
//! from two on        they wait for it, so that no flush takes longer than two windows, and no more
//!                    has to be sent again
//! ```

use std::sync::PoisonError;
use std::time::Duration;

use crate::error::Result;
use crate::schedule::{Condvar, Mutex, MutexGuard};

/// A flush that others wait for ends, and wakes them.
const FLUSH_POLL: Duration = Duration::from_millis(100);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct FlushWindow {
    /// Bytes of a window.
    len: u64,
    inner: Mutex<Inner>,
    flushed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// Bytes that were written since the last flush that went well.
    unflushed: u64,
    /// Whether a thread flushes now.
    is_flushing: bool,
}

impl FlushWindow {
    /// With windows of `len` bytes.
    pub(crate) fn new(len: u64) -> Self {
        Self {
            len,
            inner: Mutex::default(),
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
        while inner.unflushed >= self.len {
            if !inner.is_flushing {
                inner.is_flushing = true;
                let covered = inner.unflushed;
                drop(inner);
                let mut flushing = Flushing {
                    window: self,
                    done: 0,
                };
                flush()?;
                flushing.done = covered;
                return Ok(());
            }
            if inner.unflushed < 2 * self.len {
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
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let mut inner = self.window.inner();
        inner.unflushed -= self.done;
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

    // Goal: writers do not run ahead of a slow flush by more than two windows, and go on after it.
    // Method: a flush that ends when it is told to; others write until they wait.
    #[test]
    fn writers_wait_for_a_slow_flush() {
        let window = &FlushWindow::new(LEN);
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
        let window = FlushWindow::new(LEN);
        let failed = || Err(Error::new(ErrorKind::Io, "flush"));
        assert!(window.add(2 * LEN, failed).is_err());
        let panicked = || window.add(0, || panic!("in a flush"));
        assert!(catch_unwind(AssertUnwindSafe(panicked)).is_err());

        window.add(LEN, || Ok(())).unwrap();

        assert_eq!(window.inner().unflushed, 0);
    }
}
