//! What of a pair's disk a job need not read: maps of what its sessions read, kept for the next
//! ones.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use failback_transport::ControlAnswer;

use super::pair::{LET_GO_MAX, Lease, POLL, ServedPair, Visitor, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::job::Tracked;
use crate::map::CarriedMap;
use crate::operation::{MapStanding, MapUse, carried_map, hold_against, keep_map};
use crate::snapshot::SnapshotId;
use crate::step::Step;
use crate::sync::SideMap;

/// The maps of one disk: one that stands for it, and a place for the next.
#[derive(Debug)]
pub(super) struct DiskMaps {
    slots: [CarriedMap; 2],
    /// Root of the map of what is opened, of which not all was read.
    hinted: Option<String>,
    /// Cloned by whoever may write one.
    _writer: Arc<()>,
}

/// What a map was made of.
pub(super) type Hinted = (String, Option<SnapshotId>);

impl DiskMaps {
    /// Two places in `directory`.
    fn slots(directory: &Path, disk: &str) -> [CarriedMap; 2] {
        ["a", "b"].map(|slot| CarriedMap::at(directory, &format!("{disk}.{slot}.map")))
    }

    /// What a session goes by, and where it leaves a map.
    pub(super) fn side(&self, wanted: Option<&MapUse>, len: u64) -> (SideMap, MapStanding) {
        let none = || (SideMap::default(), MapStanding::default());
        let Some(wanted) = wanted else {
            return none();
        };
        let hinted = self.hinted.as_deref().filter(|_| wanted.trust);
        let found = hinted.and_then(|root| Some((find(&self.slots, root)?, root)));
        if let Some((at, root)) = found {
            let loaded = carried_map(&self.slots[at], Some(root));
            let (side, standing) = loaded.unwrap_or_else(|_| none());
            let is_fitting = side.trusted.as_ref().is_some_and(|trusted| {
                let (geometry, hash) = (trusted.map.geometry(), trusted.map.hash());
                let wish = &wanted.wish;
                let as_wished = (wish.hash, wish.block_size, len);
                (hash, geometry.block_size(), geometry.disk_len()) == as_wished
            });
            // It is right still when the session ends: nothing is made in its place.
            let carried = None;
            return match is_fitting {
                true => (SideMap { carried, ..side }, standing),
                false => none(),
            };
        }
        let side = SideMap {
            carried: Some(self.slots[0].clone()),
            ..SideMap::default()
        };
        (side, MapStanding::default())
    }
}

fn find(slots: &[CarriedMap; 2], root: &str) -> Option<usize> {
    slots.iter().position(|slot| slot.load(root).is_ok())
}

impl ServedPair {
    /// The maps of what a session reads: the disk itself, or a snapshot.
    pub(super) fn maps(&self, disk: &str, snapshot: Option<&SnapshotId>) -> DiskMaps {
        let hinted = lock(&self.hinted);
        DiskMaps {
            slots: DiskMaps::slots(&self.directory, disk),
            hinted: hinted
                .get(&(disk.to_owned(), snapshot.cloned()))
                .map(Digest::to_string),
            _writer: self.writers.clone(),
        }
    }

    /// Makes the map of what is at `now`. Nobody else asks for anything of the pair meanwhile.
    pub(super) fn hint(
        &self,
        visitor: &Visitor,
        disk: &str,
        (since, now): (&str, Option<&str>),
        root: &Digest,
        step: &Step<'_>,
    ) -> Result<ControlAnswer> {
        let unhinted = |why: &str| ControlAnswer::Unhinted {
            why: why.to_owned(),
        };
        let Some(tracker) = &self.pair.tracker else {
            return Ok(unhinted("no_tracker"));
        };
        let image = self.disk(disk)?;
        let now = now.map(|now| SnapshotId::new(&visitor.job, now));
        let now = now.transpose()?;
        let (at, _lease) = match &now {
            Some(snapshot) => (self.frozen(disk, &snapshot.to_string())?.1, None),
            None => (image.path.clone(), Some(self.lease(step)?)),
        };
        // The last session may still be busy with the map that it leaves.
        let until = Instant::now() + LET_GO_MAX;
        while Arc::strong_count(&self.writers) > 1 && Instant::now() < until {
            step.wait(POLL)?;
        }
        let slots = DiskMaps::slots(&self.directory, disk);
        let root = root.to_string();
        let Some(left) = find(&slots, &root) else {
            return Ok(unhinted("map"));
        };
        let tracked = Tracked {
            image: &image.path,
            open: &image.open,
            tracker: tracker.as_ref(),
            snapshots: self.pair.snapshots.as_deref(),
        };
        let since = SnapshotId::new(&visitor.job, since)?;
        let (left, made) = (&slots[left], &slots[1 - left]);
        match tracked.patch(&since, &at, (left, &root), made, step)? {
            Ok((root, read)) => {
                lock(&self.hinted).insert((disk.to_owned(), now), root);
                Ok(ControlAnswer::Hinted { root, read })
            }
            Err(why) => Ok(unhinted(why)),
        }
    }

    /// Reads all of a disk whose machine is off, and stays so meanwhile.
    pub(super) fn hold_against(
        &self,
        disk: &str,
        root: &Digest,
        _lease: Lease,
        step: &Step<'_>,
    ) -> Result<ControlAnswer> {
        let image = self.disk(disk)?;
        let slots = DiskMaps::slots(&self.directory, disk);
        let root = root.to_string();
        let map = find(&slots, &root).map(|at| &slots[at]);
        let (path, open) = (&image.path, &image.open);
        let held = hold_against(path, open, (map, &root), step.observer, step.cancel)?;
        Ok(ControlAnswer::Held {
            read: held.read,
            is_equal: held.is_equal,
            differing: held.differing,
            first: held.first,
        })
    }

    /// Leaves the map of a disk that was handed over with it, as syncs save one: for the way back.
    pub(super) fn keep_map(
        &self,
        disk: &str,
        root: &Digest,
        identity: &str,
    ) -> Result<ControlAnswer> {
        let image = self.disk(disk)?;
        if self.is_in_charge() {
            let message = "this side is in charge: no map stands for its disks";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let slots = DiskMaps::slots(&self.directory, disk);
        let root = root.to_string();
        if let Some(at) = find(&slots, &root) {
            keep_map(&image.path, &image.open, (&slots[at], &root), identity)?;
        }
        Ok(ControlAnswer::Done)
    }

    /// Removes the maps of a disk.
    pub(super) fn forget_maps(&self, disk: &str) -> Result<ControlAnswer> {
        self.disk(disk)?;
        lock(&self.hinted).retain(|(of, _), _| of != disk);
        for slot in DiskMaps::slots(&self.directory, disk) {
            slot.remove();
        }
        Ok(ControlAnswer::Done)
    }
}
