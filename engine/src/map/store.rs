//! Where the map of a disk is kept, and taken from when it may be believed.

use std::io;
use std::path::{Path, PathBuf};

use super::audit::{Audit, audit, miss_probability};
use crate::disk::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind};
use crate::identity::{Facts, Refusal, judge};
use crate::map::{MapFile, MapKey, MapWriter, Noted};
use crate::state::state_directory;
use crate::system;
use crate::units::{BlockSize, Geometry};

/// Name of the map in the directory of a disk's state.
const MAP_NAME: &str = "map";

/// What a session needs of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapWish {
    /// Its hash.
    pub hash: HashKind,
    /// Its blocks.
    pub block_size: BlockSize,
    /// How closely it is held against the disk.
    pub audit: Audit,
}

/// The place of a disk's map: in the directory of its state, told by the key of the directory
/// above.
#[derive(Clone, Debug)]
pub struct MapStore {
    directory: PathBuf,
    key_directory: PathBuf,
}

/// A map that was found to speak of the disk as it is.
#[derive(Debug)]
pub struct TrustedMap {
    /// The map.
    pub map: MapFile,
    /// Blocks that were read and had their hashes.
    pub audited: u64,
}

impl TrustedMap {
    /// The chance that the audit missed lies about one block in a hundred of those with data.
    #[must_use]
    pub fn miss_probability(&self) -> f64 {
        miss_probability(self.audited, self.map.data_count())
    }
}

impl MapStore {
    /// Of the disk at `disk`, whose state is kept below `state`, or beside it.
    ///
    /// # Errors
    /// `Io` when the folder of the disk cannot be looked up.
    pub fn of(disk: &Path, state: Option<&Path>) -> Result<Self> {
        let directory = state_directory(disk, state)?;
        Ok(Self {
            key_directory: directory.parent().unwrap_or(&directory).to_owned(),
            directory,
        })
    }

    /// Where the map is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(MAP_NAME)
    }

    /// The key that maps are told by, made where it is missing.
    ///
    /// # Errors
    /// As [`MapKey::load_or_make`].
    pub fn key(&self) -> Result<MapKey> {
        let made = system::create_private_directories(&self.key_directory);
        made.map_err(|e| Error::io(e, "make state directory").path(&self.key_directory))?;
        MapKey::load_or_make(&self.key_directory)
    }

    /// Whether there is a key, and it can be read.
    pub(crate) fn has_key(&self) -> bool {
        MapKey::load(&self.key_directory).is_ok_and(|key| key.is_some())
    }

    /// The map of `disk`, which is open and locked, if there is one.
    ///
    /// # Errors
    /// Why it is not to be believed.
    pub fn load(
        &self,
        disk: &dyn Source,
        wish: &MapWish,
    ) -> std::result::Result<Option<TrustedMap>, Refusal> {
        let path = self.path();
        if path
            .symlink_metadata()
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        let told = |refusal| {
            move |error: Error| {
                tracing::debug!(error = error.chain(), "saved map");
                refusal
            }
        };
        let key = MapKey::load(&self.key_directory).map_err(told(Refusal::Mac))?;
        let map = MapFile::open(&path, &key.ok_or(Refusal::Mac)?).map_err(told(Refusal::Format))?;
        let geometry = Geometry::new(disk.info().virtual_size, wish.block_size);
        let geometry = geometry.map_err(told(Refusal::Size))?;
        let now = disk.facts().map_err(told(Refusal::NoFacts))?;
        judge(&map.claim(), now.as_ref(), wish.hash, geometry)?;
        map.top().map_err(told(Refusal::Mac))?;
        let audited = audit(&map, disk, wish.audit)?;
        Ok(Some(TrustedMap { map, audited }))
    }

    /// The map that is here, whatever the disk is now; `None` where there is none of this host's.
    #[must_use]
    pub(crate) fn open(&self) -> Option<MapFile> {
        let key = MapKey::load(&self.key_directory).ok().flatten()?;
        let map = MapFile::open(&self.path(), &key).ok()?;
        map.claim().is_authentic.then_some(map)
    }

    /// A map that is to be kept here. `None` where it cannot be, which is no reason to fail: it is
    /// only told.
    #[must_use]
    pub fn begin(&self, geometry: Geometry, hash: HashKind) -> Option<MapWriter> {
        match self.begin_or_fail(geometry, hash) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::info!(error = error.chain(), "no map is kept");
                None
            }
        }
    }

    /// A map that is to be kept here.
    ///
    /// # Errors
    /// `InUse` while another job makes one, `Refused` when others could write there, `Io`.
    pub fn begin_or_fail(&self, geometry: Geometry, hash: HashKind) -> Result<MapWriter> {
        self.try_begin(geometry, hash)?.ok_or_else(|| {
            let message = "another job makes the map of this disk";
            Error::new(ErrorKind::InUse, message).path(&self.path())
        })
    }

    fn try_begin(&self, geometry: Geometry, hash: HashKind) -> Result<Option<MapWriter>> {
        let failed = |e| Error::io(e, "make state directory").path(&self.directory);
        system::create_private_directories(&self.directory).map_err(failed)?;
        if !system::is_private_directory(&self.directory).map_err(failed)? {
            let message = "is no directory of this user alone";
            return Err(Error::new(ErrorKind::Refused, message).path(&self.directory));
        }
        // Before an hour of work, not after it.
        self.key()?;
        MapWriter::begin(&self.path(), geometry, hash)
    }

    /// Completes a map that was begun here: from now on it speaks of the disk that `facts` are
    /// about.
    ///
    /// # Errors
    /// As [`MapWriter::finish`] and [`MapStore::key`].
    pub fn keep(&self, writer: MapWriter, root: Digest, facts: Facts) -> Result<()> {
        let key = self.key()?;
        writer.finish(&Noted {
            root,
            facts: Some(facts),
            key: &key,
        })
    }

    /// Removes the map: it was found to lie.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_file(self.path()) {
            tracing::warn!(%error, "a saved map that lies cannot be removed");
        }
    }
}
