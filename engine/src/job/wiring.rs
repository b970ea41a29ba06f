//! From a definition to what does it.

use std::sync::Arc;

use super::host::LocalHost;
use super::run::Sides;
use super::spec::{JobSpec, MachineSpec, SideSpec, SnapshotSpec, TrackerSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::Machine;
use crate::snapshot::{Reflink, SnapshotProvider};
use crate::track::Extents;

impl Sides {
    /// Both sides as the definition has them, on this host.
    ///
    /// # Errors
    /// `Usage` where a side has no machine.
    pub fn of(spec: &JobSpec) -> Result<Self> {
        let machine = machine_of(&spec.source, "source")?;
        let snapshots = spec.source.snapshots.as_ref().map(snapshots_of);
        Ok(Self {
            source: Arc::new(match spec.source.tracker {
                Some(TrackerSpec::Extents) => {
                    LocalHost::new(machine, snapshots).tracked_by(Arc::new(Extents))
                }
                None => LocalHost::new(machine, snapshots),
            }),
            target: machine_of(&spec.target, "target")?,
        })
    }
}

fn machine_of(side: &SideSpec, name: &str) -> Result<Arc<dyn Machine>> {
    match &side.machine {
        Some(MachineSpec::Qmp(machine)) => Ok(Arc::new(machine.clone())),
        Some(MachineSpec::Hooks(machine)) => Ok(Arc::new(machine.clone())),
        None => {
            let message = format!("the job says of its {name} no [{name}.machine]");
            Err(Error::new(ErrorKind::Usage, message))
        }
    }
}

fn snapshots_of(spec: &SnapshotSpec) -> Arc<dyn SnapshotProvider> {
    match spec {
        SnapshotSpec::Reflink => Arc::new(Reflink),
        SnapshotSpec::Hooks(hooks) => Arc::new(hooks.clone()),
    }
}
