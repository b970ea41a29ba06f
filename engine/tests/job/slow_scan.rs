//! A source whose last scan takes as long as a test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use failback_engine::endpoint::Endpoint;
use failback_engine::job::{Authority, Charge, DiskSpec, Hint, HintBase, SourceHost};
use failback_engine::machine::Machine;
use failback_engine::map::CarriedMap;
use failback_engine::operation::Held;
use failback_engine::snapshot::SnapshotId;
use failback_engine::{Result, Step};

/// Another source, which reads all of a disk only when it may.
#[derive(Clone, Debug)]
pub(crate) struct SlowScan {
    pub(crate) of: Arc<dyn SourceHost>,
    /// Scans that began.
    pub(crate) begun: Arc<AtomicUsize>,
    pub(crate) may: Arc<AtomicBool>,
}

impl SlowScan {
    pub(crate) fn new(of: Arc<dyn SourceHost>) -> Self {
        Self {
            of,
            begun: Arc::default(),
            may: Arc::default(),
        }
    }
}

impl SourceHost for SlowScan {
    fn hold_against(
        &self,
        disk: &DiskSpec,
        map: (&CarriedMap, &str),
        step: &Step<'_>,
    ) -> Result<Held> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        while !self.may.load(Ordering::SeqCst) {
            step.wait(Duration::from_millis(2))?;
        }
        self.of.hold_against(disk, map, step)
    }

    fn machine(&self) -> &dyn Machine {
        self.of.machine()
    }

    fn snapshot(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<Endpoint> {
        self.of.snapshot(disk, id, step)
    }

    fn release(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        self.of.release(disk, id, step)
    }

    fn snapshots(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        self.of.snapshots(disk, step)
    }

    fn disks(&self, step: &Step<'_>) -> Result<Option<Vec<String>>> {
        self.of.disks(step)
    }

    fn is_tracked(&self, step: &Step<'_>) -> Result<bool> {
        self.of.is_tracked(step)
    }

    fn hint(&self, disk: &DiskSpec, base: &HintBase<'_>, step: &Step<'_>) -> Result<Hint> {
        self.of.hint(disk, base, step)
    }

    fn delete_disk(&self, disk: &DiskSpec, is_gone: bool, step: &Step<'_>) -> Result<()> {
        self.of.delete_disk(disk, is_gone, step)
    }

    fn forget_maps(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<()> {
        self.of.forget_maps(disk, step)
    }

    fn prove_quiet(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<String> {
        self.of.prove_quiet(disk, step)
    }

    fn keep_map(
        &self,
        disk: &DiskSpec,
        map: (&CarriedMap, &str),
        identity: &str,
        step: &Step<'_>,
    ) -> Result<()> {
        self.of.keep_map(disk, map, identity, step)
    }

    fn fence(&self, step: &Step<'_>) -> Result<Option<Authority>> {
        self.of.fence(step)
    }

    fn act_for(&self, charge: Charge) {
        self.of.act_for(charge);
    }

    fn advance(&self, epoch: u64, authority: Option<&str>, step: &Step<'_>) -> Result<()> {
        self.of.advance(epoch, authority, step)
    }
}
