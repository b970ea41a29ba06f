//! What is recorded of targets that a child is merged into.

use std::io;
use std::path::Path;
use std::sync::Arc;

use failback_engine::Result;
use failback_engine::commit::Replacing;
use failback_engine::disk::{ImageFile, Layer, Layers};
use failback_engine::state::{Barriers, Container, Folder, Word};
use failback_engine::sync::{Changes, InPlaceChanges, Session, Task, run_target};
use failback_engine::system::MediumAccess;
use failback_engine::transport::Apply;
use failback_engine::{CancelToken, Error};
use failback_vhdx::FileAt;

use crate::disk::{Access, target_of};
use crate::elsewhere::KeptElsewhere;
use crate::scenario::{
    Disk, Record, WINDOW, after, at_word, begun, options, position_of, record_end, record_end_in,
    run_with,
};
use crate::world::{World, WorldFile};

impl ImageFile for WorldFile {
    fn path(&self) -> &Path {
        Path::new("target.vhdx")
    }

    fn read_past_cache(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(at, buf)
    }

    fn medium_access(&self) -> MediumAccess {
        MediumAccess::Medium
    }

    fn past_cache(self: Arc<Self>) -> Arc<dyn FileAt> {
        self
    }

    fn use_mark(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// The images of a host whose power can be cut.
#[derive(Debug)]
pub(crate) struct Stack(pub(crate) World);

impl Layers for Stack {
    fn chain(&self) -> Result<Vec<Arc<dyn ImageFile>>> {
        Ok(vec![target_of(&self.0)?])
    }

    fn chain_for_writing(&self) -> Result<Vec<Arc<dyn ImageFile>>> {
        self.chain()
    }

    fn make(&self, layer: Layer) -> Result<Arc<dyn ImageFile>> {
        let failed = |e| Error::io(e, "test image");
        Folder::remove(&self.0, layer.name()).map_err(failed)?;
        Ok(self.0.make(layer.name()).map_err(failed)?)
    }

    fn open(&self, layer: Layer) -> Result<Option<Arc<dyn ImageFile>>> {
        let found = self.0.number_of(layer.name());
        Ok(found.map(|file| -> Arc<dyn ImageFile> { self.0.file(file) }))
    }
}

/// A whole sync that merges a child into the target of `world`.
pub(crate) fn sync_child(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    apply: Apply,
) -> Result<()> {
    sync_child_in(world, disk, barriers, apply, Box::new(world.clone()))
}

/// The same with its state in `folder`.
fn sync_child_in(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    apply: Apply,
    folder: Box<dyn Folder>,
) -> Result<()> {
    let options = options(Task::Delta, apply);
    let session = Session::new(options, disk.old.len() as u64)?;
    let old = Box::new(Access::of(world, disk.format)?);
    let layers = Box::new(Stack(world.clone()));
    let begun = begun(Container::Child, apply);
    let child = Replacing::open_child(old, layers, folder, barriers, &session, begun)?;
    run_with(disk, options, |far, abort| {
        let changes = Changes::InPlace(InPlaceChanges {
            target: &child,
            is_new: false,
            outlives_job: true,
            barriers,
            resume_notes: 0,
            finish: Box::new(|root| {
                child.commit(root, abort)?;
                Ok(None)
            }),
        });
        run_target(&session, &child, Some(changes), far, abort)
    })
}

/// Records such a sync.
pub(crate) fn record_child(disk: &Disk, barriers: Barriers, apply: Apply) -> Record {
    record_child_in(disk, barriers, apply, |world| Box::new(world.clone()))
}

/// The same with its state in another folder of the host.
fn record_child_in(
    disk: &Disk,
    barriers: Barriers,
    apply: Apply,
    folder: impl Fn(&World) -> Box<dyn Folder>,
) -> Record {
    let world = World::on(&disk.host);
    let window = barriers.with_window(WINDOW);
    sync_child_in(&world, disk, window, apply, folder(&world)).unwrap();
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

/// Records one that goes on with the child of one that was cut off.
fn record_child_resumed(disk: &Disk, barriers: Barriers) -> Record {
    let first = record_child(disk, Barriers::new(), Apply::Stage);
    let sealed = position_of(&first.base, &first.ops, Word::Staged);
    let base = after(&first.base, &first.ops[..sealed * 2 / 3]);
    let world = World::on(&base);
    let window = barriers.with_window(WINDOW);
    sync_child(&world, disk, window, Apply::Stage).unwrap();
    Record {
        disk: disk.clone(),
        ops: world.ops(),
        base,
        ends: vec![Word::Done],
    }
}

/// Syncs and their ends.
pub(crate) fn children(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let kept = record_child(disk, Barriers::new(), Apply::StageKeepUndo);
    let done = after(&kept.base, &kept.ops);
    let sealed = at_word(&kept.base, &kept.ops, Word::Staged);
    let half_merged = half_merged(&kept);
    let cancel = CancelToken::new();
    vec![
        record_child(disk, barriers, Apply::Stage),
        record_child(disk, barriers, Apply::StageKeepUndo),
        record_child_resumed(disk, barriers),
        record_end(disk, &done, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end(disk, &sealed, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end(disk, &sealed, barriers, |job, journal| {
            job.finish(journal, &cancel)
        }),
        record_end(disk, &half_merged, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end(disk, &half_merged, barriers, |job, journal| {
            job.finish(journal, &cancel)
        }),
        record_end(disk, &done, barriers, |job, journal| job.accept(journal)),
    ]
}

/// The same of jobs whose state is kept elsewhere.
pub(crate) fn children_elsewhere(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let folder = |world: &World| -> Box<dyn Folder> { Box::new(KeptElsewhere::of(world)) };
    let kept = record_child_in(disk, Barriers::new(), Apply::StageKeepUndo, folder);
    let done = after(&kept.base, &kept.ops);
    let cancel = CancelToken::new();
    vec![
        record_child_in(disk, barriers, Apply::Stage, folder),
        record_end_in(disk, &done, barriers, folder, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
    ]
}

/// The host in the middle of the merge.
fn half_merged(record: &Record) -> crate::world::Host {
    let [from, to] = [Word::Committing, Word::NewUnverified]
        .map(|word| position_of(&record.base, &record.ops, word));
    after(&record.base, &record.ops[..usize::midpoint(from, to)])
}
