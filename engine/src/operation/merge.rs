//! `merge`: a differencing VHDX goes into its parent.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use failback_vhdx::{Description, Image, Merge, ParentLocator};
use serde::Serialize;

use crate::abort::CancelToken;
use crate::disk::{
    OpenOptions, find_children, open_images, open_parents, refuse_children, vhdx_error,
};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::event::{Event, Observer};
use crate::state::refuse_owned;
use crate::system::{Access, HostFile};

/// What `failback merge` prints. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct MergeReport {
    /// `failback.merge/1`.
    pub schema: &'static str,
    /// `done`, or `already_merged` when the parent was the child's equal before.
    pub outcome: &'static str,
    /// The child, which is not needed any more.
    pub path: String,
    /// The parent, which has its content and identity now.
    pub parent: String,
    /// Bytes of the disk that went into the parent.
    pub copied: u64,
    /// Bytes of the disk that became zero in the parent.
    pub zeroed: u64,
    /// What is odd and was got over.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Progress is told this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Writes what the differencing image at `path` holds into its parent, the nearest of the chain
/// that `options` name or let follow. Whenever it ends, the chain reads as before; after an error
/// or a cancel the same call goes on. The child is left where it is.
///
/// # Errors
/// `Refused` when another image beside the parent stands on it, or without a parent; `InUse`,
/// `Damaged`, `Unsupported` for disks of different length, `NoSpace`, `Io`, `Cancelled`.
pub fn merge(
    path: &Path,
    options: &OpenOptions,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<MergeReport> {
    let started = Instant::now();
    observer.event(&Event::Started {
        command: "merge",
        source: path.display().to_string(),
        target: None,
    });
    let child = Arc::new(HostFile::open(path, Access::Write)?);
    let parents = open_parents(&child, options, Access::Write, Access::Read)?;
    let [parent, below @ ..] = &parents[..] else {
        let message = "no parent to merge into";
        return Err(Error::new(ErrorKind::Refused, message).path(path));
    };
    let inspect =
        |file: &Arc<HostFile>| Image::inspect(file.clone()).map_err(|e| vhdx_error(&e, file));
    refuse_owned(parent.path(), options.owner.as_deref())?;
    let (of_child, of_parent) = (inspect(&child)?, inspect(parent)?);
    let mut warnings = match options.skip_sibling_check {
        true => Vec::new(),
        false => refuse_children(parent, &of_parent, std::slice::from_ref(&child))?,
    };
    warn_of_grandchildren(&child, &of_child, parent, &mut warnings);
    for message in &warnings {
        let message = message.clone();
        tracing::warn!(message);
        observer.event(&Event::Warning { message });
    }
    let mut report = MergeReport {
        schema: "failback.merge/1",
        outcome: "already_merged",
        path: path.display().to_string(),
        parent: parent.path().display().to_string(),
        copied: 0,
        zeroed: 0,
        warnings,
        seconds: 0.0,
    };
    if of_child.data_write_guid == of_parent.data_write_guid {
        finish_merged(parent, below, &of_child, &of_parent)?;
    } else {
        let image = open_parent(parent, below)?;
        let image = Image::open_child_rw(child.clone(), Arc::new(image))
            .map_err(|e| vhdx_error(&e, &child))?;
        let mut progress = Progress::new(observer, image.virtual_size(), started);
        let merged = image.merge_into_parent(&mut |done| match cancel.is_cancelled() {
            true => ControlFlow::Break(()),
            false => {
                progress.tell(done);
                ControlFlow::Continue(())
            }
        });
        match merged.map_err(|e| vhdx_error(&e, &child))? {
            Merge::Done { copied, zeroed } => {
                (report.outcome, report.copied, report.zeroed) = ("done", copied, zeroed);
            }
            Merge::Stopped => {
                let message = "cancelled; the chain reads as before, and the same command goes on";
                return Err(Error::new(ErrorKind::Cancelled, message).path(path));
            }
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    observer.event(&Event::Finished {
        outcome: report.outcome,
        error: None,
    });
    Ok(report)
}

/// Images beside the child that stand on it: the parent takes its place, and they name the child.
/// What could not be looked at is told once.
fn warn_of_grandchildren(
    child: &Arc<HostFile>,
    of_child: &Description,
    parent: &Arc<HostFile>,
    warnings: &mut Vec<String>,
) {
    let found = match find_children(child, of_child, std::slice::from_ref(parent)) {
        Ok(found) => found,
        Err(error) => return warnings.push(error.chain()),
    };
    for note in found.notes {
        if !warnings.contains(&note) {
            warnings.push(note);
        }
    }
    for path in found.paths {
        warnings.push(one_line(&format!(
            "{} names {} as its parent, and does not find it any more once that is deleted: \
             its parent is {} from now on",
            path.display(),
            child.path().display(),
            parent.path().display()
        )));
    }
}

/// What a merge left to do that had given the parent the child's identity.
fn finish_merged(
    parent: &Arc<HostFile>,
    below: &[Arc<HostFile>],
    of_child: &Description,
    of_parent: &Description,
) -> Result<()> {
    // A copy of the child has its identity as well, and names the parent as the child does.
    let linkage = |of: &Description| of.locator.as_ref().map(ParentLocator::linkage);
    let is_copy = linkage(of_parent).is_some() && linkage(of_parent) == linkage(of_child);
    let is_same_disk =
        (of_child.disk_id, of_child.virtual_size) == (of_parent.disk_id, of_parent.virtual_size);
    if is_copy || !is_same_disk {
        let message = "is a copy of the image, and not its parent";
        return Err(Error::new(ErrorKind::Refused, message).path(parent.path()));
    }
    let image = open_parent(parent, below)?;
    image.settle().map_err(|e| vhdx_error(&e, parent))
}

/// The parent, open for writing over its own parents.
fn open_parent(parent: &Arc<HostFile>, below: &[Arc<HostFile>]) -> Result<Image> {
    let opened = match open_images(below)? {
        None => Image::open_rw(parent.clone()),
        Some(below) => Image::open_child_rw(parent.clone(), below),
    };
    opened.map_err(|e| vhdx_error(&e, parent))
}

/// Tells how far a merge is, now and then.
struct Progress<'a> {
    observer: &'a dyn Observer,
    total: u64,
    started: Instant,
    told: Instant,
}

impl<'a> Progress<'a> {
    fn new(observer: &'a dyn Observer, total: u64, started: Instant) -> Self {
        Self {
            observer,
            total,
            started,
            told: started,
        }
    }

    fn tell(&mut self, done: u64) {
        if self.told.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.told = Instant::now();
        self.observer.event(&Event::Progress {
            phase: "copy",
            done,
            total: self.total,
            sent: 0,
            differing: 0,
            backlog: 0,
            seconds: self.started.elapsed().as_secs_f64(),
        });
    }
}
