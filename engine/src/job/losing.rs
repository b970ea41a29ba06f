//! What an undo takes away: the writes of a guest that ran from the target. They are listed, and
//! kept elsewhere where the policy says so, before the old disk comes back.

use std::path::{Path, PathBuf};

use super::ending::restored_item;
use super::journal::Fact;
use super::report::compact_moment;
use super::run::{Job, Run};
use super::spec::{DiskSpec, JobSpec};
use crate::disk::{Format, OpenOptions};
use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, Result};
use crate::event::Event;
use crate::operation::{self, SyncRequest, Writes, try_sync, writes_since};
use crate::plan::Strategy;
use crate::sync::Until;

impl Job {
    /// Notes what the guest of the stopped target wrote, disk by disk; nothing where it never ran.
    pub(super) fn note_lost(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<()> {
        let Some(started) = self.history().handed_over() else {
            return Ok(());
        };
        for disk in &spec.disks {
            if self.history().is_item_done(&restored_item(&disk.id)) {
                continue;
            }
            let writes = match self.history().lost(&disk.id) {
                Some(writes) => writes.clone(),
                None => self.look_for_writes(disk, run)?,
            };
            if !writes.any {
                continue;
            }
            if let Some(directory) = &spec.policy.export_on_undo {
                let moment = compact_moment(started);
                let stem = format!("{}-{}-{moment}", spec.name, disk.id);
                self.once(export_item(&disk.id), |_| {
                    export(disk, &directory.join(stem), run)
                })?;
            }
        }
        Ok(())
    }

    fn look_for_writes(&mut self, disk: &DiskSpec, run: &Run<'_>) -> Result<Writes> {
        let root = self.history().sealed(&disk.id);
        let root = root.and_then(|moved| moved.root.clone());
        let open = disk.open(disk.target_format.as_deref())?;
        let map = self.map_of(disk, "map");
        let writes = match &root {
            Some(root) => {
                let of = (&map, root.as_str());
                match writes_since(&disk.target, &open, of, run.observer, run.cancel) {
                    Ok(found) => found,
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                    // One that cannot be read is no reason to keep the old disk from coming back.
                    Err(error) => {
                        let why = error.path(&disk.target).chain();
                        let message = format!("disk `{}` cannot be looked at: {why}", disk.id);
                        run.observer.event(&Event::Warning { message });
                        unknown()
                    }
                }
            }
            // Nothing was hashed: nothing can be told.
            None => unknown(),
        };
        if writes.any {
            let said = match writes.bytes {
                Some(bytes) => format!("blocks of {bytes} bytes"),
                None => "nobody knows where".to_owned(),
            };
            run.observer.event(&Event::Warning {
                message: format!(
                    "disk `{}`: it was written to since it was proven ({said}): an undo takes that \
                     away",
                    disk.id
                ),
            });
        }
        self.journal.note(Fact::Lost {
            disk: disk.id.clone(),
            writes: writes.clone(),
        })?;
        Ok(writes)
    }
}

/// Something was written, nobody knows where.
fn unknown() -> Writes {
    Writes {
        any: true,
        ..Writes::default()
    }
}

/// Copies a target as its guest left it to an image: `stem`, with the format's suffix. What is
/// there under that name is the same copy, made before a crash.
fn export(disk: &DiskSpec, stem: &Path, run: &Run<'_>) -> Result<String> {
    let source_open = disk.open(disk.target_format.as_deref())?;
    // Where nothing can be read, nothing can be kept; all else can be mended, and is tried again.
    let info = match operation::info(&disk.target, &source_open, None) {
        Err(error) if error.kind() == ErrorKind::Damaged || !disk.target.exists() => {
            return Ok(format!("not kept: {}", error.chain()));
        }
        info => info?,
    };
    let format: Format = info.format.parse()?;
    let mut to = stem.as_os_str().to_owned();
    to.push(format!(".{}", info.format));
    let to = PathBuf::from(to);
    let request = SyncRequest {
        source_open,
        target_open: OpenOptions::of_format(Some(format)),
        strategy: Strategy::Full,
        until: Until::End,
        maps: None,
        ..SyncRequest::new(
            Endpoint::Path(disk.target.clone()),
            Endpoint::Path(to.clone()),
        )
    };
    try_sync(&request, run.observer, run.cancel).map_err(|error| error.path(&to))?;
    Ok(to.display().to_string())
}

/// The item of keeping a target as its guest left it.
pub(super) fn export_item(disk: &str) -> String {
    format!("export:{disk}")
}
