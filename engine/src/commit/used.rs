//! Whether somebody wrote to a new disk after it was left.
//!
//! A roll-back writes the old bytes of what was staged, and nothing else. Had a guest written
//! elsewhere meanwhile, the result would be neither disk:
//!
//! ```text
//! the mark is the one that was left      nobody wrote
//! else, all of the disk is read:
//!   a block that is not staged           its leaf, as it is
//!   a staged block                       its new leaf, if with its old bytes it has its old leaf
//!   root = the new root                  what was written lies where the old bytes go
//! ```
//! So a disk that was only touched can be rolled back, as can one on which a roll-back was begun.

use std::ops::Range;

use super::finish::{Direction, Finisher, Job, content, has_leaf};
use crate::disk::{Source, Target};
use crate::error::{Error, ErrorKind, Remedy, Result};
use crate::hash::Digest;
use crate::pipeline::{BufferPool, Keep, ScanCounts, Scanned, Scanner};
use crate::stage::Record;
use crate::state::Word;
use crate::tree::{Leaf, TreeBuilder};
use crate::units::BlockIndex;

impl Finisher<'_> {
    /// Refuses a roll-back that would mix the old disk with what somebody else wrote.
    ///
    /// # Errors
    /// `Refused`; `Damaged`, `Io`, `Cancelled`.
    pub(super) fn refuse_used(&self, target: &dyn Target, job: &Job) -> Result<()> {
        let (word, left, new_root) = {
            let journal = job.journal();
            let new_root = journal.sealed().and_then(|sealed| sealed.new_root.clone());
            (journal.word(), journal.left().map(str::to_owned), new_root)
        };
        // Before that nobody was told that it could be used.
        let was_left = word == Word::NewVerified || word == Word::NewUnverified && left.is_some();
        if !was_left || target.mark()?.is_some_and(|mark| left == Some(mark)) {
            return Ok(());
        }
        let Some(new_root) = new_root else {
            let message = "was written to after the sync, or nobody can tell, and the sync did \
                           not hash all of it: with the old blocks back it could be neither disk";
            return Err(Error::new(ErrorKind::Refused, message).remedy_is(Remedy::AcceptNew));
        };
        match self.root_where_unstaged(target, job)? {
            Some(root) if root.to_string() == new_root => Ok(()),
            _ => Err(used()),
        }
    }

    /// The root of the disk if all of the stage were applied; `None` where the old bytes do not
    /// make an old block.
    fn root_where_unstaged(&self, target: &dyn Target, job: &Job) -> Result<Option<Digest>> {
        let session = self.session;
        let scanner = Scanner {
            disk: target as &dyn Source,
            geometry: session.geometry,
            hasher: Some(&session.hasher),
            keep: Keep::Always,
            pool: &BufferPool::new(session.threads * 2),
            threads: session.threads,
            reader: None,
            counts: &ScanCounts::default(),
        };
        let mut tree = TreeBuilder::new(&session.hasher, session.geometry);
        let mut fits = true;
        scanner.run(&self.abort.of_same_caller(), |scanned| {
            match scanned {
                Scanned::Zeros { first, count } => {
                    let mut next = first.0;
                    let end = first.0 + count;
                    while let Some(block) = job.stage.next_from(BlockIndex(next))
                        && block.0 < end
                    {
                        tree.push(Leaf::Zero, block.0 - next);
                        let mut bytes = vec![0; session.geometry.block_len(block)];
                        fits &= self.push_staged(&mut tree, job, block, &mut bytes, Leaf::Zero)?;
                        next = block.0 + 1;
                    }
                    tree.push(Leaf::Zero, end - next);
                }
                Scanned::Data {
                    block,
                    digest,
                    bytes,
                    ..
                } => {
                    let bytes = bytes.expect("the scan keeps them");
                    let mut bytes = bytes.as_ref().to_vec();
                    let leaf = Leaf::Data(digest.expect("a scan hashes"));
                    fits &= self.push_staged(&mut tree, job, block, &mut bytes, leaf)?;
                }
            }
            Ok(())
        })?;
        Ok(fits.then(|| tree.finish()))
    }

    /// Adds a block to the tree, as it would be new; whether its old bytes make its old leaf.
    fn push_staged(
        &self,
        tree: &mut TreeBuilder,
        job: &Job,
        block: BlockIndex,
        bytes: &mut [u8],
        leaf: Leaf,
    ) -> Result<bool> {
        let Some(record) = job.stage.find(block)? else {
            tree.push(leaf, 1);
            return Ok(true);
        };
        tree.push(record.new_leaf.unwrap_or(leaf), 1);
        let (is_zero_run, old) = content(&job.stage, &record, Direction::Old)?;
        lay_over(&record, bytes, (!is_zero_run).then_some(&old));
        Ok(record
            .old_leaf
            .is_none_or(|old| has_leaf(&self.session.hasher, bytes, old)))
    }
}

/// Puts the runs of a record into its block: `from` one after the other, or zeros.
pub(super) fn lay_over(record: &Record, block: &mut [u8], from: Option<&Vec<u8>>) {
    let mut taken = 0;
    for Range { start, end } in &record.runs {
        let piece = &mut block[*start as usize..*end as usize];
        match from {
            None => piece.fill(0),
            Some(bytes) => {
                piece.copy_from_slice(&bytes[taken..taken + piece.len()]);
                taken += piece.len();
            }
        }
    }
}

fn used() -> Error {
    let message = "was written to after the sync: with the old blocks back it would be neither \
                   disk; nothing was changed";
    Error::new(ErrorKind::Refused, message).remedy_is(Remedy::AcceptNew)
}
