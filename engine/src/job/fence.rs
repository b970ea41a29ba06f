//! Who may start the machine of a pair: never both sides.
//!
//! Each pair has an epoch that only grows, and with it the side in charge. While a machine moves
//! nobody is in charge. A start is allowed to the side of the present epoch alone; a job that was
//! overtaken has a lower one, and is refused whatever it wants to do.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::state::{Barrier, Barriers, HostFolder, LogEntry, RecordLog};
use crate::transport::Digest;

/// An epoch of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// The side in charge; `None`: nobody may start the machine.
    pub authority: Option<String>,
    /// The job that made it so: its name, and of a job of another host what tells it from others.
    pub job: String,
}

impl Epoch {
    /// The name of the job that made it so.
    pub(crate) fn job_name(&self) -> &str {
        self.job.split(' ').next().unwrap_or(&self.job)
    }
}

/// What a fence says, without the job that made it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The present epoch; 0 before the first job of the pair.
    pub epoch: u64,
    /// The side in charge; `None`: nobody may start the machine.
    pub side: Option<String>,
}

/// Epochs by which the fence of another host may be ahead of one's own. An honest one is ahead by
/// those that began while this host knew nothing of the pair: some for each job.
pub(crate) const EPOCHS_AHEAD_MAX: u64 = 1 << 32;

/// A number that no pair comes to would leave none for the epochs after it.
///
/// # Errors
/// `Refused` for an `epoch` that is too far above the present one, `now`.
pub(crate) fn refuse_far_ahead(now: u64, epoch: u64) -> Result<()> {
    if epoch.saturating_sub(now) <= EPOCHS_AHEAD_MAX {
        return Ok(());
    }
    let message = format!(
        "the pair is in epoch {now} here: {epoch}, which the other host says, is none that it can \
         be in"
    );
    Err(Error::new(ErrorKind::Refused, message))
}

/// In whose name a job asks the side of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// The epoch that the job is in; 0: none, it only looks.
    pub epoch: u64,
    /// 16 random bytes that tell the job from another one of the same name.
    pub token: [u8; 16],
}

/// A job as the fence of another host knows it: by its name, and what tells it from another of that
/// name.
pub(crate) fn holder(job: &str, token: &Digest) -> String {
    let mut holder = format!("{job} ");
    for byte in token.as_bytes() {
        holder.push_str(&format!("{byte:02x}"));
    }
    holder
}

impl LogEntry for Epoch {
    const MAGIC: [u8; 8] = *b"FBFENCE\x01";
    const NAME: &'static str = "fence";
    const NEW_NAME: &'static str = "fence.new";

    fn can_begin(&self) -> bool {
        true
    }
}

/// How long the machines of a pair took the last time, in seconds: kept beside the fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// From the request to shut down until the source had no power.
    pub stop: Option<f64>,
    /// Until the target ran, and its probe was content.
    pub start: Option<f64>,
}

impl LogEntry for Times {
    const MAGIC: [u8; 8] = *b"FBTIMES\x01";
    const NAME: &'static str = "times";
    const NEW_NAME: &'static str = "times.new";

    fn can_begin(&self) -> bool {
        [self.stop, self.start]
            .into_iter()
            .flatten()
            .all(|seconds| seconds.is_finite() && (0.0..=TIME_SECONDS_MAX).contains(&seconds))
    }
}

/// Longer than a day no machine takes to stop or start.
const TIME_SECONDS_MAX: f64 = 86_400.0;

/// The fence of a pair on this host, held by one process.
#[derive(Debug)]
pub struct Fence {
    folder: HostFolder,
    barriers: Barriers,
    log: Option<RecordLog<Epoch>>,
}

impl Fence {
    /// The fence kept in `directory`, which is made where it is missing, and locked.
    ///
    /// # Errors
    /// `InUse` while another job of the pair runs; `Damaged`, `Refused`, `Io`.
    pub fn open(directory: &Path) -> Result<Self> {
        let folder = HostFolder::lock_for(directory, "has the machine of this pair in hand")?;
        let barriers = Barriers::new();
        let log = RecordLog::open(&folder, barriers)?;
        Ok(Self {
            folder,
            barriers,
            log,
        })
    }

    /// How long the machines took the last time. What cannot be read is not known: it is a hint.
    #[must_use]
    pub fn times(&self) -> Times {
        let log: Result<Option<RecordLog<Times>>> = RecordLog::open(&self.folder, self.barriers);
        let found = log.ok().flatten().map(|log| *log.last());
        found.unwrap_or_default()
    }

    /// Keeps how long the machines took, each unless it is not known.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn learn(&mut self, times: Times) -> Result<()> {
        let known = self.times();
        let next = Times {
            stop: times.stop.or(known.stop),
            start: times.start.or(known.start),
        };
        if next == known || !next.can_begin() {
            return Ok(());
        }
        RecordLog::begin(&self.folder, self.barriers, next, Barrier::Job).map(drop)
    }

    /// The present epoch; `None` before the first job of the pair.
    #[must_use]
    pub fn now(&self) -> Option<&Epoch> {
        self.log.as_ref().map(RecordLog::last)
    }

    /// Number of the present epoch, 0 before the first job.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.now().map_or(0, |now| now.epoch)
    }

    /// Begins an epoch in which `authority` is in charge; the same once more changes nothing.
    /// Durable when it returns.
    ///
    /// # Errors
    /// `Refused` unless `epoch` is the present one, with the same authority and job, or a later
    /// one; `Io`.
    pub fn advance(&mut self, epoch: u64, authority: Option<&str>, job: &str) -> Result<()> {
        let next = Epoch {
            epoch,
            authority: authority.map(str::to_owned),
            job: job.to_owned(),
        };
        match self.now() {
            Some(now) if *now == next => return Ok(()),
            Some(now) if now.epoch >= epoch => {
                let message = format!(
                    "the pair is in epoch {} of job `{}`: epoch {epoch} is over",
                    now.epoch, now.job
                );
                return Err(Error::new(ErrorKind::Refused, message));
            }
            _ => {}
        }
        match &mut self.log {
            Some(log) => log.append(next, Barrier::Job),
            None => {
                let (folder, barriers) = (&self.folder, self.barriers);
                self.log = Some(RecordLog::begin(folder, barriers, next, Barrier::Job)?);
                Ok(())
            }
        }
    }

    /// Whether `side` may start the machine in `epoch`.
    ///
    /// # Errors
    /// `Refused` when it may not.
    pub fn check_start(&self, side: &str, epoch: u64) -> Result<()> {
        match self.now() {
            Some(now) if now.epoch == epoch && now.authority.as_deref() == Some(side) => Ok(()),
            now => {
                let who = match now {
                    Some(now) => now.authority.as_deref().unwrap_or("nobody"),
                    None => "nobody yet",
                };
                let message = format!(
                    "side `{side}` must not start the machine in epoch {epoch}: in charge is \
                     {who}, in epoch {}",
                    self.number()
                );
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    // Goal: G1, never two sides in charge: what was handed over is not started, and no epoch comes
    // back. Method: a pair goes there and back, opened anew each time.
    #[test]
    fn only_the_side_in_charge_may_start() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pair");
        let open = || Fence::open(&at).unwrap();
        assert!(open().check_start("recovery", 0).is_err());
        open().advance(1, Some("recovery"), "a").unwrap();
        open().check_start("recovery", 1).unwrap();
        assert!(open().check_start("primary", 1).is_err());
        open().advance(2, None, "a").unwrap();
        assert!(open().check_start("recovery", 1).is_err());
        assert!(open().check_start("recovery", 2).is_err());
        open().advance(3, Some("primary"), "a").unwrap();
        // Done twice is done once.
        open().advance(3, Some("primary"), "a").unwrap();
        open().check_start("primary", 3).unwrap();
        for (epoch, authority, job) in [
            (3, "recovery", "a"),
            (2, "primary", "a"),
            (3, "primary", "b"),
        ] {
            let error = open().advance(epoch, Some(authority), job).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
        }
        assert_eq!(open().number(), 3);
    }

    // Goal: what the machines took is known to the next job, and what makes no sense is not.
    // Method: learn, open anew, damage the file.
    #[test]
    fn a_pair_learns_how_long_its_machines_take() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pair");
        let times = |stop, start| Times { stop, start };
        let open = || Fence::open(&at).unwrap();
        assert_eq!(open().times(), Times::default());
        open().learn(times(Some(3.5), None)).unwrap();
        open().learn(times(None, Some(7.25))).unwrap();
        assert_eq!(open().times(), times(Some(3.5), Some(7.25)));
        for wrong in [f64::NAN, -1.0, 1e9] {
            open().learn(times(Some(wrong), None)).unwrap();
        }
        assert_eq!(open().times(), times(Some(3.5), Some(7.25)));
        std::fs::write(at.join("times"), b"3.5").unwrap();
        assert_eq!(open().times(), Times::default());
    }

    // Goal: one job of a pair at a time. Method: two.
    #[test]
    fn a_fence_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pair");
        let held = Fence::open(&at).unwrap();
        assert_eq!(Fence::open(&at).unwrap_err().kind(), ErrorKind::InUse);
        drop(held);
        Fence::open(&at).unwrap();
    }
}
