//! The end of a session on the target's side: what was changed is made to last, and proven.

use std::sync::atomic::Ordering;

use failback_transport as wire;
use failback_transport::{SourceEnd, TargetResult, VerifyLevel};

use super::session::Session;
use super::target_role::InPlaceChanges;
use crate::abort::Abort;
use crate::apply::{Destination, InPlace};
use crate::commit::Staging;
use crate::error::Result;
use crate::hash::Digest;
use crate::schedule::now;
use crate::verify::root_of_medium;

/// The last steps on the target.
pub(super) struct Conclusion<'a> {
    pub(super) session: &'a Session,
    /// `None` for a comparison.
    pub(super) to: Option<&'a Destination<'a>>,
    pub(super) abort: &'a Abort,
}

/// Whether the session wrote to the target.
pub(super) fn is_changed(result: &TargetResult) -> bool {
    result.container.is_some() || result.written + result.zeroed_blocks > 0
}

impl Conclusion<'_> {
    /// Takes them, where `known`, the root of what the target is now or will be, is the source's;
    /// what was read and hashed on the way is left for the caller to tell.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `VerifyFailed`, `Refused`, `Damaged`, `Cancelled`.
    pub(super) fn conclude(
        &self,
        known: Option<Digest>,
        end: &SourceEnd,
        last_step: Option<InPlaceChanges<'_>>,
    ) -> Result<TargetResult> {
        let started = now();
        let mut result = TargetResult {
            root: known,
            equal: known == end.root,
            differing_blocks: end.differing_blocks,
            ..TargetResult::default()
        };
        match (self.to, last_step) {
            (Some(Destination::InPlace(applied)), Some(step)) => {
                self.conclude_in_place(applied, end, step, &mut result)?;
            }
            (Some(Destination::Stage(staging)), _) => {
                self.conclude_staged(staging, &mut result)?;
            }
            _ => {}
        }
        result.verify_micros = u64::try_from((now() - started).as_micros()).unwrap_or(u64::MAX);
        Ok(result)
    }

    /// Flush, read back, close, name.
    fn conclude_in_place(
        &self,
        applied: &InPlace<'_>,
        end: &SourceEnd,
        changes: InPlaceChanges<'_>,
        result: &mut TargetResult,
    ) -> Result<()> {
        let target = changes.target;
        result.resume_notes = changes.resume_notes;
        self.session.progress.enter_verify();
        applied.finish()?;
        if self.session.options.verify == VerifyLevel::Full {
            let (root, _) = root_of_medium(target, self.session, self.abort)?;
            result.root = Some(root);
            result.equal = result.root == end.root;
        }
        if result.equal {
            result.container = (changes.finish)(result.root)?;
        }
        result.written = applied.written_len();
        result.zeroed_blocks = applied.zeroed_count();
        result.verified = self.session.progress.verified.load(Ordering::Relaxed);
        result.verified_from = applied.verified_from();
        Ok(())
    }

    /// Seal, commit, apply, read back; or nothing at all when the roots do not agree.
    fn conclude_staged(&self, staging: &Staging, result: &mut TargetResult) -> Result<()> {
        result.resumed_blocks = staging.resumed_blocks();
        result.resume_notes = staging.notes();
        if !result.equal {
            return staging.give_up();
        }
        result.container = staging.is_used().then_some(wire::Container::Log);
        let outcome = staging.commit(result.root, self.abort)?;
        result.written = outcome.written;
        result.verified = outcome.verified;
        result.verified_from = outcome.verified_from;
        result.zeroed_blocks = staging.zeroed_count();
        Ok(())
    }
}
