//! The agent: serves granted disks to peers.
//!
//! A peer names a grant, never a path. What is not granted does not exist for it, and a grant is
//! read-only unless it says otherwise. The disk is opened and locked when a peer names it, and
//! closed when the session or the link ends. Nothing that a peer sends ends the agent.
//!
//! ```text
//! visit    one peer         grant         the disks that may be used, by name
//! joining  its connections  planning      what it asks before a session
//! hinting  what of a disk it need not read
//! steering one that controls a machine   pair, control_spec  the machines that may be controlled
//! reversing  the way back to this host
//! ```

mod control_spec;
mod grant;
mod hinting;
mod joining;
mod pair;
mod planning;
mod reversing;
mod steering;
mod visit;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded};
use failback_transport::link::{Link, Listener, Shape};

pub use control_spec::{ControlSpec, PairDiskSpec, PairSpec};
pub use grant::{Grant, Grants};
pub use pair::Pair;

use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};

/// Peers at a time, those that have not yet said hello included: each has threads and buffers of
/// its own.
const PEERS_MAX: usize = 16;

/// How often it looks for `cancel`.
const POLL: Duration = Duration::from_millis(100);

/// Accepts peers until `cancel`, and ends the sessions under way then. Each connection is slowed
/// down to `shape` by itself.
///
/// # Errors
/// None so far; an accept that fails is told to the observer and tried again.
pub fn serve(
    listener: &Listener,
    grants: &Grants,
    shape: Shape,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let peers = AtomicUsize::new(0);
    let joins = joining::Joins::default();
    let (done, is_done) = bounded::<()>(0);
    std::thread::scope(|scope| {
        let stop = listener.stop_handle();
        scope.spawn(move || {
            while matches!(is_done.recv_timeout(POLL), Err(RecvTimeoutError::Timeout)) {
                if cancel.is_cancelled() {
                    return stop.stop();
                }
            }
        });
        // Dropped at the end of the loop, whatever ends it.
        let _done = done;
        loop {
            let link = match listener.accept() {
                Ok(Some(link)) => link,
                Ok(None) => return Ok(()),
                Err(_) if cancel.is_cancelled() => return Ok(()),
                Err(error) => {
                    // Want of descriptors or memory passes; an agent that ends because of it does
                    // not come back.
                    let message = Error::new(ErrorKind::Io, "accept").caused_by(error).chain();
                    observer.event(&Event::Warning { message });
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            if peers.fetch_add(1, Ordering::SeqCst) >= PEERS_MAX {
                // Dropping the link closes it; the peer sees an end instead of a wait.
                peers.fetch_sub(1, Ordering::SeqCst);
                refuse(&link, observer);
                continue;
            }
            let (peers, joins) = (&peers, &joins);
            scope.spawn(move || {
                // A defect met by one peer must not end the others' agent.
                let served = catch_unwind(AssertUnwindSafe(|| {
                    visit::receive_peer(link, shape, (grants, joins), observer, cancel);
                }));
                peers.fetch_sub(1, Ordering::SeqCst);
                if served.is_err() {
                    let message = "a session panicked; this is a defect of failback".to_owned();
                    observer.event(&Event::Warning { message });
                }
            });
        }
    })
}

fn refuse(link: &Link, observer: &dyn Observer) {
    let message = format!(
        "peer {} turned away: {PEERS_MAX} peers are being served",
        link.peer
    );
    observer.event(&Event::Warning { message });
}
