//! The side of the source, as a job sees it: its machine, and its disks while the machine runs.

use std::path::Path;
use std::sync::Arc;

use super::fence::{Authority, Charge};
use super::spec::DiskSpec;
use crate::abort::Abort;
use crate::disk::{OpenOptions, children_of, open_source};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::hash::Digest;
use crate::hook::Hook;
use crate::machine::{Machine, Power};
use crate::map::CarriedMap;
use crate::operation::{Held, hold_against, keep_map, state_of};
use crate::snapshot::{SnapshotId, SnapshotProvider};
use crate::step::Step;
use crate::track::{ChangeTracker, Changed};

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

    /// What the machine's disks are called, all of them; `None`: not known here.
    ///
    /// # Errors
    /// `PeerGone`, `Protocol`, `NotGranted`.
    fn disks(&self, step: &Step<'_>) -> Result<Option<Vec<String>>>;

    /// Whether something knows what changed on a disk since a snapshot.
    ///
    /// # Errors
    /// `PeerGone`, `Protocol`, `NotGranted`.
    fn is_tracked(&self, step: &Step<'_>) -> Result<bool>;

    /// Makes the map of a disk as it stands still now, of that of the last pass and what changed
    /// since. A hint: not all of the disk is read.
    ///
    /// # Errors
    /// Those of reading the disk. What is wrong with map, snapshot or tracker is [`Hint::None`].
    fn hint(&self, disk: &DiskSpec, base: &HintBase<'_>, step: &Step<'_>) -> Result<Hint>;

    /// Reads all of a stopped disk and holds it against the map that a hint made: where the job
    /// keeps that, and its root.
    ///
    /// # Errors
    /// Those of reading the disk.
    fn hold_against(
        &self,
        disk: &DiskSpec,
        map: (&CarriedMap, &str),
        step: &Step<'_>,
    ) -> Result<Held>;

    /// Deletes a disk of a machine that was handed over; one that is gone is deleted already. A
    /// machine that `is_gone`, as the job deleted it, need not be asked whether it is off; an agent
    /// knows that by itself.
    ///
    /// # Errors
    /// `Unsupported` where nothing says how; `Refused`; `PeerGone`, `Io`.
    fn delete_disk(&self, disk: &DiskSpec, is_gone: bool, step: &Step<'_>) -> Result<()>;

    /// Removes what is kept on the source's host for hints.
    ///
    /// # Errors
    /// `PeerGone`, `Protocol`.
    fn forget_maps(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<()>;

    /// Shows that nobody has the disk open for writing. What tells it in this state from any other.
    ///
    /// # Errors
    /// `InUse` when somebody has; `Refused` where another image stands on it; `Damaged`, `Io`.
    fn prove_quiet(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<String>;

    /// What the fence of the source's own host says; `None`: it has none, and the job's is that of
    /// both sides.
    ///
    /// # Errors
    /// `PeerGone`, `Protocol`, `NotGranted`.
    fn fence(&self, step: &Step<'_>) -> Result<Option<Authority>>;

    /// Leaves `map`, which has the root, as the saved map of a disk that was handed over, if that
    /// is still what `identity` told it by. A host that keeps no maps does nothing.
    ///
    /// # Errors
    /// Why none was left: nothing depends on it.
    fn keep_map(
        &self,
        disk: &DiskSpec,
        map: (&CarriedMap, &str),
        identity: &str,
        step: &Step<'_>,
    ) -> Result<()>;

    /// In whose name everything is asked from now on.
    fn act_for(&self, charge: Charge);

    /// Begins an epoch in the fence of the source's own host, where it has one; the same once more
    /// changes nothing. Durable when it returns.
    ///
    /// # Errors
    /// `Refused` where a later one has begun, or another job has the pair; `PeerGone`, `Io`.
    fn advance(&self, epoch: u64, authority: Option<&str>, step: &Step<'_>) -> Result<()>;
}

/// What a hint goes on from, and whither.
#[derive(Clone, Debug)]
pub struct HintBase<'a> {
    /// The snapshot of the last pass.
    pub since: SnapshotId,
    /// Root of its map.
    pub root: &'a str,
    /// The snapshot whose map is wanted; `None`: the disk itself, whose machine is off.
    pub now: Option<SnapshotId>,
    /// Where that is read.
    pub at: &'a Endpoint,
    /// Where the job keeps the map of the last pass.
    pub left: &'a CarriedMap,
    /// Where it keeps the one that is made.
    pub made: &'a CarriedMap,
}

/// What came of a hint.
#[derive(Clone, Debug)]
pub enum Hint {
    /// There is a map.
    Made {
        /// Its root.
        root: String,
        /// Bytes that were read for it.
        read: u64,
        /// Where it is; `None`: with the agent that serves the disk, whose next session goes by it.
        map: Option<CarriedMap>,
    },
    /// There is none, and why: code for `hint_rejected:<why>`.
    None(String),
}

/// A source on this host.
#[derive(Clone, Debug)]
pub struct LocalHost {
    machine: Arc<dyn Machine>,
    /// `None`: its disks cannot be frozen.
    snapshots: Option<Arc<dyn SnapshotProvider>>,
    /// `None`: everything may have changed.
    tracker: Option<Arc<dyn ChangeTracker>>,
    /// `None`: nothing says how.
    delete_disk: Option<Hook>,
}

impl LocalHost {
    /// A source whose machine and disks are here.
    #[must_use]
    pub fn new(machine: Arc<dyn Machine>, snapshots: Option<Arc<dyn SnapshotProvider>>) -> Self {
        Self {
            machine,
            snapshots,
            tracker: None,
            delete_disk: None,
        }
    }

    /// The same with a hook that deletes a disk.
    #[must_use]
    pub fn deleting_by(self, hook: Hook) -> Self {
        Self {
            delete_disk: Some(hook),
            ..self
        }
    }

    /// The same with something that knows what changed since a snapshot.
    #[must_use]
    pub fn tracked_by(self, tracker: Arc<dyn ChangeTracker>) -> Self {
        Self {
            tracker: Some(tracker),
            ..self
        }
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

    fn disks(&self, _step: &Step<'_>) -> Result<Option<Vec<String>>> {
        Ok(None)
    }

    fn is_tracked(&self, _step: &Step<'_>) -> Result<bool> {
        Ok(self.tracker.is_some())
    }

    fn hint(&self, disk: &DiskSpec, base: &HintBase<'_>, step: &Step<'_>) -> Result<Hint> {
        let (Some(tracker), Endpoint::Path(now)) = (&self.tracker, base.at) else {
            return Ok(Hint::None("no_tracker".to_owned()));
        };
        let image = path_of(disk)?;
        let tracked = Tracked {
            image: &image,
            open: &disk.open(disk.source_format.as_deref())?,
            tracker: tracker.as_ref(),
            snapshots: self.snapshots.as_deref(),
        };
        let patched = tracked.patch(&base.since, now, (base.left, base.root), base.made, step)?;
        Ok(match patched {
            Ok((root, read)) => Hint::Made {
                root: root.to_string(),
                read,
                map: Some(base.made.clone()),
            },
            Err(why) => Hint::None(why.to_owned()),
        })
    }

    fn hold_against(
        &self,
        disk: &DiskSpec,
        (made, root): (&CarriedMap, &str),
        step: &Step<'_>,
    ) -> Result<Held> {
        let open = disk.open(disk.source_format.as_deref())?;
        hold_against(
            &path_of(disk)?,
            &open,
            (Some(made), root),
            step.observer,
            step.cancel,
        )
    }

    fn delete_disk(&self, disk: &DiskSpec, is_gone: bool, step: &Step<'_>) -> Result<()> {
        // Nor where that cannot be found out.
        if !is_gone && self.machine.power(step)? == Power::On {
            let message = "the machine is on: its disks are not deleted";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        delete_disk(self.delete_disk.as_ref(), &disk.id, &path_of(disk)?, step)
    }

    fn forget_maps(&self, _disk: &DiskSpec, _step: &Step<'_>) -> Result<()> {
        Ok(())
    }

    fn prove_quiet(&self, disk: &DiskSpec, _step: &Step<'_>) -> Result<String> {
        let image = path_of(disk)?;
        prove_quiet(&image, &disk.open(disk.source_format.as_deref())?)
    }

    fn keep_map(
        &self,
        disk: &DiskSpec,
        map: (&CarriedMap, &str),
        identity: &str,
        _step: &Step<'_>,
    ) -> Result<()> {
        let open = disk.open(disk.source_format.as_deref())?;
        keep_map(&path_of(disk)?, &open, map, identity)
    }

    fn fence(&self, _step: &Step<'_>) -> Result<Option<Authority>> {
        Ok(None)
    }

    fn act_for(&self, _charge: Charge) {}

    fn advance(&self, _epoch: u64, _authority: Option<&str>, _step: &Step<'_>) -> Result<()> {
        Ok(())
    }
}

/// Has the image of a disk deleted by the operator's hook.
///
/// # Errors
/// `Unsupported` without one; those of the hook.
pub(crate) fn delete_disk(
    hook: Option<&Hook>,
    id: &str,
    image: &Path,
    step: &Step<'_>,
) -> Result<()> {
    let Some(hook) = hook else {
        let message = "no `delete_disk` hook: nothing says how a disk is deleted";
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    let Some(image) = image.to_str() else {
        let message = "the name of an image that a hook is told has to be UTF-8";
        return Err(Error::new(ErrorKind::Unsupported, message).path(image));
    };
    let about = [("FAILBACK_DISK", id), ("FAILBACK_IMAGE", image)];
    hook.run_as("delete_disk", step, &about).map(drop)
}

/// A disk image whose changes something knows.
pub(crate) struct Tracked<'a> {
    pub(crate) image: &'a Path,
    pub(crate) open: &'a OpenOptions,
    pub(crate) tracker: &'a dyn ChangeTracker,
    pub(crate) snapshots: Option<&'a dyn SnapshotProvider>,
}

impl Tracked<'_> {
    /// Makes in `made` the map of what stands still at `now`, of that of the snapshot `since`. The
    /// new root and the bytes that were read, or why there is none.
    ///
    /// # Errors
    /// Those of reading the disk.
    pub(crate) fn patch(
        &self,
        since: &SnapshotId,
        now: &Path,
        (left, root): (&CarriedMap, &str),
        made: &CarriedMap,
        step: &Step<'_>,
    ) -> Result<std::result::Result<(Digest, u64), &'static str>> {
        // Asked for, one that is gone would be made anew, and nothing has changed since then.
        let kept = match self.snapshots {
            Some(provider) => provider.list(self.image, since.job(), step)?,
            None => Vec::new(),
        };
        let Some(provider) = self.snapshots.filter(|_| kept.contains(since)) else {
            return Ok(Err("no_snapshot"));
        };
        let then = provider.create(self.image, since, step)?;
        let ranges = match self.tracker.changed(&then, now, step)? {
            Changed::Ranges(ranges) => ranges,
            Changed::Unknown(why) => return Ok(Err(why)),
        };
        let source = open_source(now, self.open)?;
        let abort = Abort::with_cancel(step.cancel);
        match left.patch(root, source.as_ref(), &ranges, (made, &abort)) {
            Ok(patched) => Ok(Ok(patched)),
            Err(error) => match error.kind() {
                ErrorKind::MapRejected => Ok(Err("audit")),
                ErrorKind::Damaged => Ok(Err("map")),
                _ => Err(error),
            },
        }
    }
}

/// Shows that nobody has an image open for writing. What tells it in this state from any other.
///
/// # Errors
/// `InUse` when somebody has; `Refused` where another image stands on it: the machine has a
/// checkpoint, and wrote to that; `Damaged`, `Io`.
pub(crate) fn prove_quiet(image: &Path, open: &OpenOptions) -> Result<String> {
    let state = state_of(image, open)?;
    match children_of(image, open)?.paths.first() {
        None => Ok(state),
        Some(child) => {
            let child = one_line(&child.to_string_lossy());
            let message = format!(
                "{child} stands on it: the machine has a checkpoint, and this image is not its \
                 disk; merge that first"
            );
            Err(Error::new(ErrorKind::Refused, message).path(image))
        }
    }
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
