//! The side of the source, as a job sees it: its machine, and its disks while the machine runs.

use std::path::Path;
use std::sync::Arc;

use super::fence::{Authority, Charge};
use super::spec::DiskSpec;
use crate::disk::{OpenOptions, open_source};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::Machine;
use crate::snapshot::{SnapshotId, SnapshotProvider};
use crate::step::Step;
use crate::track::{ChangeTracker, Changed, Untracked};

/// The side of the source. Everything is asked by step, and may be asked again for the same step.
pub trait SourceHost: Send + Sync + std::fmt::Debug {
    /// The machine.
    fn machine(&self) -> &dyn Machine;

    /// Freezes a disk. What can be read at the endpoint does not change until it is released.
    ///
    /// # Errors
    /// `Unsupported` where disks cannot be frozen; `NoSpace`, `Io`.
    fn snapshot(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<Endpoint>;

    /// Lets a snapshot go; one that is not there is gone already.
    ///
    /// # Errors
    /// `Io`.
    fn release(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<()>;

    /// Snapshots that exist of this job.
    ///
    /// # Errors
    /// `Io`.
    fn snapshots(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<Vec<SnapshotId>>;

    /// What of the disk that stands still at `now` may differ from the snapshot `since`. A hint.
    ///
    /// # Errors
    /// `Io`.
    fn changed(
        &self,
        disk: &DiskSpec,
        since: &SnapshotId,
        now: &Endpoint,
        step: &Step<'_>,
    ) -> Result<Changed>;

    /// Shows that nobody has the disk open for writing. What tells it in this state from any other.
    ///
    /// # Errors
    /// `InUse` when somebody has; `Damaged`, `Io`.
    fn prove_quiet(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<String>;

    /// What the fence of the source's own host says; `None`: it has none, and the job's is that of
    /// both sides.
    ///
    /// # Errors
    /// `PeerGone`, `Protocol`, `NotGranted`.
    fn fence(&self, step: &Step<'_>) -> Result<Option<Authority>>;

    /// In whose name everything is asked from now on.
    fn act_for(&self, charge: Charge);

    /// Begins an epoch in the fence of the source's own host, where it has one; the same once more
    /// changes nothing. Durable when it returns.
    ///
    /// # Errors
    /// `Refused` where a later one has begun, or another job has the pair; `PeerGone`, `Io`.
    fn advance(&self, epoch: u64, authority: Option<&str>, step: &Step<'_>) -> Result<()>;
}

/// A source on this host.
#[derive(Clone, Debug)]
pub struct LocalHost {
    machine: Arc<dyn Machine>,
    /// `None`: its disks cannot be frozen.
    snapshots: Option<Arc<dyn SnapshotProvider>>,
    tracker: Arc<dyn ChangeTracker>,
}

impl LocalHost {
    /// A source whose machine and disks are here.
    #[must_use]
    pub fn new(machine: Arc<dyn Machine>, snapshots: Option<Arc<dyn SnapshotProvider>>) -> Self {
        Self {
            machine,
            snapshots,
            tracker: Arc::new(Untracked),
        }
    }

    /// The same with something that knows what changed since a snapshot.
    #[must_use]
    pub fn tracked_by(self, tracker: Arc<dyn ChangeTracker>) -> Self {
        Self { tracker, ..self }
    }
}

impl SourceHost for LocalHost {
    fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }

    fn snapshot(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<Endpoint> {
        let Some(provider) = &self.snapshots else {
            let message = "the source's disks cannot be frozen: no snapshots are configured";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let image = path_of(disk)?;
        provider.create(&image, id, step).map(Endpoint::Path)
    }

    fn release(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        match &self.snapshots {
            Some(provider) => provider.release(&path_of(disk)?, id, step),
            None => Ok(()),
        }
    }

    fn snapshots(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        match &self.snapshots {
            Some(provider) => provider.list(&path_of(disk)?, step.job, step),
            None => Ok(Vec::new()),
        }
    }

    fn changed(
        &self,
        disk: &DiskSpec,
        since: &SnapshotId,
        now: &Endpoint,
        step: &Step<'_>,
    ) -> Result<Changed> {
        let (Some(provider), Endpoint::Path(now)) = (&self.snapshots, now) else {
            return Ok(Changed::Unknown("no_snapshot"));
        };
        let image = path_of(disk)?;
        // Asked for, one that is gone would be made anew, and nothing has changed since then.
        if !provider.list(&image, since.job(), step)?.contains(since) {
            return Ok(Changed::Unknown("no_snapshot"));
        }
        let then = provider.create(&image, since, step)?;
        self.tracker.changed(&then, now, step)
    }

    fn prove_quiet(&self, disk: &DiskSpec, _step: &Step<'_>) -> Result<String> {
        let image = path_of(disk)?;
        prove_quiet(&image, &disk.open(disk.source_format.as_deref())?)
    }

    fn fence(&self, _step: &Step<'_>) -> Result<Option<Authority>> {
        Ok(None)
    }

    fn act_for(&self, _charge: Charge) {}

    fn advance(&self, _epoch: u64, _authority: Option<&str>, _step: &Step<'_>) -> Result<()> {
        Ok(())
    }
}

/// Shows that nobody has an image open for writing. What tells it in this state from any other.
///
/// # Errors
/// `InUse` when somebody has; `Damaged`, `Io`.
pub(crate) fn prove_quiet(image: &Path, open: &OpenOptions) -> Result<String> {
    // Open for reading it shares the image with other readers and with no writer.
    Ok(open_source(image, open)?.info().identity)
}

fn path_of(disk: &DiskSpec) -> Result<std::path::PathBuf> {
    match disk.endpoint()? {
        Endpoint::Path(path) => Ok(path),
        _ => {
            let message = format!("disk `{}` is behind an agent, its machine here", disk.id);
            Err(Error::new(ErrorKind::Usage, message))
        }
    }
}
