//! Snapshots by the operator's own commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{SnapshotId, SnapshotProvider};
use crate::error::{Error, ErrorKind, Result};
use crate::hook::{Hook, Said};
use crate::step::Step;

/// Snapshots by the operator's own commands.
///
/// Besides the variables of every hook they get `FAILBACK_IMAGE`, the path of the image, and
/// `FAILBACK_SNAPSHOT`, the snapshot's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSnapshots {
    /// Makes it, unless it is there, and prints its path as its one line.
    pub create: Hook,
    /// Lets it go; ends well when it is gone.
    pub release: Hook,
    /// Prints the names of those of the job, one a line. Without it what a crash left behind is
    /// not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Hook>,
}

impl HookSnapshots {
    /// What it needs of this host and is not there, a line each.
    pub(crate) fn faults(&self) -> Vec<String> {
        let needed = [("create", &self.create), ("release", &self.release)];
        let list = self.list.as_ref().map(|hook| ("list", hook));
        let hooks = needed.into_iter().chain(list);
        hooks.filter_map(|(name, hook)| hook.fault(name)).collect()
    }
}

impl SnapshotProvider for HookSnapshots {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        let said = run(&self.create, "create", image, id.name(), id.job(), step)?;
        let path = PathBuf::from(said.line("create")?);
        match path.is_absolute() && path.exists() {
            true => Ok(path),
            false => {
                let message = "hook create printed this path: it is not absolute, or leads nowhere";
                Err(Error::new(ErrorKind::Refused, message).path(&path))
            }
        }
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        run(&self.release, "release", image, id.name(), id.job(), step).map(drop)
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        let Some(hook) = &self.list else {
            return Ok(Vec::new());
        };
        let said = run(hook, "list", image, "", job, step)?;
        if said.is_cut {
            let message = "hook list printed more than 64 KiB";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let names = said
            .stdout
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let mut ids = names
            .map(|name| SnapshotId::new(job, name))
            .collect::<Result<Vec<_>>>()?;
        ids.sort();
        ids.dedup();
        Ok(ids)
    }
}

/// `job` is the snapshot's, which may be another one than that of the step.
fn run(
    hook: &Hook,
    name: &str,
    image: &Path,
    snapshot: &str,
    job: &str,
    step: &Step<'_>,
) -> Result<Said> {
    let step = Step { job, ..*step };
    hook.run_as(
        name,
        &step,
        &[
            ("FAILBACK_IMAGE", text(image)?),
            ("FAILBACK_SNAPSHOT", snapshot),
        ],
    )
}

fn text(path: &Path) -> Result<&str> {
    let text = OsStr::to_str(path.as_os_str());
    text.ok_or_else(|| {
        let message = "the path is no UTF-8, and cannot be given to a hook";
        Error::new(ErrorKind::Unsupported, message).path(path)
    })
}
