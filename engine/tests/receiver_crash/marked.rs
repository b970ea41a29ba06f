//! A sync that writes in place, and one that stages over what such a sync left: the target may be
//! neither old nor new, and its journal says so for as long as that may be.

use failback_engine::Result;
use failback_engine::commit::Marked;
use failback_engine::state::{Barriers, Begun, Container, Journal, Word};
use failback_engine::sync::{Changes, InPlaceChanges, Session, Task, run_target};
use failback_engine::transport::Apply;

use crate::disk::Access;
use crate::promises::check_marked;
use crate::scenario::{
    Disk, Record, WINDOW, after, begun, content, finish, options, position_of, run_with, sync,
};
use crate::states::{Effort, each};
use crate::world::World;

/// A whole sync that writes to the target of `world` at once.
fn sync_in_place(world: &World, disk: &Disk, barriers: Barriers) -> Result<()> {
    let options = options(Task::Delta, Apply::InPlace);
    let session = Session::new(options, disk.new.len() as u64)?;
    let begun = Begun {
        disk_len: session.geometry.disk_len(),
        block_size: session.geometry.block_size().as_u32(),
        hash: session.hasher.kind().name().to_owned(),
        verify: "changed".into(),
        in_place: true,
        has_undo: false,
        ..begun(Container::Log, Apply::InPlace)
    };
    let access = Box::new(Access::of(world, disk.format)?);
    let marked = Marked::open(access, Box::new(world.clone()), barriers, begun)?;
    let target = marked.target();
    run_with(disk, options, |far, abort| {
        let finish = Box::new(move |_| marked.end().map(|()| None));
        let changes = Changes::InPlace(InPlaceChanges {
            barriers,
            ..InPlaceChanges::new(target.as_ref(), false, finish)
        });
        run_target(&session, target.as_ref(), Some(changes), far, abort)
    })
}

/// As the command does: what a staged sync left half done comes first. Of one in place nothing can
/// come of that.
fn stage(world: &World, disk: &Disk, barriers: Barriers) -> Result<()> {
    let journal = Journal::open(world, barriers)?;
    if journal.is_some_and(|journal| !journal.begun().in_place) {
        finish(world, disk.format)?;
    }
    let window = barriers.with_window(WINDOW);
    sync(world, disk, window, Task::Delta, Apply::Stage)
}

/// One that was recorded, and how the same sync is run again.
pub(crate) struct MarkedRecord {
    record: Record,
    again: fn(&World, &Disk, Barriers) -> Result<()>,
}

/// A sync in place; the same where one was cut off; a staged one where one was cut off, and where
/// that had found nothing to do.
pub(crate) fn records_marked(disk: &Disk, barriers: Barriers) -> Vec<MarkedRecord> {
    let whole = record(disk, Barriers::new(), sync_in_place);
    let done = position_of(&whole.base, &whole.ops, Word::Done);
    let begun = position_of(&whole.base, &whole.ops, Word::Committing);
    let left = |ops: usize| {
        let host = after(&whole.base, &whole.ops[..ops]);
        let old = content(&World::like(&host), disk.format).unwrap();
        Disk {
            host,
            old,
            ..disk.clone()
        }
    };
    // From the middle on: threads share the work in another way each time, and an image shows what
    // was written only with its table.
    let middle = usize::midpoint(begun, done);
    let is_mixed = |left: &Disk| left.old != disk.old && left.old != disk.new;
    let mixed = (middle..done)
        .chain((begun..middle).rev())
        .map(left)
        .find(is_mixed);
    let (mixed, complete) = (mixed.expect("a mixed disk"), left(done));
    assert!(complete.old == disk.new);
    let marked = |disk: &Disk, again: fn(&World, &Disk, Barriers) -> Result<()>| MarkedRecord {
        record: record(disk, barriers, again),
        again,
    };
    vec![
        marked(disk, sync_in_place),
        marked(&mixed, sync_in_place),
        marked(&mixed, stage),
        marked(&complete, stage),
    ]
}

fn record(
    disk: &Disk,
    barriers: Barriers,
    sync: fn(&World, &Disk, Barriers) -> Result<()>,
) -> Record {
    let world = World::on(&disk.host);
    sync(&world, disk, barriers).unwrap();
    Record {
        disk: disk.clone(),
        base: disk.host.clone(),
        ops: world.ops(),
        ends: vec![Word::Done],
    }
}

/// How many states there were, or the first broken promise.
pub(crate) fn check_all_marked(
    records: &[MarkedRecord],
    effort: Effort,
) -> std::result::Result<usize, String> {
    let mut count = 0;
    for MarkedRecord { record, again } in records {
        let mut found = None;
        count += each(&record.base, &record.ops, effort, 3, |state| {
            let sync = |world: &World, disk: &Disk| again(world, disk, Barriers::new());
            let broken = check_marked(record, &state, sync).err();
            found = broken.map(|broken| crate::describe(record, &state, &broken));
            found.is_none()
        });
        if let Some(found) = found {
            return Err(found);
        }
    }
    Ok(count)
}
