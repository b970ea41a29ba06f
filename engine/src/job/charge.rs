//! Who is in charge of the machine, step by step: each epoch is noted before it begins, and no side
//! starts but in its own.

use super::fence::{Fence, refuse_far_ahead};
use super::journal::Fact;
use super::run::Job;
use super::spec::JobSpec;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::hook::Hook;
use crate::machine::Machine;
use crate::step::Step;

impl Job {
    /// Begins an epoch in which the source's side is in charge, where that has a fence of its own.
    /// Whoever came there before this job is refused from now on.
    pub(super) fn claim(&mut self, step: &Step<'_>) -> Result<()> {
        let host = self.sides.source.clone();
        let Some(found) = host.fence(step)? else {
            return Ok(());
        };
        let spec = self.spec();
        let side = spec.side_of_source();
        if found.epoch > 0 && found.side.as_deref() != Some(side) {
            let who = found.side.as_deref().unwrap_or("nobody");
            let message = format!(
                "side `{side}` is not in charge of pair `{}` on its own host: {who} is",
                spec.pair_name()
            );
            return Err(Error::new(ErrorKind::Refused, message));
        }
        refuse_far_ahead(self.fence.number(), found.epoch)?;
        self.begin_epoch_after(found.epoch, Some(side), step)
            .map(drop)
    }

    /// The epoch that another job of the pair has begun since, by either fence.
    ///
    /// # Errors
    /// Those of asking the source's host.
    pub(super) fn overtaken(&self, step: &Step<'_>) -> Result<Option<u64>> {
        let begun = self.journal.begun().epoch;
        let own = self.history().epoch().map_or(begun, |(epoch, _)| epoch);
        let theirs = self.sides.source.fence(step)?;
        // A number that is noted here and did not arrive there may be somebody else's by now.
        let noted = self.history().epoch().map(|(_, authority)| authority);
        let is_other = theirs.as_ref().is_some_and(|found| {
            found.epoch == own && noted.is_some_and(|noted| noted != found.side.as_deref())
        });
        let now = self
            .fence
            .number()
            .max(theirs.map_or(0, |found| found.epoch));
        Ok((now > own || is_other).then_some(now))
    }

    /// Begins an epoch: noted here first, so that after a crash the same one is begun again.
    pub(super) fn begin_epoch(&mut self, authority: Option<&str>, step: &Step<'_>) -> Result<u64> {
        self.begin_epoch_after(0, authority, step)
    }

    /// The same, with a number above `floor` unless it is noted already.
    ///
    /// Two fences say who may start: the target's is asked here, the source's on its own host.
    /// Whoever loses the right hears of it first, so that at no moment both have it.
    fn begin_epoch_after(
        &mut self,
        floor: u64,
        authority: Option<&str>,
        step: &Step<'_>,
    ) -> Result<u64> {
        let (epoch, job) = {
            let history = self.history();
            let begun = self.journal.begun();
            let (last, of_last) = history.epoch().unwrap_or((begun.epoch, None));
            // One that is noted and was not begun, or begun for the same, is the one.
            let is_open = history.epoch().is_some() && of_last == authority;
            let epoch = match is_open {
                true => last,
                false => last.max(floor).checked_add(1).ok_or_else(|| {
                    let message = "no epoch comes after the pair's present one";
                    Error::new(ErrorKind::Refused, message)
                })?,
            };
            (epoch, begun.spec.name.clone())
        };
        let authority_text = authority.map(str::to_owned);
        if self.history().epoch() != Some((epoch, authority)) {
            self.journal.note(Fact::Epoch {
                epoch,
                authority: authority_text,
            })?;
        }
        let host = self.sides.source.clone();
        let is_given_back = authority == Some(self.spec().side_of_source());
        if is_given_back {
            self.fence.advance(epoch, authority, &job)?;
            host.advance(epoch, authority, step)?;
        } else {
            host.advance(epoch, authority, step)?;
            self.fence.advance(epoch, authority, &job)?;
        }
        self.act_in(epoch);
        Ok(epoch)
    }

    /// Starts the machine of `side`, which is in charge in `epoch`, and waits until `probe` is
    /// content.
    pub(super) fn start_machine(
        &mut self,
        (side, epoch): (&str, u64),
        machine: &dyn Machine,
        probe: Option<&Hook>,
        step: &Step<'_>,
    ) -> Result<()> {
        self.fence.check_start(side, epoch)?;
        machine.start(step)?;
        let said = match probe {
            Some(probe) => {
                let said = probe.run_as("probe", step, &[("FAILBACK_SIDE", side)])?;
                let line = said
                    .stdout
                    .lines()
                    .next()
                    .map(str::trim)
                    .unwrap_or_default();
                let short: String = line.chars().take(SAID_CHARS_MAX).collect();
                Some(one_line(&short)).filter(|line| !line.is_empty())
            }
            None => None,
        };
        self.journal.note(Fact::Started {
            side: side.to_owned(),
            said,
        })
    }
}

/// The first job of a pair says where the machine is.
pub(super) fn take_charge(fence: &mut Fence, spec: &JobSpec) -> Result<()> {
    let side = spec.side_of_source();
    match fence.now() {
        None => fence.advance(1, Some(side), &spec.name),
        Some(now) if now.authority.as_deref() == Some(side) => Ok(()),
        Some(now) => {
            let pair = spec.pair_name();
            let job = now.job_name();
            let message = match now.authority.as_deref() {
                Some(who) => format!(
                    "side `{side}` is not in charge of pair `{pair}`: {who} is, since job \
                     `{job}`; `failback pair reverse {job}` is the way back"
                ),
                None => format!(
                    "side `{side}` is not in charge of pair `{pair}`: nobody is, job `{job}` is \
                     on its way"
                ),
            };
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// Characters that are kept of what a probe says.
const SAID_CHARS_MAX: usize = 256;
