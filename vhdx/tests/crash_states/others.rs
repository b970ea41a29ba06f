//! Records that are no session on one image: new images, and merges of two.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use failback_vhdx::{
    ChildOptions, CreateOptions, ErrorKind, FileAt, Image, Kind, MemoryFile, Merge,
};

use crate::promises::Promise;
use crate::record::{Op, Record, RecordedFile, SECTOR};
use crate::sessions::{Disk, open};
use crate::states::State;
use crate::support::MIB;

/// A recorded creation. A new image is empty and whole, or it does not open.
pub(crate) struct Creation {
    kind: Kind,
    parent: Option<Arc<Image>>,
    pub(crate) ops: Vec<Op>,
}

/// Blocks of a new image.
const NEW_BLOCKS: u64 = 3;

impl Creation {
    /// Records the making of an image; a differencing one gets an empty parent.
    pub(crate) fn new(kind: Kind) -> Self {
        let record = Arc::new(Record::default());
        let file = RecordedFile::new(&record, 0, &MemoryFile::new());
        let size = NEW_BLOCKS * MIB;
        let parent = match kind {
            Kind::Fixed | Kind::Dynamic => {
                let options = CreateOptions {
                    block_size: Some(1 << 20),
                    ..CreateOptions::new(size, kind)
                };
                Image::create(file, &options).unwrap();
                None
            }
            Kind::Differencing => {
                let parent = Disk::new(Kind::Dynamic, size, 512).file;
                let parent = Arc::new(Image::open(Arc::new(parent)).unwrap());
                let options = ChildOptions::new(".\\parent.vhdx");
                Image::create_child(file, parent.clone(), &options).unwrap();
                Some(parent)
            }
        };
        Self {
            kind,
            parent,
            ops: record.ops(),
        }
    }
}

impl Promise for Creation {
    fn check(&self, state: &State) -> Result<(), String> {
        let image = match open(state.files[0].clone(), self.parent.clone(), false) {
            Ok(image) => image,
            Err(_) if state.latest < self.ops.len() => return Ok(()),
            Err(error) => return Err(format!("was created, and does not open: {error}")),
        };
        let size = (image.virtual_size(), image.kind());
        if size != (NEW_BLOCKS * MIB, self.kind) {
            return Err(format!("is another disk: {size:?}"));
        }
        let summary = image.scan_allocation().map_err(|error| error.to_string())?;
        let present = match self.kind {
            Kind::Fixed => NEW_BLOCKS,
            Kind::Dynamic | Kind::Differencing => 0,
        };
        if summary.present != present {
            return Err(format!("{} blocks have a place", summary.present));
        }
        for at in (0..size.0).step_by(64 << 10) {
            let mut bytes = [1; SECTOR];
            let read = image.read_at(at, &mut bytes);
            if read.is_err() || bytes != [0; SECTOR] {
                return Err(format!("is not empty at {at:#x}"));
            }
        }
        if state.latest == self.ops.len() && !image.warnings().is_empty() {
            return Err("was created, and is damaged in a part".to_owned());
        }
        Ok(())
    }
}

/// A recorded merge: file 0 is the child, file 1 its parent. What the chain reads never changes.
pub(crate) struct Merging {
    pub(crate) base: [MemoryFile; 2],
    pub(crate) ops: Vec<Op>,
    content: Vec<u8>,
}

impl Merging {
    pub(crate) fn new(parent: Disk, changes: &dyn Fn(&Image)) -> Self {
        let below = Arc::new(parent.file);
        let image = Arc::new(Image::open(below.clone()).unwrap());
        let above = Arc::new(MemoryFile::new());
        let options = ChildOptions {
            block_size: Some(1 << 20),
            ..ChildOptions::new(".\\parent.vhdx")
        };
        let child = Image::create_child(above.clone(), image, &options).unwrap();
        changes(&child);
        child.close().unwrap();
        let content = places(&child).unwrap();
        drop(child);
        let base = [MemoryFile::clone(&above), MemoryFile::clone(&below)];
        let record = Arc::new(Record::default());
        let child = RecordedFile::new(&record, 0, &base[0]);
        let done = merge(child, RecordedFile::new(&record, 1, &base[1])).unwrap();
        assert!(matches!(done, Merge::Done { .. }));
        Self {
            base,
            ops: record.ops(),
            content,
        }
    }
}

impl Promise for Merging {
    fn check(&self, state: &State) -> Result<(), String> {
        let [child, parent] = [0, 1].map(|file| state.files[file].clone());
        let failed = |error| format!("does not open: {error}");
        let below = Arc::new(Image::open(parent.clone()).map_err(failed)?);
        below.scan_allocation().map_err(failed)?;
        let is_done = match Image::open_child(child.clone(), below.clone()) {
            Ok(chain) => {
                chain.scan_allocation().map_err(failed)?;
                self.compare(&chain)?;
                false
            }
            // Only a parent that has become the child refuses the child.
            Err(error) if error.kind() == ErrorKind::WrongParent => true,
            Err(error) => return Err(failed(error)),
        };
        if is_done {
            return self.compare(&below);
        }
        if state.latest == self.ops.len() {
            return Err("was merged, and the parent is still the parent".to_owned());
        }
        if state.number.is_multiple_of(MERGED_EVERY) {
            let [child, parent] = [child, parent].map(|file| Arc::new(MemoryFile::clone(&file)));
            let merged = merge(child, parent.clone());
            merged.map_err(|error| format!("cannot be merged again: {error}"))?;
            self.compare(&Image::open(parent).map_err(failed)?)?;
        }
        Ok(())
    }
}

impl Merging {
    fn compare(&self, image: &Image) -> Result<(), String> {
        let found = places(image)?;
        match found == self.content {
            true => Ok(()),
            false => Err("the chain reads otherwise".to_owned()),
        }
    }
}

fn merge(child: Arc<dyn FileAt>, parent: Arc<dyn FileAt>) -> failback_vhdx::Result<Merge> {
    let parent = Arc::new(Image::open_rw(parent)?);
    let child = Image::open_child_rw(child, parent)?;
    child.merge_into_parent(&mut |_| ControlFlow::Continue(()))
}

/// The first sectors of each 32 KiB, and those around the end of each block.
fn places(image: &Image) -> Result<Vec<u8>, String> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let size = image.virtual_size();
    ranges.extend((0..size).step_by(32 << 10).map(|at| at..at + 4096));
    ranges.extend((MIB..=size).step_by(1 << 20).map(|end| end - 2048..end));
    let mut content = Vec::new();
    for range in ranges {
        let start = content.len();
        content.resize(start + usize::try_from(range.end - range.start).unwrap(), 0);
        let read = image.read_at(range.start, &mut content[start..]);
        read.map_err(|error| error.to_string())?;
    }
    Ok(content)
}

/// One state in so many is merged to the end.
const MERGED_EVERY: usize = 16;
