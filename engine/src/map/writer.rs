//! Writes a map file, node by node as the tree grows.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use failback_vhdx::FileAt;
use tempfile::NamedTempFile;

use super::format::{GROUP_LEN, HEAD_LEN, Head, Layout};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind, is_zero};
use crate::identity::Facts;
use crate::map::MapKey;
use crate::system::{self, sync_directory_of};
use crate::tree::Place;
use crate::units::Geometry;

/// Bytes of a level that are written at once.
const WRITE_LEN: usize = 64 << 10;
/// Bytes of a hole that are written as zeros, which say the same: each node of a disk with much
/// room between its data would be a write of its own, and allocates a block of the file system.
const GAP_LEN: usize = 16 << 10;
/// Bytes of the table of counts that are left a hole when all are zero.
const HOLE_LEN: usize = 4096;

/// What is noted in a map beside the nodes.
#[derive(Clone, Debug)]
pub struct Noted<'a> {
    /// The root over all leaves.
    pub root: Digest,
    /// The disk when its content was that; `None`: the map is a record, and never trusted.
    pub facts: Option<Facts>,
    /// The key that it is told by.
    pub key: &'a MapKey,
}

/// A map file under a temporary name.
#[derive(Debug)]
pub struct MapWriter {
    file: Temporary,
    geometry: Geometry,
    hash: HashKind,
    layout: Layout,
    levels: Vec<Waiting>,
    /// Data leaves of each group, little-endian.
    counts: Vec<u8>,
    data_count: u64,
    failed: Option<Error>,
}

/// Neighbouring nodes of a level that are not written yet.
#[derive(Clone, Debug, Default)]
struct Waiting {
    first: u64,
    next: u64,
    bytes: Vec<u8>,
}

impl MapWriter {
    /// A map that is to be `path`, of which nothing else makes use: what a job that died left under
    /// the temporary name goes. `None` while another job writes it.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn begin(path: &Path, geometry: Geometry, hash: HashKind) -> Result<Option<Self>> {
        let failed = |e| Error::io(e, "make map file").path(path);
        let file = Own::create(path).map_err(failed)?;
        file.map(|file| Self::new(Temporary::Own(file), geometry, hash))
            .transpose()
    }

    /// A map that is to be `path`, a name of the operator's.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(path: &Path, geometry: Geometry, hash: HashKind) -> Result<Self> {
        let parent = path.parent();
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        let file = NamedTempFile::new_in(parent.unwrap_or(Path::new(".")));
        let file = file.map_err(|e| Error::io(e, "make map file").path(path))?;
        Self::new(Temporary::Of(file, path.to_owned()), geometry, hash)
    }

    fn new(file: Temporary, geometry: Geometry, hash: HashKind) -> Result<Self> {
        let layout = Layout::new(&geometry, hash);
        FileAt::set_len(file.as_file(), layout.file_len)
            .map_err(|e| Error::io(e, "set length of map file").path(file.path()))?;
        Ok(Self {
            levels: vec![Waiting::default(); layout.level_count()],
            counts: vec![0; usize::try_from(layout.counts_len).expect("at most 2 MiB")],
            file,
            geometry,
            hash,
            layout,
            data_count: 0,
            failed: None,
        })
    }

    /// Takes a node that is not over zero blocks alone, those of a level from left to right. An
    /// error shows at the end.
    pub(super) fn note(&mut self, place: Place, digest: &Digest) {
        if place.level == 0 {
            self.data_count += 1;
            let group = usize::try_from(place.index / GROUP_LEN).expect("at most 2^20 groups");
            let [low, high] = [2 * group, 2 * group + 1];
            let count = u16::from_le_bytes([self.counts[low], self.counts[high]]) + 1;
            self.counts[low..=high].copy_from_slice(&count.to_le_bytes());
        }
        let level = &mut self.levels[place.level as usize];
        let gap = place.index - level.next;
        let gap = usize::try_from(gap).expect("below 2^30") * digest.as_bytes().len();
        if gap > GAP_LEN || level.bytes.len() + gap >= WRITE_LEN {
            self.write(place.level);
        }
        let level = &mut self.levels[place.level as usize];
        match level.bytes.is_empty() {
            true => level.first = place.index,
            false => level.bytes.resize(level.bytes.len() + gap, 0),
        }
        level.bytes.extend_from_slice(digest.as_bytes());
        level.next = place.index + 1;
    }

    fn write(&mut self, level: u32) {
        let waiting = &mut self.levels[level as usize];
        if !waiting.bytes.is_empty() && self.failed.is_none() {
            let at = self.layout.place(Place {
                level,
                index: waiting.first,
            });
            let written = self.file.as_file().write_at(at, &waiting.bytes);
            self.failed = written.err().map(|e| Error::io(e, "write map file"));
        }
        waiting.bytes.clear();
    }

    /// Completes the map and gives it its name, durably. Replaces an older map of that name; under
    /// a name of the operator's nothing else.
    ///
    /// # Errors
    /// `Refused` when a file that is no map has that name, `NoSpace`, `Io`.
    pub fn finish(self, noted: &Noted<'_>) -> Result<()> {
        let ended = self.end(noted)?;
        FileAt::sync(ended.as_file()).map_err(|e| Error::io(e, "write map file"))?;
        let path = ended.publish()?;
        sync_directory_of(&path).map_err(|e| Error::io(e, "name map file").path(&path))
    }

    /// The same, and not durably: what a power cut leaves of it is found to be damaged when it is
    /// read, each node on its path from the root.
    ///
    /// # Errors
    /// As [`MapWriter::finish`].
    pub(crate) fn finish_unflushed(self, noted: &Noted<'_>) -> Result<()> {
        self.end(noted)?.publish().map(drop)
    }

    fn end(mut self, noted: &Noted<'_>) -> Result<Temporary> {
        for level in 0..self.levels.len() {
            self.write(u32::try_from(level).expect("at most 31"));
        }
        if let Some(error) = self.failed.take() {
            return Err(error.path(self.file.path()));
        }
        let head = Head {
            geometry: self.geometry,
            hash: self.hash,
            root: noted.root,
            data_count: self.data_count,
            counts_hash: *blake3::hash(&self.counts).as_bytes(),
            facts: noted.facts.clone(),
        };
        let head = head.to_bytes(noted.key)?;
        debug_assert!(head.len() as u64 <= HEAD_LEN);
        let failed = |e| Error::io(e, "write map file");
        let file = self.file.as_file();
        let mut at = self.layout.counts_at;
        for piece in self.counts.chunks(HOLE_LEN) {
            if !is_zero(piece) {
                file.write_at(at, piece).map_err(failed)?;
            }
            at += piece.len() as u64;
        }
        file.write_at(0, &head).map_err(failed)?;
        Ok(self.file)
    }
}

/// A file that does not have its name yet.
#[derive(Debug)]
enum Temporary {
    /// In a state directory.
    Own(Own),
    /// Beside the name that the operator gave.
    Of(NamedTempFile, PathBuf),
}

impl Temporary {
    fn as_file(&self) -> &File {
        match self {
            Self::Own(own) => &own.file,
            Self::Of(file, _) => file.as_file(),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(own) => &own.path,
            Self::Of(_, path) => path,
        }
    }

    /// Gives it its name; which that is.
    fn publish(self) -> Result<PathBuf> {
        match self {
            Self::Own(own) => own.publish(),
            Self::Of(file, path) => {
                let failed = |e| Error::io(e, "write map file").path(&path);
                if path.symlink_metadata().is_ok() && !is_map(&path) {
                    let message = "exists and is not a map; it is not replaced";
                    return Err(Error::new(ErrorKind::Refused, message).path(&path));
                }
                file.persist(&path).map_err(|e| failed(e.error))?;
                Ok(path)
            }
        }
    }
}

/// Whether a file begins as maps of any version do.
fn is_map(path: &Path) -> bool {
    let mut magic = [0; 7];
    let file = File::open(path);
    file.and_then(|file| file.read_at(0, &mut magic)).is_ok() && magic == *b"FBCKMAP"
}

/// A file of a state directory, of which several jobs may make one at a time: its lock says whose
/// it is.
#[derive(Debug)]
struct Own {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    is_published: bool,
}

impl Own {
    fn create(path: &Path) -> io::Result<Option<Self>> {
        let temporary = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        system::keep_private(&mut options);
        let file = options.open(&temporary)?;
        if file.try_lock().is_err() {
            return Ok(None);
        }
        // Another job may have given this very file its name since it was opened: then it is a map,
        // which is never changed.
        if !system::is_at(&file, &temporary)? {
            return Ok(None);
        }
        FileAt::set_len(&file, 0)?;
        Ok(Some(Self {
            file,
            path: path.to_owned(),
            temporary,
            is_published: false,
        }))
    }

    fn publish(mut self) -> Result<PathBuf> {
        let renamed = std::fs::rename(&self.temporary, &self.path);
        self.is_published = renamed.is_ok();
        renamed.map_err(|e| Error::io(e, "name map file").path(&self.path))?;
        Ok(self.path.clone())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.is_published {
            // What stays is written over by the next.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}
