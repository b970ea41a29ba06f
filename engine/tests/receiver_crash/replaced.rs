//! What is recorded of targets whose place a new file takes.

use failback_engine::Result;
use failback_engine::commit::Replacing;
use failback_engine::disk::TargetAccess;
use failback_engine::state::{Barriers, Container, Word};
use failback_engine::sync::{Changes, InPlaceChanges, Session, Task, run_target};
use failback_engine::transport::Apply;

use crate::beside::Beside;
use crate::disk::Access;
use crate::scenario::{Disk, Record, WINDOW, after, begun, options, position_of, run_with};
use crate::world::{TARGET, World};

/// The same disk, where there is no target yet.
pub(crate) fn missing(disk: &Disk) -> Disk {
    let mut disk = Disk {
        is_missing: true,
        old: vec![0; disk.old.len()],
        ..disk.clone()
    };
    disk.host.names.remove(TARGET);
    disk
}

/// A whole sync that puts a new file in the place of the target of `world`.
pub(crate) fn sync_replacing(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    container: Container,
    (apply, goes_on): (Apply, bool),
) -> Result<()> {
    let task = match (container, goes_on) {
        (Container::File, false) => Task::Full,
        _ => Task::Delta,
    };
    let mut options = options(task, apply);
    options.goes_on = goes_on;
    let session = Session::new(options, disk.old.len() as u64)?;
    let old = match disk.is_missing {
        true => None,
        false => {
            let access: Box<dyn TargetAccess> = Box::new(Access::of(world, disk.format)?);
            Some(access)
        }
    };
    let new_file = Box::new(Beside::of(world, disk.format, disk.new.len() as u64));
    let folder = Box::new(world.clone());
    let begun = begun(container, apply);
    let replacing = Replacing::open(old, new_file, folder, barriers, &session, begun)?;
    run_with(disk, options, |far, abort| {
        let changes = Changes::InPlace(InPlaceChanges {
            target: &replacing,
            is_new: replacing.is_empty(),
            outlives_job: true,
            barriers,
            resume_notes: 0,
            finish: Box::new(|root| {
                replacing.commit(root, abort)?;
                Ok(None)
            }),
        });
        run_target(&session, &replacing, Some(changes), far, abort)
    })
}

/// Records such a sync.
pub(crate) fn record_replacing(
    disk: &Disk,
    barriers: Barriers,
    container: Container,
    apply: Apply,
) -> Record {
    let world = World::on(&disk.host);
    let window = barriers.with_window(WINDOW);
    sync_replacing(&world, disk, window, container, (apply, false)).unwrap();
    Record {
        disk: disk.clone(),
        base: disk.host.clone(),
        ops: world.ops(),
        ends: vec![match apply {
            Apply::StageKeepUndo => Word::NewVerified,
            _ => Word::Done,
        }],
    }
}

/// Records a full copy that goes on with what one that was cut off before its end had left.
pub(crate) fn record_replacing_resumed(disk: &Disk, barriers: Barriers) -> Record {
    let first = record_replacing(disk, Barriers::new(), Container::File, Apply::Stage);
    let sealed = position_of(&first.base, &first.ops, Word::Staged);
    let base = after(&first.base, &first.ops[..sealed * 2 / 3]);
    let world = World::on(&base);
    let window = barriers.with_window(WINDOW);
    let again = (Apply::Stage, true);
    sync_replacing(&world, disk, window, Container::File, again).unwrap();
    Record {
        disk: disk.clone(),
        ops: world.ops(),
        base,
        ends: vec![Word::Done],
    }
}
