//! A target that is only looked at: nothing is made, changed, or brought to its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_transport as wire;

use super::maps::{MapStanding, MapUse, look_at_map};
use super::replacement::{info_of_new, is_missing};
use super::seen_rates::seen_rates;
use crate::disk::{DiskInfo, NewDisk, OpenOptions, Source, open_source};
use crate::error::Result;
use crate::plan::SeenRates;
use crate::state::{Container, Word, peek, state_directory};
use crate::system::{self, Access, HostFile};

/// See the module's head.
#[derive(Debug)]
pub(crate) enum PlannedTarget {
    /// It is there; open for reading.
    Existing(ExistingDisk),
    /// The first sync makes it.
    Missing(NewDisk),
}

/// A disk that is there.
#[derive(Debug)]
pub(crate) struct ExistingDisk {
    disk: Arc<dyn Source>,
    path: PathBuf,
    state: Option<PathBuf>,
    /// The word of a sync to it that has not ended.
    unfinished: Option<&'static str>,
}

impl PlannedTarget {
    /// Looks at the disk at `path`, whose state is kept below `state`, or beside it; where there is
    /// none, `wanted` says what it is to become.
    ///
    /// # Errors
    /// Those of `wanted`, and as [`open_source`].
    pub(crate) fn open(
        path: &Path,
        open: &OpenOptions,
        state: Option<&Path>,
        wanted: impl FnOnce() -> Result<NewDisk>,
    ) -> Result<Self> {
        if is_missing(path) {
            return wanted().map(Self::Missing);
        }
        let disk = open_source(path, open)?;
        let journal = peek(&state_directory(path, state)?)?;
        let word = journal.map(|journal| journal.word());
        Ok(Self::Existing(ExistingDisk {
            disk,
            path: path.to_owned(),
            state: state.map(Path::to_owned),
            unfinished: word.filter(|word| !word.is_final()).map(Word::name),
        }))
    }

    /// What it is, or is to be.
    pub(crate) fn info(&self) -> DiskInfo {
        match self {
            Self::Missing(new) => info_of_new(new),
            Self::Existing(existing) => {
                let mut info = existing.disk.info();
                info.warnings.extend(existing.unfinished.map(|word| {
                    format!("an earlier sync to it has ended as {word}; a sync begins with that")
                }));
                info
            }
        }
    }

    /// Whether there is no such disk.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// The disk as it is; `None`: it is not there yet.
    pub(crate) fn source(&self) -> Option<&dyn Source> {
        match self {
            Self::Existing(existing) => Some(existing.disk.as_ref()),
            Self::Missing(_) => None,
        }
    }

    /// What is known of its saved map. None speaks of a disk that is not there, or that an
    /// unfinished job has to do with.
    pub(crate) fn standing(&self, wanted: Option<&MapUse>) -> MapStanding {
        match self {
            Self::Existing(existing) if existing.unfinished.is_none() => look_at_map(
                &existing.path,
                existing.state.as_deref(),
                wanted,
                existing.disk.as_ref(),
            ),
            _ => MapStanding::default(),
        }
    }
}

/// What is likely of a target, as far as anybody says: only a sync finds out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prospect {
    /// What a delta is kept in until all of it is there.
    pub(crate) delta: Option<wire::Container>,
    /// What a full copy is.
    pub(crate) full: Option<wire::Container>,
    /// How fast its disk was in the syncs before.
    pub(crate) seen: SeenRates,
}

/// What is likely of the target at `path`, whose state is kept below `state`, or beside it.
pub(crate) fn prospect_of(path: &Path, state: Option<&Path>) -> Prospect {
    let (delta, full) = likely_containers(path);
    Prospect {
        delta: Some(delta.to_wire()),
        full: Some(full.to_wire()),
        seen: seen_rates(path, state),
    }
}

/// What a delta and a full copy to `path` will likely be kept in until all of it is there. A sync
/// finds out by trying (docs/decisions/0013), which a plan must not.
pub(crate) fn likely_containers(path: &Path) -> (Container, Container) {
    if is_missing(path) {
        return (Container::File, Container::File);
    }
    let is_plain = HostFile::open(path, Access::Inspect)
        .is_ok_and(|file| !file.is_device() && file.link_count().is_ok_and(|count| count == 1));
    match (is_plain, system::may_clone(path)) {
        (true, true) => (Container::Clone, Container::File),
        (true, false) => (Container::Log, Container::File),
        (false, _) => (Container::Log, Container::Log),
    }
}
