//! From a child of the target that is whole to a target that has taken it in, and back.
//!
//! ```text
//! staging         the child grows in the state directory; its bytes are flushed and read back
//!                 an image of what the target has at its places; both durable; target unchanged
//! staged          SEAL names the three images: nobody else is needed any more
//! committing      COMMIT durable; the child is merged, which is crash-safe and can be done again
//! new_unverified  the places of the child are read back past the page cache
//! new_verified    accepted at once, or kept
//! rolling_back    the merge is ended, and the other image is merged; places read back
//! done, old_restored   both images are removed
//! ```
//! An image knows its parent by a GUID that changes with the parent's content, and a merge gives
//! the parent the image's own: how far the target is, is looked up and never remembered.

use std::ops::ControlFlow;
use std::sync::Arc;

use failback_transport::{VerifiedFrom, VerifyLevel};
use failback_vhdx::{ChildOptions, Description, Image, Merge};

use super::finish::{Outcome, check_unchanged};
use super::layer::{growth, of_image, save_old, sum_at, sum_of};
use super::opening::{is_not_finished, waits_to_be_accepted};
use super::room::check_room_for;
use crate::abort::Abort;
use crate::disk::{
    ImageFile, Layer, Layers, Source, Target, TargetAccess, VhdxDisk, open_chain, vhdx_error_at,
};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::hash::Digest;
use crate::state::{
    Barrier, Barriers, Entry, Folder, Journal, Layered, Word, lead_to, remove_needless,
};
use crate::sync::Session;
use crate::system::MediumAccess;
use crate::verify::root_of_medium;

/// Largest block of a layer: what is changed in part takes no more.
const BLOCK_SIZE_MAX: u32 = 2 << 20;

/// How far the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// As it was sealed.
    Old,
    /// The child is being merged.
    BecomesNew,
    /// It has the child's content.
    New,
    /// The image of its old content is being merged.
    BecomesOld,
    /// It has its old content again.
    OldAgain,
    /// Somebody else wrote to it.
    Neither,
}

/// Takes a child to its target.
#[derive(Debug)]
pub(super) struct Merging<'a> {
    pub(super) layers: &'a dyn Layers,
    pub(super) folder: &'a dyn Folder,
    pub(super) barriers: Barriers,
    pub(super) session: &'a Session,
    pub(super) abort: &'a Abort,
}

/// Makes the child, over the target as it is: a disk that can be changed.
pub(super) fn make_child(layers: &dyn Layers) -> Result<Arc<dyn Target>> {
    let below = layers.chain()?;
    let parent = Arc::new(open_chain(&below, false)?);
    let file = layers.make(Layer::Child)?;
    let image = make_layer(&file, &parent, below[0].as_ref())?;
    Ok(Arc::new(VhdxDisk::of_image(
        image,
        with_below(file, below),
        true,
    )))
}

/// Opens the child that an earlier run made; `None` when there is none.
pub(super) fn open_child(layers: &dyn Layers) -> Result<Option<Arc<dyn Target>>> {
    let Some(file) = layers.open(Layer::Child)? else {
        return Ok(None);
    };
    let files = with_below(file, layers.chain()?);
    let image = open_chain(&files, true)?;
    Ok(Some(Arc::new(VhdxDisk::of_image(image, files, false))))
}

/// Clears away the child of an earlier job, where a job of another kind begins. Whether that job
/// was given up for it.
///
/// # Errors
/// `Refused` while its result waits, `Io`.
pub(crate) fn drop_child(folder: &dyn Folder, mut journal: Journal) -> Result<bool> {
    let is_given_up = match journal.word() {
        _ if journal.waits_to_be_accepted() => return Err(waits_to_be_accepted()),
        word if word.is_final() => false,
        Word::Staging | Word::Staged => {
            journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
            true
        }
        Word::NewVerified => {
            journal.append(Entry::of(Word::Done), Barrier::Done)?;
            false
        }
        _ => return Err(is_not_finished()),
    };
    remove_needless(folder)?;
    Ok(is_given_up)
}

impl Merging<'_> {
    /// From `staging` to `staged`: the child is closed, proven, and has `new_root`.
    pub(super) fn seal(
        &self,
        journal: &mut Journal,
        old: &dyn TargetAccess,
        new_root: Option<Digest>,
    ) -> Result<()> {
        let layered = self.describe(journal.begun().has_undo, new_root)?;
        self.barriers
            .pass(Barrier::LayerNames, || self.folder.sync())
            .map_err(|e| Error::io(e, "flush directory"))?;
        check_unchanged(old, &journal.begun().identity)?;
        self.check_room(old)?;
        let staged = Entry {
            layered: Some(layered),
            ..Entry::of(Word::Staged)
        };
        journal.append(staged, Barrier::Sealed)
    }

    /// Saves what the target has, if that is wanted, and says what all of it is.
    fn describe(&self, has_undo: bool, new_root: Option<Digest>) -> Result<Layered> {
        let below = self.layers.chain()?;
        let target = open_chain(&below, false)?;
        let old = target.data_write_guid().to_string();
        let file = self.file(Layer::Child)?;
        let child = Image::open_child(file.clone(), Arc::new(target));
        let child = Arc::new(child.map_err(|e| vhdx_error_at(&e, file.path()))?);
        let new_sum = sum_of(&child, self.abort)?;
        let (mut undo, mut old_sum) = (None, None);
        if has_undo {
            let target = child.parent().expect("opened over it");
            let file = self.layers.make(Layer::Undo)?;
            let image = make_layer(&file, &child, below[0].as_ref())?;
            old_sum = Some(save_old(&child, target, &image, self.abort)?);
            undo = Some(image.data_write_guid().to_string());
            self.barriers
                .pass(Barrier::Undo, || image.close())
                .map_err(of_image)?;
        }
        Ok(Layered {
            new_root: new_root.map(|root| root.to_string()),
            old,
            new: child.data_write_guid().to_string(),
            undo,
            new_sum,
            old_sum,
        })
    }

    fn check_room(&self, old: &dyn TargetAccess) -> Result<()> {
        check_room_for(old, || {
            growth(&self.detached(Layer::Child)?, old, self.abort)
        })
    }

    /// From `staged`, or from what a rotted COMMIT left: the target is as it was sealed, or the
    /// merge had begun.
    pub(super) fn go_on(
        &self,
        journal: &mut Journal,
        access: &dyn TargetAccess,
    ) -> Result<Outcome> {
        // The last moment at which all can be left as it is.
        self.abort.check()?;
        access.check_writable()?;
        lead_to(self.folder, self.barriers, journal.job())?;
        journal.append(Entry::of(Word::Committing), Barrier::Committed)?;
        self.take_in(journal)
    }

    /// From `committing`.
    pub(super) fn take_in(&self, journal: &mut Journal) -> Result<Outcome> {
        let layered = layered_of(journal)?;
        let written = self.merge_child(&layered)?;
        journal.append(Entry::of(Word::NewUnverified), Barrier::Unverified)?;
        let proven = self.prove(journal)?;
        Ok(Outcome { written, ..proven })
    }

    /// From `new_unverified`.
    pub(super) fn prove(&self, journal: &mut Journal) -> Result<Outcome> {
        let layered = layered_of(journal)?;
        if self.progress(&layered)? != Progress::New {
            return Err(changed());
        }
        let disk = self.target()?;
        // Not only the bytes: also what leads to them.
        disk.prove_structure()?;
        let level = self.session.options.verify;
        self.session.progress.enter_verify();
        let verified = match level {
            VerifyLevel::Off => 0,
            VerifyLevel::Changed => self.check_sum(&disk, Some(&layered.new_sum))?,
            VerifyLevel::Full => self.check_root(&disk, layered.new_root.as_deref())?,
        };
        let word = match level {
            // Nothing was read back: the word stays what it is.
            VerifyLevel::Off => Word::NewUnverified,
            _ => Word::NewVerified,
        };
        let keeps_undo = journal.begun().keeps_undo;
        if keeps_undo || word == Word::NewVerified {
            let left = Entry {
                left: Some(disk.mark()?.unwrap_or_default()),
                ..Entry::of(word)
            };
            journal.append(left, Barrier::Verified)?;
        }
        if !keeps_undo {
            self.accept(journal)?;
        }
        Ok(Outcome {
            written: 0,
            verified,
            verified_from: match (level, disk.medium()) {
                (VerifyLevel::Off, _) => VerifiedFrom::None,
                (_, MediumAccess::Medium) => VerifiedFrom::Medium,
                (_, MediumAccess::Cache) => VerifiedFrom::Cache,
                (_, MediumAccess::Server) => VerifiedFrom::Server,
            },
            info: Some(disk.info()),
            facts: None,
        })
    }

    /// From `new_verified`: both images go.
    pub(super) fn accept(&self, journal: &mut Journal) -> Result<()> {
        journal.append(Entry::of(Word::Done), Barrier::Done)?;
        remove_needless(self.folder)
    }

    /// From any word after COMMIT: the old content comes back.
    pub(super) fn roll_back(&self, journal: &mut Journal) -> Result<Outcome> {
        let layered = layered_of(journal)?;
        // Before the word: a target that somebody else wrote to stays what it is.
        let found = self.progress(&layered)?;
        if found == Progress::Neither {
            return Err(changed().remedy_is(Remedy::AcceptNew));
        }
        if let Some(left) = journal.left().filter(|_| found == Progress::New) {
            self.refuse_used(left, &layered)?;
        }
        if journal.word() != Word::RollingBack {
            journal.append(Entry::of(Word::RollingBack), Barrier::RollingBack)?;
        }
        if matches!(found, Progress::Old | Progress::BecomesNew) {
            self.merge_child(&layered)?;
        }
        let written = match found {
            Progress::OldAgain => self.settle().map(|()| 0),
            _ => self.merge(Layer::Undo),
        }?;
        let disk = self.target()?;
        disk.prove_structure()?;
        let verified = self.check_sum(&disk, layered.old_sum.as_deref())?;
        journal.append(Entry::of(Word::OldRestored), Barrier::OldRestored)?;
        remove_needless(self.folder)?;
        Ok(Outcome {
            written,
            verified,
            verified_from: VerifiedFrom::None,
            info: Some(disk.info()),
            facts: None,
        })
    }

    /// Refuses a target that has its GUID still, yet was written to by something that does not know
    /// of it: where the mark differs and all of the disk was hashed, all of it is read.
    fn refuse_used(&self, left: &str, layered: &Layered) -> Result<()> {
        let disk = self.target()?;
        let Some(new_root) = layered.new_root.as_deref() else {
            return Ok(());
        };
        if disk.mark()?.is_some_and(|mark| mark == left) {
            return Ok(());
        }
        let abort = self.abort.of_same_caller();
        let (root, _) = root_of_medium(&disk, self.session, &abort)?;
        match root.to_string() == new_root {
            true => Ok(()),
            false => Err(changed().remedy_is(Remedy::AcceptNew)),
        }
    }

    /// Gives the child up, before COMMIT.
    pub(super) fn abandon(&self, journal: &mut Journal) -> Result<()> {
        if journal.word() == Word::Staging {
            // On a disk that is full this makes the room for the word. Without the child the next
            // run begins anew; what was sealed goes after its word.
            remove_needless(self.folder)?;
        }
        journal.append(Entry::of(Word::Aborted), Barrier::Aborted)?;
        remove_needless(self.folder)
    }

    /// How far the target is on its way.
    pub(super) fn progress(&self, layered: &Layered) -> Result<Progress> {
        let chain = self.layers.chain()?;
        let target = inspect(&chain[0])?.data_write_guid.to_string();
        let is_between = |layer| -> Result<bool> {
            let Some(file) = self.layers.open(layer)? else {
                return Ok(false);
            };
            let locator = inspect(&file)?.locator;
            Ok(locator.is_some_and(|locator| {
                let names = [Some(locator.linkage()), locator.linkage2()];
                let mut names = names.into_iter().flatten();
                names.any(|name| name.to_string() == target)
            }))
        };
        Ok(match () {
            () if Some(&target) == layered.undo.as_ref() => Progress::OldAgain,
            () if target == layered.new => Progress::New,
            () if target == layered.old => Progress::Old,
            () if is_between(Layer::Child)? => Progress::BecomesNew,
            () if is_between(Layer::Undo)? => Progress::BecomesOld,
            () => Progress::Neither,
        })
    }

    /// Whether the child is the one that was sealed, down to its last byte.
    pub(super) fn check_child(&self, layered: &Layered) -> Result<()> {
        let child = self.detached(Layer::Child)?;
        let is_same = child.data_write_guid().to_string() == layered.new
            && sum_of(&child, self.abort)? == layered.new_sum;
        match is_same {
            true => Ok(()),
            false => {
                let message = "the child is damaged: it is not the one that was sealed";
                Err(Error::new(ErrorKind::Damaged, message))
            }
        }
    }

    /// The target takes the child in, as far as it has not.
    fn merge_child(&self, layered: &Layered) -> Result<u64> {
        match self.progress(layered)? {
            Progress::Old | Progress::BecomesNew => self.merge(Layer::Child),
            Progress::New => self.settle().map(|()| 0),
            _ => Err(changed()),
        }
    }

    fn merge(&self, layer: Layer) -> Result<u64> {
        let file = self.file(layer)?;
        let target = Arc::new(open_chain(&self.layers.chain_for_writing()?, true)?);
        let failed = |e: failback_vhdx::Error| vhdx_error_at(&e, file.path());
        let image = Image::open_child_rw(file.clone(), target).map_err(failed)?;
        let merged = image.merge_into_parent(&mut |_| match self.abort.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
        match merged.map_err(failed)? {
            Merge::Done { copied, .. } => Ok(copied),
            Merge::Stopped => {
                self.abort.check_cancelled()?;
                Err(Error::new(ErrorKind::Cancelled, "cancelled"))
            }
        }
    }

    /// Does in the file what the log says that the end of a merge left.
    fn settle(&self) -> Result<()> {
        let chain = self.layers.chain_for_writing()?;
        let settled = open_chain(&chain, true)?.settle();
        settled.map_err(|e| vhdx_error_at(&e, chain[0].path()))
    }

    /// The target, to be read back.
    fn target(&self) -> Result<VhdxDisk> {
        let chain = self.layers.chain_for_writing()?;
        Ok(VhdxDisk::of_image(open_chain(&chain, false)?, chain, false))
    }

    fn check_sum(&self, disk: &VhdxDisk, expected: Option<&str>) -> Result<u64> {
        let child = self.detached(Layer::Child)?;
        let (sum, read) = sum_at(&child, disk, self.abort)?;
        let progress = &self.session.progress.verified;
        progress.fetch_add(read, std::sync::atomic::Ordering::Relaxed);
        is_proven(Some(sum.as_str()) == expected, read)
    }

    fn check_root(&self, disk: &VhdxDisk, expected: Option<&str>) -> Result<u64> {
        let abort = self.abort.of_same_caller();
        let (root, read) = root_of_medium(disk, self.session, &abort)?;
        is_proven(
            expected.is_some_and(|root_then| root_then == root.to_string()),
            read,
        )
    }

    /// A layer alone, to be looked at.
    fn detached(&self, layer: Layer) -> Result<Image> {
        let file = self.file(layer)?;
        let image = Image::open_detached(file.clone());
        image.map_err(|e| vhdx_error_at(&e, file.path()))
    }

    fn file(&self, layer: Layer) -> Result<Arc<dyn ImageFile>> {
        self.layers.open(layer)?.ok_or_else(|| {
            let message = format!(
                "{} is gone; its journal says that it is needed",
                layer.name()
            );
            Error::new(ErrorKind::Damaged, message)
        })
    }
}

/// A differencing image over `parent`. It names the target, as if it stood beside it.
fn make_layer(
    file: &Arc<dyn ImageFile>,
    parent: &Arc<Image>,
    target: &dyn ImageFile,
) -> Result<Image> {
    let name = target.path().file_name().unwrap_or_default();
    let options = ChildOptions {
        block_size: Some(parent.block_size().min(BLOCK_SIZE_MAX)),
        ..ChildOptions::new(&format!(".\\{}", name.to_string_lossy()))
    };
    let image = Image::create_child(file.clone(), parent.clone(), &options);
    image.map_err(|e| vhdx_error_at(&e, file.path()))
}

fn with_below(file: Arc<dyn ImageFile>, below: Vec<Arc<dyn ImageFile>>) -> Vec<Arc<dyn ImageFile>> {
    std::iter::once(file).chain(below).collect()
}

fn inspect(file: &Arc<dyn ImageFile>) -> Result<Description> {
    let found = Image::inspect(file.clone());
    found.map_err(|e| vhdx_error_at(&e, file.path()))
}

fn is_proven(is_right: bool, read: u64) -> Result<u64> {
    match is_right {
        true => Ok(read),
        false => {
            let message = "what was read back is not what was merged: the target is not to be \
                           trusted";
            Err(Error::new(ErrorKind::VerifyFailed, message))
        }
    }
}

pub(super) fn layered_of(journal: &Journal) -> Result<Layered> {
    journal.layered().cloned().ok_or_else(|| {
        let message = "journal is damaged: COMMIT without a seal";
        Error::new(ErrorKind::Damaged, message)
    })
}

pub(super) fn changed() -> Error {
    let message = "was written to by somebody else since; it was left as it is";
    Error::new(ErrorKind::Refused, message)
}
