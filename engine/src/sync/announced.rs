//! Blocks that wait for the target's sub-block sums: how many may, and which keep their bytes.
//!
//! Source: TCP Vegas (Brakmo, Peterson 1994), for questions instead of bytes.
//!
//! ```text
//! question     waits while `window` questions are open
//! answer       took = now - asked; fastest = min(fastest, took)
//!              took > 2 x fastest          it stood in a queue: window - 1, down to `len_min`
//!              else, if the window is full  the link is far:    window + 1, up to `len_max`
//! ```
//! Where answers are quick the window stays as small as it begins: a target that is asked for more
//! than it can keep reads blocks twice. On a far link it doubles with each round trip, until the
//! answers keep the link or the target busy.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use failback_transport::Digest;

use crate::abort::Abort;
use crate::error::Result;
use crate::pipeline::PooledBuffer;
use crate::schedule::{Condvar, Mutex, MutexGuard, now};

/// How often a wait looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// Questions that may be open at most. A target takes 1024 blocks that are announced and not
/// applied; beside these there are those of its queue, at most 256.
pub(super) const OPEN_MAX: usize = 512;

/// A differing block that waits for the target's sums.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) digest: Digest,
    /// `None`: to be read again when it has its sums.
    pub(super) bytes: Option<PooledBuffer>,
    since: Instant,
}

/// All of them, by number.
#[derive(Debug)]
pub(super) struct Waiting {
    state: Mutex<State>,
    answered: Condvar,
    /// Blocks that keep their bytes meanwhile. The scan needs buffers, too.
    kept_max: usize,
}

#[derive(Debug)]
struct State {
    blocks: HashMap<u64, Announced>,
    kept: usize,
    window: Window,
}

impl Waiting {
    /// For a side with so many buffers.
    pub(super) fn new(buffer_count: usize) -> Self {
        let len = (buffer_count / 2).clamp(2, OPEN_MAX);
        Self {
            state: Mutex::new(State {
                blocks: HashMap::new(),
                kept: 0,
                window: Window::new(len, OPEN_MAX),
            }),
            answered: Condvar::new(),
            kept_max: len,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a block that is about to be announced, as soon as the window lets it.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn add(
        &self,
        block: u64,
        digest: Digest,
        bytes: Option<PooledBuffer>,
        abort: &Abort,
    ) -> Result<()> {
        let mut state = self.state();
        while state.blocks.len() >= state.window.len {
            abort.check()?;
            let waited = self.answered.wait_timeout(state, POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let bytes = bytes.filter(|_| state.kept < self.kept_max);
        state.kept += usize::from(bytes.is_some());
        let announced = Announced {
            digest,
            bytes,
            since: now(),
        };
        state.blocks.insert(block, announced);
        Ok(())
    }

    /// The block that the target has sent the sums of; `None`: nobody asked for them.
    pub(super) fn take(&self, block: u64) -> Option<Announced> {
        let mut state = self.state();
        let is_full = state.blocks.len() >= state.window.len;
        let announced = state.blocks.remove(&block)?;
        state.kept -= usize::from(announced.bytes.is_some());
        state.window.answered(now() - announced.since, is_full);
        drop(state);
        self.answered.notify_all();
        Some(announced)
    }
}

/// How many questions may be open.
#[derive(Debug)]
struct Window {
    len: usize,
    len_min: usize,
    len_max: usize,
    fastest: Duration,
}

impl Window {
    fn new(len_min: usize, len_max: usize) -> Self {
        Self {
            len: len_min,
            len_min,
            len_max,
            fastest: Duration::MAX,
        }
    }

    /// An answer took so long, and came while the window was full or not.
    fn answered(&mut self, took: Duration, is_full: bool) {
        self.fastest = self.fastest.min(took);
        if took > self.fastest.saturating_mul(2) {
            self.len = (self.len - 1).max(self.len_min);
        } else if is_full {
            self.len = (self.len + 1).min(self.len_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{HashKind, Hasher};
    use crate::pipeline::BufferPool;

    const MS: Duration = Duration::from_millis(1);

    // Goal: the window follows the link, within its bounds. Method: rows of answers, and what it
    // comes to.
    #[test]
    fn the_window_grows_on_far_links_only() {
        let rows = [
            (
                "quick answers that queue up",
                vec![(MS, true), (24 * MS, true)],
                30,
                24,
            ),
            (
                "far and idle",
                vec![(50 * MS, true), (60 * MS, true)],
                30,
                84,
            ),
            ("far, and not full", vec![(50 * MS, false)], 30, 24),
            ("far, up to the limit", vec![(50 * MS, true)], 900, 512),
        ];
        for (name, answers, rounds, expected) in rows {
            let mut window = Window::new(24, 512);
            for _ in 0..rounds {
                for (took, is_full) in &answers {
                    window.answered(*took, *is_full);
                }
            }
            let (low, high) = (expected, expected + 1);
            assert!((low..=high).contains(&window.len), "{name}: {}", window.len);
        }
    }

    // Goal: what queues up shrinks the window again, to where it began and no further.
    #[test]
    fn the_window_shrinks_when_answers_queue_up() {
        let mut window = Window::new(24, 512);
        (0..100).for_each(|_| window.answered(50 * MS, true));
        assert_eq!(window.len, 124);
        (0..40).for_each(|_| window.answered(101 * MS, true));
        assert_eq!(window.len, 84);
        (0..100).for_each(|_| window.answered(101 * MS, true));
        assert_eq!(window.len, 24);
    }

    // Goal: waiting blocks hold half of the buffers and no more, and memory by the window.
    #[test]
    fn only_some_blocks_keep_their_bytes() {
        let pool = BufferPool::new(8);
        let abort = Abort::new();
        let waiting = Waiting::new(4);
        let digest = Hasher::new(HashKind::Xxh3).leaf(b"block");
        waiting.state().window.len = 4;
        for block in 0..4 {
            let bytes = pool.take(16, || abort.check()).unwrap();
            waiting.add(block, digest, Some(bytes), &abort).unwrap();
        }
        abort.cancel();
        assert!(waiting.add(4, digest, None, &abort).is_err(), "it is full");
        let kept = [0, 1, 2, 3].map(|block| waiting.take(block).unwrap().bytes.is_some());
        assert_eq!(kept, [true, true, false, false]);
        assert!(waiting.take(0).is_none(), "nobody asked again");
        waiting.add(5, digest, pool.try_take(16), &abort).unwrap();
        assert!(
            waiting.take(5).unwrap().bytes.is_some(),
            "there is room again"
        );
    }
}
