//! A host on which the state of the target is kept elsewhere: whoever looks in the default place
//! has to be led to it as long as the target may be mixed.

use std::io;
use std::sync::Arc;

use failback_engine::state::{Barriers, Elsewhere, Folder, Marker, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_vhdx::FileAt;

use crate::scenario::{Disk, Record, after, raw_disk, record_end_in, record_sync_in};
use crate::world::World;

const HERE: &str = "the state directory";

/// The default place: names of its own among those of the host.
#[derive(Clone, Debug)]
pub(crate) struct DefaultPlace(pub(crate) World);

fn beside(name: &str) -> String {
    format!("default place/{name}")
}

impl Folder for DefaultPlace {
    fn forget(&self, name: &str, _from: u64) -> io::Result<bool> {
        Ok(Folder::open(self, name)?.is_some())
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
        self.0.open(&beside(name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        self.0.create(&beside(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(&beside(from), &beside(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(&beside(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_names_of("default place")
    }

    fn elsewhere(&self) -> Option<Elsewhere<'_>> {
        None
    }
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct KeptElsewhere {
    world: World,
    place: DefaultPlace,
}

impl KeptElsewhere {
    pub(crate) fn of(world: &World) -> Self {
        Self {
            world: world.clone(),
            place: DefaultPlace(world.clone()),
        }
    }
}

impl Folder for KeptElsewhere {
    fn forget(&self, name: &str, _from: u64) -> io::Result<bool> {
        Ok(Folder::open(self, name)?.is_some())
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
        self.world.open(name)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        self.world.create(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.world.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.world.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.world.sync()
    }

    fn elsewhere(&self) -> Option<Elsewhere<'_>> {
        Some(Elsewhere {
            here: HERE,
            place: &self.place,
        })
    }
}

/// A sync, one that keeps its undo, and what ends that.
pub(crate) fn records_elsewhere(barriers: Barriers) -> Vec<Record> {
    let disk = raw_disk();
    let folder = |world: &World| -> Box<dyn Folder> { Box::new(KeptElsewhere::of(world)) };
    let sync = |apply, barriers| record_sync_in(&disk, barriers, Task::Delta, apply, folder);
    let kept = sync(Apply::StageKeepUndo, Barriers::new());
    let done = after(&kept.base, &kept.ops);
    let disk: &Disk = &kept.disk;
    let cancel = failback_engine::CancelToken::new();
    vec![
        sync(Apply::Stage, barriers),
        record_end_in(disk, &done, barriers, folder, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end_in(disk, &done, barriers, folder, |job, journal| {
            job.accept(journal)
        }),
    ]
}

/// # Errors
/// When the target may be mixed, or an undo is kept, and nobody is led to where that is said.
pub(crate) fn check_marker(world: &World, word: Option<Word>) -> Result<(), String> {
    let told = |e: failback_engine::Error| format!("marker: {}", e.chain());
    let marker = Marker::read(&DefaultPlace(world.clone())).map_err(told)?;
    let leads_here = marker.is_some_and(|marker| marker.state == HERE);
    let is_needed = matches!(
        word,
        Some(Word::Committing | Word::NewUnverified | Word::NewVerified | Word::RollingBack)
    );
    match is_needed && !leads_here {
        true => Err("nothing leads to the state of a job that is not over".to_owned()),
        false => Ok(()),
    }
}
