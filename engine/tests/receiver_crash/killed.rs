//! A process that is killed leaves what it wrote in the system's memory: the next one sees words
//! that the power can still take back. Recorded as one story: a sync that is killed between the
//! write of a word and its flush, then what goes on from there.

use failback_engine::CancelToken;
use failback_engine::state::{Barriers, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;

use crate::scenario::{
    Disk, Record, WINDOW, after, finish, position_of, record_end, record_sync, sync,
};
use crate::world::{Op, World};

/// The first `count` changes of a record, and what came of them.
fn joined(first: &Record, count: usize, then: Record) -> Record {
    Record {
        base: first.base.clone(),
        ops: [&first.ops[..count], &then.ops].concat(),
        ..then
    }
}

/// Killed just before these words were durable, then recovered; and killed before the name of the
/// journal was, then synced again.
pub(crate) fn records_killed(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let cancel = CancelToken::new();
    let kept = record_sync(disk, Barriers::new(), Task::Delta, Apply::StageKeepUndo);
    let at_commit = position_of(&kept.base, &kept.ops, Word::Committing) + 1;
    let found = after(&kept.base, &kept.ops[..at_commit]);
    let recovered = record_end(disk, &found, barriers, |job, journal| {
        job.finish(journal, &cancel)
    });

    let done = after(&kept.base, &kept.ops);
    let undone = record_end(disk, &done, Barriers::new(), |job, journal| {
        job.roll_back(journal, &cancel)
    });
    let at_roll_back = position_of(&done, &undone.ops, Word::RollingBack) + 1;
    let found = after(&done, &undone.ops[..at_roll_back]);
    let went_back = record_end(disk, &found, barriers, |job, journal| {
        job.finish(journal, &cancel)
    });

    let named = |op: &Op| matches!(op, Op::Rename { to, .. } if to == "journal");
    let at_name = kept.ops.iter().position(named).unwrap() + 1;
    let world = World::on(&after(&kept.base, &kept.ops[..at_name]));
    let barriers = barriers.with_window(WINDOW);
    sync(&world, disk, barriers, Task::Delta, Apply::StageKeepUndo).unwrap();
    let again = Record {
        disk: disk.clone(),
        base: disk.host.clone(),
        ops: world.ops(),
        ends: vec![Word::NewVerified],
    };
    assert_eq!(finish(&world, disk.format).unwrap(), Word::NewVerified);

    vec![
        joined(&kept, at_commit, recovered),
        joined(&undone, at_roll_back, went_back),
        joined(&kept, at_name, again),
    ]
}
