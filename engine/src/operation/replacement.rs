//! A target that a new file takes the place of, or that is not there yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_transport::{Apply, SourceEnd, TargetResult};

use super::existing::{ExistingTarget, begun_of, told};
use super::maps::{MapStanding, MapUse, forget_liar, side_map};
use super::recovery::{Found, finish_unfinished};
use super::seen_rates::keep_seen_rates;
use crate::abort::{Abort, CancelToken};
use crate::commit::Replacing;
use crate::disk::{DiskInfo, HostNewFile, NewDisk, NewFile, OpenOptions, Recipe, Source};
use crate::error::Result;
use crate::plan::SeenRates;
use crate::state::{
    Barriers, Begun, Container, HostFolder, Journal, Word, lock_state, peek, state_directory,
};
use crate::sync::{Changes, InPlaceChanges, Peer, Session, SideMap, run_target};

/// A target of this host.
#[derive(Debug)]
pub(crate) enum HostedTarget {
    /// It is there.
    Existing(Box<ExistingTarget>),
    /// The first sync makes it.
    Missing(Box<MissingTarget>),
}

impl HostedTarget {
    /// Opens the disk at `path`, whose state is kept below `state`, or beside it; where there is
    /// none, `wanted` says what it is to become. What an earlier sync left half done is brought to
    /// its end first.
    ///
    /// # Errors
    /// Those of `wanted`, and as [`ExistingTarget::open`].
    pub(crate) fn open(
        path: &Path,
        open: &OpenOptions,
        state: Option<&Path>,
        wanted: impl FnOnce() -> Result<NewDisk>,
        cancel: &CancelToken,
    ) -> Result<Self> {
        if is_missing(path) {
            let directory = state_directory(path, state)?;
            // The file of an unfinished first sync may only want its name.
            if peek(&directory)?.is_some() {
                let folder = lock_state(path, state, open.owner.as_deref())?;
                if let Some(journal) = Journal::open(&folder, Barriers::new())?
                    && let Found::Lost(error) = finish_unfinished(&folder, journal, path, cancel)?
                {
                    return Err(error);
                }
            }
        }
        match is_missing(path) {
            true => MissingTarget::open(path, open, state, &wanted()?)
                .map(Box::new)
                .map(Self::Missing),
            false => ExistingTarget::open(path, open, state, cancel)
                .map(Box::new)
                .map(Self::Existing),
        }
    }

    /// What it is, or is to be.
    pub(crate) fn info(&self) -> DiskInfo {
        match self {
            Self::Existing(target) => target.info(),
            Self::Missing(target) => target.info(),
        }
    }

    /// The disk as it is; `None`: it is not there yet.
    pub(crate) fn source(&self) -> Option<&dyn Source> {
        match self {
            Self::Existing(target) => Some(target.source()),
            Self::Missing(_) => None,
        }
    }

    /// Whether there was no such disk before.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// Whether a full copy that was cut off left something to go on with.
    pub(crate) fn is_partial(&self) -> bool {
        match self {
            Self::Existing(target) => target.is_partial(),
            Self::Missing(target) => target.is_partial,
        }
    }

    /// The saved map of the disk and what is known of it; one that lies is gone then. None speaks
    /// of a disk that is not there, or that an unfinished job has to do with.
    pub(crate) fn map(
        &self,
        path: &Path,
        state: Option<&Path>,
        wanted: Option<&MapUse>,
    ) -> (SideMap, MapStanding) {
        let (map, standing) = side_map(path, state, wanted, |store, wish| match self {
            Self::Existing(target) => target.load_map(store, wish),
            Self::Missing(_) => Ok(None),
        });
        forget_liar(&map, &standing);
        (map, standing)
    }

    /// What tells the disk, and what is staged for it, from any other state; `None` where nothing
    /// does, and of a disk that is not there.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn mark(&self) -> Result<Option<String>> {
        match self {
            Self::Existing(target) => target.mark(),
            Self::Missing(_) => Ok(None),
        }
    }

    /// Plays the target in a session; what the disk is afterwards comes with the results.
    ///
    /// # Errors
    /// The first error of either side; `Refused` when an earlier result waits to be accepted.
    pub(crate) fn run(
        self,
        session: &Session,
        peer: Peer<'_>,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
        let (own, path) = match &self {
            Self::Existing(target) => target.places(),
            Self::Missing(target) => (target.folder.path(), target.path.as_path()),
        };
        let (own, path) = (own.to_owned(), path.to_owned());
        let ended = match self {
            Self::Existing(target) => target.run(session, peer, abort),
            Self::Missing(target) => target.run(session, peer, abort),
        };
        if ended.is_ok() {
            keep_seen_rates(&path, &own, &SeenRates::of(&session.progress.meters));
        }
        ended
    }
}

/// What a disk is to be that is not there yet.
pub(super) fn info_of_new(new: &NewDisk) -> DiskInfo {
    let has_sectors = new.format != crate::disk::Format::Raw;
    DiskInfo {
        format: new.format.to_string(),
        virtual_size: new.len,
        logical_sector_size: has_sectors.then_some(new.sector_size),
        image_block_size: new.block_size,
        identity: String::new(),
        warnings: Vec::new(),
    }
}

/// Whether nothing has the name, not even a link that leads nowhere.
pub(crate) fn is_missing(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// A target that is not there yet. Its state directory is locked.
#[derive(Debug)]
pub(crate) struct MissingTarget {
    new_file: HostNewFile,
    folder: HostFolder,
    path: PathBuf,
    new: NewDisk,
    is_partial: bool,
}

impl MissingTarget {
    fn open(path: &Path, open: &OpenOptions, state: Option<&Path>, new: &NewDisk) -> Result<Self> {
        let new_file = HostNewFile::of_missing(path, Recipe::of(*new))?;
        let folder = lock_state(path, state, open.owner.as_deref())?;
        let journal = Journal::open(&folder, Barriers::new())?;
        let is_partial = journal.is_some_and(|journal| {
            let begun = journal.begun();
            matches!(journal.word(), Word::Staging | Word::Staged)
                && (begun.container, begun.disk_len) == (Container::File, new.len)
                && begun.identity.is_empty()
                && begun.format == Some(new.format.to_string())
        }) && new_file.standing()?.beside.is_some();
        Ok(Self {
            new_file,
            folder,
            path: path.to_owned(),
            new: *new,
            is_partial,
        })
    }

    fn info(&self) -> DiskInfo {
        info_of_new(&self.new)
    }

    fn run(
        self,
        session: &Session,
        mut peer: Peer<'_>,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
        let prepared = self.begun(session).and_then(|begun| {
            let (new_file, folder) = (Box::new(self.new_file), Box::new(self.folder));
            Replacing::open(None, new_file, folder, Barriers::new(), session, begun)
        });
        match prepared {
            Ok(replacing) => run_replacing(&replacing, session, peer, abort),
            Err(error) => Err(told(&mut peer, error)),
        }
    }

    fn begun(&self, session: &Session) -> Result<Begun> {
        let begun = begun_of(session, &self.path, Container::File)?;
        Ok(Begun {
            format: Some(self.new.format.to_string()),
            // A new disk has nobody's bytes to keep.
            has_undo: true,
            keeps_undo: session.options.apply == Apply::StageKeepUndo,
            ..begun
        })
    }
}

/// Runs a session into a new file, and puts that into the target's place.
///
/// # Errors
/// The first error of either side.
pub(super) fn run_replacing(
    replacing: &Replacing,
    session: &Session,
    peer: Peer<'_>,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
    let changes = Changes::InPlace(InPlaceChanges {
        target: replacing,
        is_new: replacing.is_empty(),
        outlives_job: true,
        barriers: Barriers::new(),
        resume_notes: replacing.resumed().notes(),
        finish: Box::new(|root| {
            let used = replacing.commit(root, abort)?;
            Ok(used.map(Container::to_wire))
        }),
    });
    let (end, result) = run_target(session, replacing, Some(changes), peer, abort)?;
    if !result.equal {
        replacing.give_up()?;
    }
    Ok((end, result, Source::info(replacing)))
}
