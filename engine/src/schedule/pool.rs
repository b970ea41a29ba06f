//! Threads that compute.

use std::convert::Infallible;

use super::channel::{Sender, unbounded};
use super::thread::scope;

type Work = Box<dyn FnOnce() + Send>;

/// Threads that compute; a job on them never waits. Stands for rayon's, of which the engine uses no
/// more than this.
#[derive(Debug)]
pub struct Pool {
    queue: Sender<Work>,
}

impl Pool {
    /// Has the job done, some time.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let queued = self.queue.send(Box::new(job));
        queued.expect("the threads take work until the pool is gone");
    }
}

/// Runs `body` beside a pool of so many threads, which do what is left and end before this does.
///
/// # Errors
/// None; what ships can fail.
pub fn with_pool<R>(threads: usize, body: impl FnOnce(&Pool) -> R) -> Result<R, Infallible> {
    let (queue, work) = unbounded::<Work>();
    Ok(scope(|scope| {
        for _ in 0..threads {
            let work = work.clone();
            scope.spawn(move || work.iter().for_each(|job| job()));
        }
        drop(work);
        // Gone at the end, also after a panic: that is what the threads wait for.
        body(&Pool { queue })
    }))
}
