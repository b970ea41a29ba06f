//! Merging a child into its parent.
//!
//! Source: MS-VHDX 2.6.2.6 gives a child room for two identities of its parent, so that it stays
//! tied to a parent that is being changed. What a reader of the chain sees never changes: every
//! sector that is written to the parent is one that the child holds itself.
//!
//! ```text
//! child    parent_linkage = what the parent is called now, parent_linkage2 = a new GUID G,
//!          logged and synced                                        parent is still the old one
//! parent   DataWriteGuid = G, synced; then the child's sectors      either name fits the child
//! parent   flush; DataWriteGuid = that of the child, synced         the parent is the child now
//! ```
//!
//! G is new each time, also when a merge goes on: no other image knows a parent that is half merged
//! by its name. Interrupted at any point, the chain opens, and merging again goes on. In the
//! end the parent has the child's identity, so that children of the child are children of the
//! parent; the child itself no longer opens over it and is to be deleted by the caller.

use std::ops::{ControlFlow, Range};

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::extent::Place;
use crate::format::{PAGE_LEN, to_usize};
use crate::image::Image;
use crate::metadata::replace_locator;
use crate::pages::{Page, place};
use crate::writing::DataIdentity;

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The parent has the child's content and identity.
    Done {
        /// Bytes of the disk that the child held and the parent got.
        copied: u64,
        /// Bytes of the disk that are zero in the child and now in the parent.
        zeroed: u64,
    },
    /// The caller stopped it. The chain is as good as before, and merging again goes on.
    Stopped,
}

impl Image {
    /// Writes what this differencing image holds into its [parent](Self::parent), which then has
    /// its content and its [`data_write_guid`](Self::data_write_guid). Both have to be open for
    /// writing, and nobody else may use them.
    ///
    /// `on_progress` is called with the bytes of the disk done so far, after each MiB or so, and
    /// can stop the merge. Whenever it ends, by success, stop, error or power cut, the chain reads
    /// the same. See [`Merge`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) without a parent;
    /// [`Unsupported`](ErrorKind::Unsupported) when the two disks differ in length or the child
    /// has no room for the second name of its parent; [`ReadOnly`](ErrorKind::ReadOnly); else as
    /// for [`write_at`](Self::write_at).
    pub fn merge_into_parent(
        self,
        on_progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Merge> {
        self.merge(on_progress)
            .map_err(|error| error.during("merge"))
    }

    /// Does in the file what a log says that was replayed when the image was opened, and leaves it
    /// at rest. Does nothing otherwise, and changes nothing that a user of the disk could see.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn settle(&self) -> Result<()> {
        self.check_change(&(0..0))
            .map_err(|error| error.during("settle"))?;
        if self.storage.overlay().is_none() {
            return Ok(());
        }
        self.begin(DataIdentity::Kept)?;
        self.close()
    }

    fn merge(&self, on_progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Merge> {
        let parent = self.parent.as_deref();
        let parent = parent.ok_or_else(|| Error::invalid("image has no parent"))?;
        if !self.is_writable || !parent.is_writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "image and parent have to be open for writing",
            ));
        }
        if self.virtual_size() != parent.virtual_size() {
            return Err(Error::unsupported("the parent's disk has another length"));
        }
        self.close()?;
        parent.close()?;
        let identity = self.announce(parent)?;
        parent.begin(DataIdentity::Given(identity))?;
        // Whole blocks of both, so that a zero block stays one.
        let window = WINDOW_LEN.max(self.block_size().max(parent.block_size()).into());
        let (mut copied, mut zeroed) = (0, 0);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < self.virtual_size() {
            let end = self.virtual_size().min(at + window);
            runs.clear();
            self.resolve(at..end, &mut runs)?;
            for run in &runs {
                let len = run.disk.end - run.disk.start;
                match run.place {
                    Place::Parent => {}
                    Place::Zero => {
                        parent.zero(run.disk.clone())?;
                        zeroed += len;
                    }
                    Place::File { .. } | Place::Replayed => {
                        if self.copy(parent, run.disk.clone(), on_progress)?.is_break() {
                            parent.close()?;
                            return Ok(Merge::Stopped);
                        }
                        copied += len;
                    }
                }
            }
            at = end;
            if on_progress(at).is_break() && at < self.virtual_size() {
                parent.close()?;
                return Ok(Merge::Stopped);
            }
        }
        parent.flush()?;
        parent.take_identity(self.data_write_guid())?;
        parent.close()?;
        Ok(Merge::Done { copied, zeroed })
    }

    /// Notes in this image the second name that the parent is about to have, and returns it.
    fn announce(&self, parent: &Self) -> Result<Uuid> {
        let locator = self.parent_locator().expect("an image with a parent");
        let found = parent.data_write_guid();
        let is_known = found == locator.linkage() || Some(found) == locator.linkage2();
        if !is_known || found == self.data_write_guid() {
            let detail = "the parent has changed since the image was opened";
            return Err(Error::new(ErrorKind::WrongParent, detail).of("parent locator"));
        }
        let identity = Uuid::new_v4();
        let locator = locator.between(found, identity);
        let region = &self.bat.regions().metadata;
        let edits = replace_locator(&self.storage, region, &locator)?;
        self.begin(DataIdentity::Kept)?;
        for (at, bytes) in edits {
            self.edit(at, &bytes)?;
        }
        self.close()?;
        Ok(identity)
    }

    /// Changes bytes of a structure. They become durable, all or none, with the next flush.
    fn edit(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (page_at, within) = place(at);
            let (part, others) = rest.split_at(rest.len().min(PAGE_LEN - within));
            let load = || {
                let mut page = Box::new([0; PAGE_LEN]);
                self.storage.read_at(page_at, &mut page[..])?;
                Ok(page)
            };
            let edit = |page: &mut Page| page[within..within + part.len()].copy_from_slice(part);
            self.pages.change(page_at, load, edit)?;
            at += part.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn copy(
        &self,
        parent: &Self,
        disk: Range<u64>,
        on_progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut buf = vec![0; to_usize((disk.end - disk.start).min(COPY_LEN))];
        let mut at = disk.start;
        while at < disk.end {
            let count = to_usize((disk.end - at).min(COPY_LEN));
            self.read_at(at, &mut buf[..count])?;
            parent.write_at(at, &buf[..count])?;
            at += count as u64;
            if on_progress(at).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Bytes of the disk whose places are looked up at once, where blocks are not larger. Each sector
/// can be a run of its own: the largest block has 524,288 of them, 20 MiB of memory.
const WINDOW_LEN: u64 = 64 << 20;
/// Bytes copied at once.
const COPY_LEN: u64 = 1 << 20;
