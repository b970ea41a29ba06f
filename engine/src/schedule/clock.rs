//! Time, and ids that are new: of the simulation where there is one.

use std::time::{Duration, Instant};

use uuid::{Builder, Uuid};

use super::simulation::current;

/// The present moment. In a simulation moments differ by the simulation's time.
#[must_use]
pub fn now() -> Instant {
    current().map_or_else(Instant::now, |member| member.now())
}

/// Lets others go on for so long.
pub fn sleep(time: Duration) {
    match current() {
        Some(member) => drop(member.block(None, Some(time))),
        None => std::thread::sleep(time),
    }
}

/// An id that nobody else has.
#[must_use]
pub fn random_id() -> Uuid {
    match current() {
        Some(member) => {
            let [high, low] = [(); 2].map(|()| u128::from(member.draw()));
            Builder::from_random_bytes((high << 64 | low).to_le_bytes()).into_uuid()
        }
        None => Uuid::new_v4(),
    }
}
