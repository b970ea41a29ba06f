//! From a definition to what does it.

use std::sync::Arc;

use super::host::{LocalHost, SourceHost};
use super::remote::RemoteHost;
use super::run::Sides;
use super::spec::{JobSpec, MachineSpec, SideSpec, SnapshotSpec, TrackerSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::Machine;
use crate::snapshot::{Reflink, SnapshotProvider};
use crate::track::{ChangeTracker, Extents};

impl Sides {
    /// Both sides as the definition has them: the target on this host, the source here or behind an
    /// agent.
    ///
    /// # Errors
    /// `Usage` where a side has no machine.
    pub fn of(spec: &JobSpec) -> Result<Self> {
        let source: Arc<dyn SourceHost> = match spec.control()? {
            Some(endpoint) => Arc::new(RemoteHost::new(endpoint, spec.side_of_source())?),
            None => {
                let machine = machine_of(&spec.source, "source")?;
                let snapshots = spec.source.snapshots.as_ref().map(snapshots_of_spec);
                let host = LocalHost::new(machine, snapshots);
                let host = match spec.source.tracker {
                    Some(tracker) => host.tracked_by(tracker_of_spec(tracker)),
                    None => host,
                };
                Arc::new(match spec.source.delete_disk.clone() {
                    Some(hook) => host.deleting_by(hook),
                    None => host,
                })
            }
        };
        Ok(Self {
            source,
            target: machine_of(&spec.target, "target")?,
        })
    }
}

fn machine_of(side: &SideSpec, name: &str) -> Result<Arc<dyn Machine>> {
    match &side.machine {
        Some(machine) => Ok(machine_of_spec(machine)),
        None => {
            let message = format!("the job says of its {name} no [{name}.machine]");
            Err(Error::new(ErrorKind::Usage, message))
        }
    }
}

/// The machine that was described.
pub(crate) fn machine_of_spec(spec: &MachineSpec) -> Arc<dyn Machine> {
    match spec {
        MachineSpec::Qmp(machine) => Arc::new(machine.clone()),
        MachineSpec::Hooks(machine) => Arc::new(machine.clone()),
    }
}

/// What knows what changed on its disks.
pub(crate) fn tracker_of_spec(spec: TrackerSpec) -> Arc<dyn ChangeTracker> {
    match spec {
        TrackerSpec::Extents => Arc::new(Extents),
    }
}

/// What freezes its disks.
pub(crate) fn snapshots_of_spec(spec: &SnapshotSpec) -> Arc<dyn SnapshotProvider> {
    match spec {
        SnapshotSpec::Reflink {} => Arc::new(Reflink),
        SnapshotSpec::Hooks(hooks) => Arc::new(hooks.clone()),
    }
}
