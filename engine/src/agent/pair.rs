//! One machine of this host that jobs of other hosts control: what it is, who may ask, and which of
//! its disks can be read now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use failback_transport::{
    CONTROL_DISK_COUNT_MAX, CONTROL_SNAPSHOT_COUNT_MAX, ControlAnswer, ControlInfo, ControlPower,
    ControlTask, NAME_LEN_MAX,
};

use super::control_spec::PairSpec;
use super::grant::{Grant, OpenGrant};
use super::hinting::Hinted;
use crate::disk::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::hook::Hook;
use crate::job::{
    Epoch, Fence, Jobs, delete_disk, is_name, machine_of_spec, prove_quiet, refuse_far_ahead,
    snapshots_of_spec, tracker_of_spec,
};
use crate::machine::{Machine, Power};
use crate::snapshot::{SnapshotId, SnapshotProvider};
use crate::step::Step;
use crate::track::ChangeTracker;

/// This host's side of a machine that jobs of other hosts may control.
#[derive(Clone, Debug)]
pub struct Pair {
    side: String,
    machine: Arc<dyn Machine>,
    /// `None`: its disks cannot be frozen.
    pub(super) snapshots: Option<Arc<dyn SnapshotProvider>>,
    /// `None`: everything on them may have changed at any time.
    pub(super) tracker: Option<Arc<dyn ChangeTracker>>,
    probe: Option<Hook>,
    /// `None`: nothing says how one is deleted.
    delete_disk: Option<Hook>,
    disks: BTreeMap<String, Disk>,
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) open: OpenOptions,
}

impl Pair {
    /// A machine without disks, on the side that is called so in every job of the pair.
    #[must_use]
    pub fn new(
        side: impl Into<String>,
        machine: Arc<dyn Machine>,
        snapshots: Option<Arc<dyn SnapshotProvider>>,
    ) -> Self {
        Self {
            side: side.into(),
            machine,
            snapshots,
            tracker: None,
            probe: None,
            delete_disk: None,
            disks: BTreeMap::new(),
        }
    }

    /// As the operator wrote it.
    ///
    /// # Errors
    /// `Usage` for a format that is none.
    pub fn of(spec: &PairSpec) -> Result<Self> {
        let machine = machine_of_spec(&spec.machine);
        let snapshots = spec.snapshots.as_ref().map(snapshots_of_spec);
        let mut pair = Self::new(&spec.side, machine, snapshots);
        pair.tracker = spec.tracker.map(tracker_of_spec);
        pair.probe.clone_from(&spec.probe);
        pair.delete_disk.clone_from(&spec.delete_disk);
        for disk in &spec.disks {
            pair = pair.disk(&disk.id, &disk.path, disk.open()?);
        }
        Ok(pair)
    }

    /// The same with something that knows what changed since a snapshot.
    #[must_use]
    pub fn tracked_by(self, tracker: Arc<dyn ChangeTracker>) -> Self {
        Self {
            tracker: Some(tracker),
            ..self
        }
    }

    /// The same with one more disk.
    #[must_use]
    pub fn disk(mut self, id: &str, path: &Path, open: OpenOptions) -> Self {
        let path = path.to_owned();
        self.disks.insert(id.to_owned(), Disk { path, open });
        self
    }
}

/// A pair that is served: with its fence, and what jobs made of it.
#[derive(Debug)]
pub(super) struct ServedPair {
    name: String,
    pub(super) pair: Pair,
    /// What is kept of it.
    pub(super) directory: PathBuf,
    fence: Mutex<Fence>,
    /// Held while something is asked of the machine or its disks: one thing at a time.
    turn: Mutex<()>,
    /// Where the snapshots are that jobs asked for and have not let go.
    frozen: Mutex<BTreeMap<(String, SnapshotId), PathBuf>>,
    /// Cloned by whoever reads a disk that the machine runs from.
    readers: Arc<()>,
    /// Roots of maps of which not all was read, by what they are of.
    pub(super) hinted: Mutex<BTreeMap<Hinted, Digest>>,
    /// Cloned by sessions that leave a map.
    pub(super) writers: Arc<()>,
    /// Epoch in which the machine was deleted, 0 before: who is gone cannot be asked for its power.
    deleted_in: AtomicU64,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    pub(super) job: String,
    /// The epoch that he is in; 0: he only looks.
    pub(super) epoch: u64,
    /// The job, and what tells it from another of its name.
    pub(super) holder: String,
}

/// While this lives the machine is not started: a disk of its is being read.
#[derive(Debug)]
pub(super) struct Lease {
    _reader: Arc<()>,
}

impl ServedPair {
    /// Serves a pair, whose fence is kept below `state`.
    ///
    /// # Errors
    /// `Usage` for names that are none; `InUse` while another agent serves it, or a job of this
    /// host moves it; `Refused` where others can write to `state`, and while a job of the pair is
    /// not over here; `Damaged`, `Io`.
    pub(super) fn open(name: &str, pair: Pair, state: &Path) -> Result<Self> {
        for name in [name, &pair.side]
            .into_iter()
            .chain(pair.disks.keys().map(String::as_str))
        {
            if !is_name(name) {
                let shown = crate::error::one_line(name);
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("`{shown}` is no name of a pair, side or disk"),
                ));
            }
        }
        if pair.disks.len() > usize::from(CONTROL_DISK_COUNT_MAX) {
            let message = format!("pair `{name}` has more than {CONTROL_DISK_COUNT_MAX} disks");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        // Where jobs of this host keep who is in charge, too: one fence for both.
        let jobs = Jobs::below(state);
        jobs.make_pairs()?;
        let before = state.join("control").join(name);
        if before.exists() {
            let message = "who is in charge was kept here by an earlier build: move it to `pairs`, \
                           unless something is there that is newer";
            return Err(Error::new(ErrorKind::Refused, message).path(&before));
        }
        let directory = jobs.pair(name);
        // Held from here on: no job of the pair begins behind the look at those that are there.
        let fence = Fence::open(&directory)?;
        jobs.refuse_unfinished_of(name)?;
        Ok(Self {
            name: name.to_owned(),
            pair,
            fence: Mutex::new(fence),
            directory,
            turn: Mutex::default(),
            frozen: Mutex::default(),
            readers: Arc::default(),
            hinted: Mutex::default(),
            writers: Arc::default(),
            deleted_in: AtomicU64::default(),
        })
    }

    /// What a visitor is told at first.
    pub(super) fn info(&self) -> ControlInfo {
        let fence = lock(&self.fence);
        ControlInfo {
            side: self.pair.side.clone(),
            epoch: fence.number(),
            authority: fence.now().and_then(|now| now.authority.clone()),
            is_tracked: self.pair.tracker.is_some(),
            disks: self.pair.disks.keys().cloned().collect(),
        }
    }

    /// Does what is asked, and answers.
    ///
    /// # Errors
    /// `Refused` for a visitor of an epoch that is over, or of another job, and where the fence
    /// says no; `NotGranted` for a disk that the pair has not; `InUse`; those of machine and
    /// snapshots.
    pub(super) fn answer(
        &self,
        visitor: &Visitor,
        what: &ControlTask,
        step: &Step<'_>,
    ) -> Result<ControlAnswer> {
        // Held to the end: nobody begins an epoch between a check and what it allows.
        let turn = self.take_turn(step)?;
        if let ControlTask::Advance { epoch, authority } = what {
            return self.advance(visitor, *epoch, authority.as_deref());
        }
        self.admit(visitor, what)?;
        if let ControlTask::HoldAgainst { disk, root } = what {
            let lease = self.lease(step)?;
            // It may take days, and the machine stays off without it.
            drop(turn);
            return self.hold_against(disk, root, lease, step);
        }
        let machine = self.pair.machine.as_ref();
        match what {
            ControlTask::Power => machine.power(step).map(power_answer),
            ControlTask::ShutDown { limit_ms } => machine
                .shut_down(step, Duration::from_millis(*limit_ms))
                .map(power_answer),
            ControlTask::PowerOff => machine.power_off(step).map(done),
            ControlTask::Start { epoch } => self.start(*epoch, step).map(done),
            ControlTask::Delete => self.delete_machine(step).map(done),
            ControlTask::Snapshot { disk, snapshot } => self
                .freeze(disk, &SnapshotId::new(&visitor.job, snapshot)?, step)
                .map(|name| ControlAnswer::Granted { name }),
            ControlTask::Release { disk, snapshot } => self
                .thaw(disk, &SnapshotId::new(&visitor.job, snapshot)?, step)
                .map(done),
            ControlTask::List { disk } => self.list(disk, &visitor.job, step),
            ControlTask::ProveQuiet { disk } => {
                let disk = self.disk(disk)?;
                let text = prove_quiet(&disk.path, &disk.open)?;
                Ok(ControlAnswer::Identity { text })
            }
            ControlTask::Hint {
                disk,
                since,
                now,
                root,
            } => self.hint(visitor, disk, (since, now.as_deref()), root, step),
            ControlTask::ForgetMaps { disk } => self.forget_maps(disk),
            ControlTask::KeepMap {
                disk,
                root,
                identity,
            } => self.keep_map(disk, root, identity),
            ControlTask::DeleteDisk { disk } => self.delete(disk, step).map(done),
            ControlTask::Advance { .. } | ControlTask::HoldAgainst { .. } => {
                unreachable!("answered before")
            }
        }
    }

    /// What can be read under a name of this pair, without the pair's own: `DISK`, `DISK@SNAPSHOT`.
    ///
    /// # Errors
    /// `NotGranted` for what does not exist now; `InUse` for a disk that the machine may write to;
    /// `Refused` for one that was handed over.
    pub(super) fn grant(&self, name: &str, step: &Step<'_>) -> Result<OpenGrant> {
        match name.split_once('@') {
            Some((disk, snapshot)) => self.frozen_grant(disk, snapshot),
            None => self.live_grant(name, step),
        }
    }

    fn frozen_grant(&self, disk: &str, snapshot: &str) -> Result<OpenGrant> {
        let open = self.disk(disk)?.open.clone();
        let (id, path) = self.frozen(disk, snapshot)?;
        Ok(OpenGrant {
            grant: read_only(&path, open),
            _lease: None,
            maps: Some(self.maps(disk, Some(&id))),
        })
    }

    /// A snapshot as it is called in full, and where it is.
    pub(super) fn frozen(&self, disk: &str, snapshot: &str) -> Result<(SnapshotId, PathBuf)> {
        let frozen = lock(&self.frozen);
        let found = frozen
            .iter()
            .find(|((of, id), _)| of == disk && id.to_string() == snapshot);
        let ((_, id), path) = found.ok_or_else(|| not_granted(snapshot))?;
        Ok((id.clone(), path.clone()))
    }

    fn live_grant(&self, id: &str, step: &Step<'_>) -> Result<OpenGrant> {
        let disk = self.disk(id)?;
        let _turn = self.take_turn(step)?;
        let authority = lock(&self.fence)
            .now()
            .and_then(|now| now.authority.clone());
        if authority.is_some_and(|side| side != self.pair.side) {
            let message = "the disk's machine was handed over: nobody has to read it";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        Ok(OpenGrant {
            grant: read_only(&disk.path, disk.open.clone()),
            _lease: Some(self.lease(step)?),
            maps: Some(self.maps(id, None)),
        })
    }

    /// Keeps the machine off, for as long as it is held. Asked for in turn.
    ///
    /// # Errors
    /// `InUse` while it is on.
    pub(super) fn lease(&self, step: &Step<'_>) -> Result<Lease> {
        if !self.is_deleted() && self.pair.machine.power(step)? == Power::On {
            let message = "the disk's machine is on: only snapshots of it can be read";
            return Err(Error::new(ErrorKind::InUse, message));
        }
        Ok(Lease {
            _reader: self.readers.clone(),
        })
    }

    pub(super) fn disk(&self, id: &str) -> Result<&Disk> {
        self.pair.disks.get(id).ok_or_else(|| not_granted(id))
    }

    /// Whether the visitor may ask for that now.
    fn admit(&self, visitor: &Visitor, what: &ControlTask) -> Result<()> {
        let only_looks = matches!(
            what,
            ControlTask::Power
                | ControlTask::Snapshot { .. }
                | ControlTask::Release { .. }
                | ControlTask::List { .. }
        );
        // A job that was overtaken takes its own snapshots with it. Of a name that the present one
        // has, too, they could be the present one's.
        let tidies = matches!(what, ControlTask::Release { .. });
        let fence = lock(&self.fence);
        let message = match fence.now() {
            _ if visitor.epoch == 0 && only_looks => return Ok(()),
            Some(now) if tidies && now.job_name() != visitor.job => return Ok(()),
            _ if visitor.epoch == 0 => "a visitor without an epoch only looks".to_owned(),
            Some(now) if now.epoch == visitor.epoch && now.job == visitor.holder => return Ok(()),
            Some(now) => format!(
                "pair `{}` is in epoch {} of job `{}`: epoch {} of job `{}` is not the present one",
                self.name,
                now.epoch,
                now.job_name(),
                visitor.epoch,
                visitor.job
            ),
            None => format!("pair `{}` has no epoch yet", self.name),
        };
        Err(Error::new(ErrorKind::Refused, message))
    }

    /// Begins an epoch. The job of the present one may do so at any time, another one only while
    /// this side is in charge: in between the machine is on its way, and its own job brings it on.
    fn advance(
        &self,
        visitor: &Visitor,
        epoch: u64,
        authority: Option<&str>,
    ) -> Result<ControlAnswer> {
        let mut fence = lock(&self.fence);
        let is_free = |now: &Epoch| {
            let is_own = now.job == visitor.holder;
            is_own || now.authority.as_deref() == Some(self.pair.side.as_str())
        };
        if let Some(now) = fence.now().filter(|now| !is_free(now)) {
            let message = format!(
                "pair `{}` is in the hands of job `{}`, in epoch {}",
                self.name,
                now.job_name(),
                now.epoch
            );
            return Err(Error::new(ErrorKind::Refused, message));
        }
        refuse_far_ahead(fence.number(), epoch)?;
        fence.advance(epoch, authority, &visitor.holder)?;
        Ok(ControlAnswer::Done)
    }

    fn start(&self, epoch: u64, step: &Step<'_>) -> Result<()> {
        lock(&self.fence).check_start(&self.pair.side, epoch)?;
        let until = Instant::now() + LET_GO_MAX;
        while Arc::strong_count(&self.readers) > 1 {
            if Instant::now() > until {
                let message = "a disk of the machine is still being read";
                return Err(Error::new(ErrorKind::InUse, message));
            }
            step.wait(POLL)?;
        }
        // From now on the disks are not what any map says.
        lock(&self.hinted).retain(|(_, snapshot), _| snapshot.is_some());
        self.pair.machine.start(step)?;
        match &self.pair.probe {
            Some(probe) => probe
                .run(step, &[("FAILBACK_SIDE", &self.pair.side)])
                .map(drop),
            None => Ok(()),
        }
    }

    /// Whether this side is in charge, as it is before the first job.
    pub(super) fn is_in_charge(&self) -> bool {
        let fence = lock(&self.fence);
        let now = fence.now();
        now.is_none_or(|now| now.authority.as_deref() == Some(self.pair.side.as_str()))
    }

    /// Deletes a machine that was handed over.
    fn delete_machine(&self, step: &Step<'_>) -> Result<()> {
        self.refuse_while_in_charge()?;
        if !self.is_deleted() {
            self.pair.machine.delete(step)?;
            let epoch = lock(&self.fence).number();
            self.deleted_in.store(epoch, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether the machine was deleted in the present epoch, in which nobody starts it here.
    fn is_deleted(&self) -> bool {
        let deleted_in = self.deleted_in.load(Ordering::SeqCst);
        deleted_in > 0 && deleted_in == lock(&self.fence).number()
    }

    /// Deletes a disk of a machine that was handed over.
    fn delete(&self, disk: &str, step: &Step<'_>) -> Result<()> {
        let image = &self.disk(disk)?.path;
        let _off = self.lease(step)?;
        self.refuse_while_in_charge()?;
        delete_disk(self.pair.delete_disk.as_ref(), disk, image, step)
    }

    fn refuse_while_in_charge(&self) -> Result<()> {
        if self.is_in_charge() {
            let message = "this side is in charge: neither its machine nor its disks are deleted";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        Ok(())
    }

    fn freeze(&self, disk: &str, id: &SnapshotId, step: &Step<'_>) -> Result<String> {
        let name = format!("{}/{disk}@{id}", self.name);
        if name.len() > NAME_LEN_MAX {
            let message = "the names of pair, disk, job and snapshot are too long together";
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let image = &self.disk(disk)?.path;
        let Some(provider) = &self.pair.snapshots else {
            let message = "the source's disks cannot be frozen: no snapshots are configured";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let path = provider.create(image, id, step)?;
        lock(&self.frozen).insert((disk.to_owned(), id.clone()), path);
        Ok(name)
    }

    fn thaw(&self, disk: &str, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        let image = &self.disk(disk)?.path;
        // First: what is about to go is not opened any more.
        let frozen = (disk.to_owned(), id.clone());
        lock(&self.frozen).remove(&frozen);
        lock(&self.hinted).remove(&(frozen.0, Some(frozen.1)));
        match &self.pair.snapshots {
            Some(provider) => provider.release(image, id, step),
            None => Ok(()),
        }
    }

    fn list(&self, disk: &str, job: &str, step: &Step<'_>) -> Result<ControlAnswer> {
        let image = &self.disk(disk)?.path;
        let ids = match &self.pair.snapshots {
            Some(provider) => provider.list(image, job, step)?,
            None => Vec::new(),
        };
        let names = ids.iter().map(|id| id.name().to_owned());
        let names = names.take(CONTROL_SNAPSHOT_COUNT_MAX.into()).collect();
        Ok(ControlAnswer::Snapshots { names })
    }

    /// Waits until nothing else is asked of the pair. What ran for a link that broke ends within
    /// seconds.
    fn take_turn(&self, step: &Step<'_>) -> Result<MutexGuard<'_, ()>> {
        let until = Instant::now() + TURN_MAX;
        loop {
            match self.turn.try_lock() {
                Ok(turn) => return Ok(turn),
                // It guards no data that a panic could have left half done.
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            if Instant::now() > until {
                let message = format!("something else is being asked of pair `{}`", self.name);
                return Err(Error::new(ErrorKind::InUse, message));
            }
            step.wait(POLL)?;
        }
    }
}

fn read_only(path: &Path, open: OpenOptions) -> Grant {
    Grant {
        path: path.to_owned(),
        is_writable: false,
        create_max: None,
        open,
        state: None,
    }
}

fn power_answer(power: Power) -> ControlAnswer {
    ControlAnswer::Power(match power {
        Power::On => ControlPower::On,
        Power::Off => ControlPower::Off,
    })
}

fn done((): ()) -> ControlAnswer {
    ControlAnswer::Done
}

fn not_granted(name: &str) -> Error {
    let shown = crate::error::one_line(name);
    let message = format!("the pair has no `{shown}`");
    Error::new(ErrorKind::NotGranted, message)
}

// A panic while it is held would have ended the thread before it could store anything half.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a wait looks whether it is over.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// How long one question waits for another.
const TURN_MAX: Duration = Duration::from_secs(60);
/// How long a start waits for readers: their sessions are over for the job, and end soon here.
pub(super) const LET_GO_MAX: Duration = Duration::from_secs(10);
