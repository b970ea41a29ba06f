//! A process that is killed leaves what it wrote in memory, where the next one finds it: a power
//! cut may come much later, and take back what was never flushed.

use std::fmt::Debug;

use failback_engine::state::{Barriers, Journal};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_engine::{CancelToken, Result};

use crate::promises::check;
use crate::scenario::{Disk, Record, WINDOW, after, end, record_sync, sync};
use crate::states::{Effort, each_from};
use crate::world::World;

/// What comes after the kill.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Recover,
    RollBack,
    Sync,
}

/// A killed sync and what came after it, as one record; and the change before which it was killed.
pub(crate) struct Killed {
    pub(crate) record: Record,
    at: usize,
    then: Then,
}

/// Kills a sync before each of its flushes.
pub(crate) fn killed(disk: &Disk, barriers: Barriers, all: &[Then]) -> Vec<Killed> {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let flushes = (0..whole.ops.len()).filter(|at| whole.ops[*at].is_sync());
    flushes
        .flat_map(|at| all.iter().map(move |then| (at, *then)))
        .filter_map(|(at, then)| {
            let world = World::on(&after(&whole.base, &whole.ops[..at]));
            if !matches!(then, Then::Sync) && !has_journal(&world) {
                return None;
            }
            go_on(&world, disk, barriers, then).unwrap();
            let journal = Journal::open(&World::like(&world.now()), Barriers::new()).unwrap();
            let record = Record {
                disk: disk.clone(),
                base: whole.base.clone(),
                ops: [&whole.ops[..at], &world.ops()].concat(),
                ends: journal.iter().map(Journal::word).collect(),
            };
            Some(Killed { record, at, then })
        })
        .collect()
}

fn has_journal(world: &World) -> bool {
    let seen = World::like(&world.now());
    Journal::open(&seen, Barriers::new()).unwrap().is_some()
}

fn go_on(world: &World, disk: &Disk, barriers: Barriers, then: Then) -> Result<()> {
    let cancel = CancelToken::new();
    let format = disk.format;
    match then {
        // As the command does: what an earlier sync left half done comes first.
        Then::Sync => {
            if has_journal(world) {
                end(world, format, world, barriers, |job, journal| {
                    job.finish(journal, &cancel)
                })?;
            }
            let barriers = barriers.with_window(WINDOW);
            sync(world, disk, barriers, Task::Delta, Apply::Stage)
        }
        Then::Recover => end(world, format, world, barriers, |job, journal| {
            job.finish(journal, &cancel)
        })
        .map(drop),
        Then::RollBack => end(world, format, world, barriers, |job, journal| match journal
            .word()
            .is_final()
        {
            true => job.finish(journal, &cancel),
            false => job.roll_back(journal, &cancel),
        })
        .map(drop),
    }
}

impl Killed {
    /// The first broken promise after the kill; how many states were looked at.
    pub(crate) fn find_broken(&self, effort: Effort) -> (usize, Option<String>) {
        let record = &self.record;
        let mut found = None;
        let count = each_from(self.at, &record.base, &record.ops, effort, 5, |state| {
            found = check(record, &state).err().map(|broken| {
                let (then, at) = (self.then, self.at);
                format!(
                    "killed before {at}, then {then:?}, cut at {}: {broken}",
                    state.made
                )
            });
            found.is_none()
        });
        (count, found)
    }
}

impl Debug for Killed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "killed before {}, then {:?}", self.at, self.then)
    }
}
