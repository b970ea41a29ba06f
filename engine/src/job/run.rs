//! A job, from wherever it is to where it waits for somebody or is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::charge::take_charge;
use super::fence::{Charge, Fence};
use super::history::History;
use super::host::SourceHost;
use super::journal::{Begun, Fact, JobJournal, Record, now_ms};
use super::overlap::refuse_overlap;
use super::phase::{Ask, Outcome, Phase, Position};
use super::place::{Jobs, asks_left, forget_ask, forget_pairs, note_pair};
use super::recording::{self, Recording};
use super::report::{JobReport, moment};
use super::retry::{self, Clock, HostClock};
use super::spec::JobSpec;
use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::machine::Machine;
use crate::state::{Barriers, HostFolder, Owner};
use crate::step::Step;

/// What a job needs of both sides.
#[derive(Clone, Debug)]
pub struct Sides {
    /// The side that is read.
    pub source: Arc<dyn SourceHost>,
    /// The machine that is started in the end.
    pub target: Arc<dyn Machine>,
}

/// How long [`Job::run`] stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stay {
    /// It returns when the job waits to be completed.
    pub leaves_waiting: bool,
    /// A job that stands for a reason that may pass is resumed after 1, 2, 4, 8 and 10 minutes, and
    /// then every 30.
    pub retries: bool,
    /// The same, only while the source is stopped for the job and the target was not started: the
    /// machine is off on both sides.
    pub retries_while_off: bool,
}

/// A failback job that this process has, and nobody else.
#[derive(Debug)]
pub struct Job {
    pub(super) directory: std::path::PathBuf,
    // Locked for as long as this lives.
    pub(super) folder: HostFolder,
    pub(super) journal: JobJournal,
    pub(super) fence: Fence,
    pub(super) sides: Sides,
    clock: Arc<dyn Clock>,
}

/// What the steps of one run are not told again.
pub(super) struct Run<'a> {
    pub(super) observer: &'a dyn Observer,
    /// Ends the step that runs.
    pub(super) cancel: &'a CancelToken,
}

impl<'a> Run<'a> {
    pub(super) fn step(&self, job: &'a str, name: &'a str) -> Step<'_> {
        Step {
            job,
            name,
            observer: self.observer,
            cancel: self.cancel,
        }
    }
}

/// How a phase went.
pub(super) enum Went {
    /// It happened, and there is this to know of it.
    On(Outcome, Option<Fact>),
    /// Nothing to do now; look again.
    Waits,
}

impl Job {
    /// Begins a job, or takes up the one of that name that was begun with the same `key`, also when
    /// it is over. One that is refused leaves nothing behind.
    ///
    /// # Errors
    /// `Usage` for a definition that makes no sense; `InUse` while a process has the job or its
    /// pair, or begins another; `Refused` where a job of that name, of that pair, or of one of its
    /// disks is not over, where the job of that key was begun by another definition, and where
    /// others can write to what is kept; `Io`.
    pub fn start(jobs: &Jobs, spec: JobSpec, key: Option<&str>, sides: Sides) -> Result<Self> {
        spec.check()?;
        // No other begins between what is looked at here and what it allows.
        let _turn = jobs.take_turn()?;
        let directory = jobs.directory(&spec.name)?;
        let barriers = Barriers::new();
        let mut folder = None;
        if directory.exists() {
            let there = lock_job(&directory, &spec.name)?;
            if let Some(journal) = JobJournal::open(&there, barriers)? {
                let begun = journal.begun();
                if key.is_some() && begun.key.as_deref() == key {
                    refuse_changed(begun, &spec)?;
                    let fence = Fence::open(&jobs.pair(spec.pair_name()))?;
                    return Ok(Self::of(directory, there, journal, fence, sides));
                }
                refuse_unfinished(&journal, &spec)?;
            }
            folder = Some(there);
        }
        refuse_overlap(jobs, &spec)?;
        let mut fence = Fence::open(&jobs.pair(spec.pair_name()))?;
        take_charge(&mut fence, &spec)?;
        let is_new = folder.is_none();
        let began = Self::begin((&directory, folder), &fence, key, spec);
        if began.is_err() && is_new {
            forget_begun(&directory);
        }
        let (folder, journal) = began?;
        Ok(Self::of(directory, folder, journal, fence, sides))
    }

    fn begin(
        (directory, folder): (&std::path::Path, Option<HostFolder>),
        fence: &Fence,
        key: Option<&str>,
        spec: JobSpec,
    ) -> Result<(HostFolder, JobJournal)> {
        let folder = match folder {
            Some(folder) => folder,
            None => lock_job(directory, &spec.name)?,
        };
        // What was asked of the job before is not asked of this one.
        asks_left(directory).try_for_each(|ask| forget_ask(directory, ask))?;
        let pair = spec.pair_name().to_owned();
        note_pair(directory, &pair)?;
        let begun = Begun {
            key: key.map(str::to_owned),
            epoch: fence.number(),
            token: uuid::Uuid::new_v4().into_bytes(),
            spec,
        };
        // Before the journal, with which its name becomes durable.
        owner_of(&begun, directory).open(&folder)?;
        let journal = JobJournal::begin(&folder, Barriers::new(), begun)?;
        forget_pairs(directory, Some(&pair));
        recording::forget(directory);
        Ok((folder, journal))
    }

    /// Takes up a job that is there.
    ///
    /// # Errors
    /// `Refused` where there is none; `InUse` while a process has it; `Damaged`, `Io`.
    pub fn open(jobs: &Jobs, name: &str, sides: Sides) -> Result<Self> {
        let directory = jobs.directory(name)?;
        let missing = || {
            let message = format!("no job is called `{name}`");
            Error::new(ErrorKind::Refused, message)
        };
        if !directory.exists() {
            return Err(missing());
        }
        jobs.refuse_foreign()?;
        let folder = lock_job(&directory, name)?;
        let journal = JobJournal::open(&folder, Barriers::new())?.ok_or_else(missing)?;
        let fence = Fence::open(&jobs.pair(journal.begun().spec.pair_name()))?;
        Ok(Self::of(directory, folder, journal, fence, sides))
    }

    fn of(
        directory: std::path::PathBuf,
        folder: HostFolder,
        journal: JobJournal,
        fence: Fence,
        sides: Sides,
    ) -> Self {
        let job = Self {
            directory,
            folder,
            journal,
            fence,
            sides,
            clock: Arc::new(HostClock),
        };
        let begun = job.journal.begun().epoch;
        let epoch = job.history().epoch().map_or(begun, |(epoch, _)| epoch);
        job.act_in(epoch);
        job
    }

    /// In whose name the targets are changed.
    pub(super) fn owner(&self) -> Owner {
        owner_of(self.journal.begun(), &self.directory)
    }

    pub(super) fn act_in(&self, epoch: u64) {
        let token = self.journal.begun().token;
        self.sides.source.act_for(Charge { epoch, token });
    }

    /// From now on a job that stands waits by `clock`.
    pub fn wait_by(&mut self, clock: Arc<dyn Clock>) {
        self.clock = clock;
    }

    /// From now on `hears` is called with each record of the journal once it is durable, on the
    /// thread that runs the job.
    pub fn on_record(&mut self, hears: Arc<dyn Fn(&Record) + Send + Sync>) {
        self.journal.tell(hears);
    }

    /// What it is and how far.
    #[must_use]
    pub fn report(&self) -> JobReport {
        JobReport::of(self.journal.records())
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        self.journal.position()
    }

    /// Asks the job for something, durably. It is done by the next [`run`](Self::run).
    ///
    /// # Errors
    /// `Refused` where that cannot be asked for now; `Io`.
    pub fn ask(&mut self, ask: Ask) -> Result<()> {
        let at = self.position();
        let next = self.history().asked(ask)?;
        // The last word counts, and the same one twice is one.
        let history = self.history();
        let is_same = history.is_to_hold() == (ask == Ask::Hold);
        if ask.completes() && history.is_completing() && is_same {
            return Ok(());
        }
        // Completing waits for its phase; everything else changes where the job is.
        let next = if ask.completes() { at } else { next };
        self.journal.go_to(next, Some(Fact::Asked { ask }))
    }

    /// Goes on until the job is over, stands because something failed, waits to be accepted with no
    /// deadline, or, where `stay` says so, waits to be completed. Asks of other processes are heard
    /// meanwhile.
    ///
    /// # Errors
    /// `Cancelled` when `cancel` ended it, which leaves the job where it is, to be taken up again;
    /// `Io` when the job's own journal cannot be written. What fails in a phase is no error here:
    /// the job is suspended, and says why.
    pub fn run(&mut self, stay: Stay, observer: &dyn Observer, cancel: &CancelToken) -> Result<()> {
        let recording = Recording::open(&self.directory, observer);
        let observer: &dyn Observer = &recording;
        self.keep_targets(observer);
        let mut told = None;
        loop {
            self.hear_asks(observer)?;
            let at = self.position();
            if told.replace(at) != Some(at) {
                observer.event(&Event::JobPhase {
                    job: self.history().spec().name.clone(),
                    phase: at.phase.name(),
                    suspended: at.is_suspended,
                });
            }
            let retries = retry::is_wanted(self.history(), stay);
            let goes_on = retries || self.undo_deadline().is_some();
            if at.phase.is_end() || (at.is_suspended && !goes_on) || self.rests(stay) {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            if at.is_suspended {
                if self.is_undo_due() {
                    self.ask(Ask::Undo)?;
                } else if retries {
                    self.retry(observer)?;
                } else {
                    self.clock.pause(POLL);
                }
                continue;
            }
            let stop = CancelToken::new();
            let went = self.while_asks_are_heard(&stop, cancel, |job, stop| {
                let run = Run {
                    observer,
                    cancel: stop,
                };
                job.step(at.phase, &run)
            });
            match went {
                Ok(Went::On(outcome, fact)) => {
                    // The last moment in which a job can be cancelled.
                    if at.phase == Phase::Sealing {
                        self.hear_asks(observer)?;
                        if self.position() != at {
                            continue;
                        }
                    }
                    let next = at.next(outcome).expect("a phase gives outcomes of its own");
                    self.journal.go_to(next, fact)?;
                }
                Ok(Went::Waits) => std::thread::sleep(IDLE_POLL),
                // Somebody wants something else; the job stays where it is until that is heard.
                Err(error) if error.kind() == ErrorKind::Cancelled && stop.is_cancelled() => {}
                Err(error) => self.suspend(&error, observer)?,
            }
        }
    }

    /// Sees to it that the targets are known to be this job's: one that an older build began, or
    /// whose directory was moved, has not said so.
    fn keep_targets(&self, observer: &dyn Observer) {
        let phase = self.position().phase;
        if phase <= Phase::Preflight || phase.is_end() {
            return;
        }
        let owner = self.owner();
        let targets = self.history().spec().disks.iter().map(|disk| &disk.target);
        let kept = owner.open(&self.folder).and_then(|()| {
            targets
                .into_iter()
                .try_for_each(|target| owner.keep(target))
        });
        if let Err(error) = kept {
            observer.event(&Event::Warning {
                message: format!(
                    "nobody is kept from changing a target by hand: {}",
                    error.chain()
                ),
            });
        }
    }

    /// When the job goes back by itself, also where it stands: a policy that says so has no better
    /// reason than a target that is not right.
    fn undo_deadline(&self) -> Option<u64> {
        match self.history().deadline() {
            Some((at_ms, Ask::Undo)) if self.position().phase == Phase::CommitPending => {
                Some(at_ms)
            }
            _ => None,
        }
    }

    /// Whether that is now.
    pub(super) fn is_undo_due(&self) -> bool {
        self.undo_deadline()
            .is_some_and(|at_ms| left_ms(at_ms) == 0)
    }

    /// Resumes a job that stands when it is time to, and waits a moment until then.
    fn retry(&mut self, observer: &dyn Observer) -> Result<()> {
        match retry::next(self.history()) {
            Some(retry::Next::Attempt(attempt)) => {
                let wait = u64::try_from(retry::delay(attempt).as_millis()).unwrap_or(u64::MAX);
                let at_ms = self.clock.now_ms().saturating_add(wait);
                observer.event(&Event::Warning {
                    message: format!("job tries again at {}", moment(at_ms)),
                });
                self.journal.note(Fact::Retry { at_ms, attempt })
            }
            Some(retry::Next::At(at_ms)) if self.clock.now_ms() >= at_ms => self.ask(Ask::Resume),
            _ => {
                self.clock.pause(POLL);
                Ok(())
            }
        }
    }

    fn suspend(&mut self, error: &Error, observer: &dyn Observer) -> Result<()> {
        let at = self.position();
        let next = at.next(Outcome::Failed).expect("it was not suspended");
        let kind = (error.kind(), error.is_transient());
        let fact = failed(observer, kind, error.chain());
        self.journal.go_to(next, Some(fact))
    }

    /// Takes what other processes asked for into the journal. What cannot be asked now is dropped.
    fn hear_asks(&mut self, observer: &dyn Observer) -> Result<()> {
        let directory = self.directory.clone();
        while let Some(ask) = asks_left(&directory).next() {
            if let Err(refused) = self.ask(ask) {
                if refused.kind() != ErrorKind::Refused {
                    return Err(refused);
                }
                observer.event(&Event::Warning {
                    message: refused.chain(),
                });
            }
            forget_ask(&directory, ask)?;
        }
        Ok(())
    }

    /// Runs a step, and ends it when the caller cancels, or when somebody asks for what does not
    /// wait for its end.
    fn while_asks_are_heard<T>(
        &mut self,
        stop: &CancelToken,
        cancel: &CancelToken,
        step: impl FnOnce(&mut Self, &CancelToken) -> T,
    ) -> T {
        let directory = self.directory.clone();
        // Completing waits for the end of a pass. What would be refused ends nothing: the step
        // would begin again for it.
        let mut heard = Ask::ALL.to_vec();
        heard.retain(|ask| !ask.completes() && self.history().asked(*ask).is_ok());
        // Going back by itself waits for no reading either.
        let undo_at = self.undo_deadline();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !is_done.load(Ordering::SeqCst) {
                    let is_wanted = asks_left(&directory).any(|ask| heard.contains(&ask))
                        || undo_at.is_some_and(|at_ms| left_ms(at_ms) == 0);
                    if cancel.is_cancelled() || is_wanted {
                        stop.cancel();
                    }
                    std::thread::park_timeout(POLL);
                }
            });
            // Also when the step panics, which is passed on.
            let _over = Over {
                flag: &is_done,
                watcher: watcher.thread(),
            };
            step(self, stop)
        })
    }

    /// Whether nothing is to be done until somebody asks.
    fn rests(&self, stay: Stay) -> bool {
        let history = self.history();
        match self.position().phase {
            Phase::CommitPending => {
                !self.has_unread() && history.deadline().is_none() && !self.wants_deadline()
            }
            Phase::Waiting => {
                stay.leaves_waiting
                    && !history.is_completing()
                    && !self.wants_pass()
                    && history.spec().policy.complete == super::spec::Complete::Manual
            }
            // Nothing is lost by leaving: whoever asks goes on.
            Phase::StartingTarget => history.is_held(),
            _ => false,
        }
    }

    fn step(&mut self, phase: Phase, run: &Run<'_>) -> Result<Went> {
        let is_stopped = matches!(
            phase,
            Phase::FinalDelta | Phase::FullDownload | Phase::Sealing
        );
        if is_stopped && self.history().is_giving_back() {
            return self.go_on_giving_back(run);
        }
        match phase {
            Phase::Created => Ok(Went::On(Outcome::Done, None)),
            Phase::Preflight => self.preflight(run),
            Phase::Planning => self.planning(run),
            Phase::Presync => self.presync(run),
            Phase::Waiting => self.waiting(),
            Phase::StoppingSource => self.stop_source(run),
            Phase::FinalDelta | Phase::FullDownload => {
                let copied = self.copy_stopped(run);
                copied.or_else(|error| self.restart_source(error, run))
            }
            Phase::Sealing => {
                let sealed = self.seal(run);
                sealed.or_else(|error| self.restart_source(error, run))
            }
            Phase::Applying => self.apply(run),
            Phase::Verifying => self.verify(),
            Phase::StartingTarget => self.start_target(run),
            Phase::CommitPending => self.pend(run),
            Phase::Releasing => self.release(run),
            Phase::Undoing => self.undo(run),
            Phase::Cancelling => self.cancel(run),
            Phase::Finished | Phase::Undone | Phase::Cancelled => unreachable!("looked at before"),
        }
    }

    pub(super) fn history(&self) -> History<'_> {
        History(self.journal.records())
    }

    /// The definition, apart from the journal that is written to meanwhile.
    pub(super) fn spec(&self) -> JobSpec {
        self.history().spec().clone()
    }
}

/// Tells a watching thread, when it goes, that nothing is left to watch.
struct Over<'a> {
    flag: &'a AtomicBool,
    watcher: &'a std::thread::Thread,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::SeqCst);
        self.watcher.unpark();
    }
}

fn owner_of(begun: &Begun, directory: &std::path::Path) -> Owner {
    Owner {
        job: begun.spec.name.clone(),
        directory: directory.to_owned(),
        token: uuid::Uuid::from_bytes(begun.token).to_string(),
    }
}

/// The directory of a job, for this process alone.
fn lock_job(directory: &std::path::Path, name: &str) -> Result<HostFolder> {
    HostFolder::lock_for(directory, &format!("works on job `{name}`"))
}

fn refuse_changed(begun: &Begun, spec: &JobSpec) -> Result<()> {
    if begun.spec == *spec {
        return Ok(());
    }
    let message = format!(
        "job `{}` was begun with this key by another definition: another job needs another key",
        spec.name
    );
    Err(Error::new(ErrorKind::Refused, message))
}

fn refuse_unfinished(journal: &JobJournal, spec: &JobSpec) -> Result<()> {
    let phase = journal.position().phase;
    match phase.is_end() {
        true => Ok(()),
        false => {
            let name = &journal.begun().spec.name;
            let phase = phase.name();
            let next = match journal.begun().spec == *spec {
                true => "`resume` takes it up",
                false => {
                    "by another definition than this one: `resume` goes on by that, `cancel` or \
                     `undo` makes room"
                }
            };
            let message = format!("job `{name}` is there already, and {phase}; {next}");
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// Removes what a job left that never began; what else is there stays.
fn forget_begun(directory: &std::path::Path) {
    forget_pairs(directory, None);
    Owner::forget(directory);
    for name in ["job.new", "lock"] {
        drop(std::fs::remove_file(directory.join(name)));
    }
    drop(std::fs::remove_dir(directory));
}

/// What is noted of a job that stands, which is told as well.
pub(super) fn failed(
    observer: &dyn Observer,
    (kind, is_transient): (ErrorKind, bool),
    message: String,
) -> Fact {
    observer.event(&Event::Warning {
        message: format!("job suspended: {message}"),
    });
    Fact::Failed {
        kind: kind.name().to_owned(),
        message,
        is_transient,
    }
}

/// Milliseconds from now until `at_ms`, 0 when that is over.
pub(super) fn left_ms(at_ms: u64) -> u64 {
    at_ms.saturating_sub(now_ms())
}

/// How often a wait looks around.
const POLL: Duration = Duration::from_millis(50);
/// The same of a job that waits, maybe for weeks.
const IDLE_POLL: Duration = Duration::from_millis(250);
