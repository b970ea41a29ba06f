//! One sync of both agents, as the engine's own operations run it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use failback_engine::commit::{Staging, Unfinished};
use failback_engine::disk::TargetAccess;
use failback_engine::hash::HashKind;
use failback_engine::plan::DiskRates;
use failback_engine::schedule::{Dice, scope, sleep};
use failback_engine::state::{Barrier, Barriers, Begun, Container, Entry, Journal, Word};
use failback_engine::sync::{
    Changes, InPlaceChanges, RegionPolicy, Session, SessionLink, SessionOptions, Task, Until,
    run_source, run_target, source_mark,
};
use failback_engine::transport::link::{IDLE_LIMIT, Link};
use failback_engine::transport::{Apply, Compress, SourceEnd, TargetResult, VerifyLevel, split};
use failback_engine::units::BlockSize;
use failback_engine::{Abort, CancelToken, Error, ErrorKind, Result};

use crate::content::{BLOCK, root_of};
use crate::disk::{Access, Again, Format, SourceDisk};
use crate::fault::Faults;
use crate::link;
use crate::world::Host;

/// Small windows, so that small syncs have several.
pub(crate) const WINDOW: u64 = 192 << 10;

/// Where a target is, and how it is treated.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) format: Format,
    pub(crate) barriers: Barriers,
    /// Planted: the target's disk believes what it wrote.
    pub(crate) is_gullible: bool,
}

/// How a sync is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) task: Task,
    pub(crate) hash: HashKind,
    pub(crate) verify: VerifyLevel,
    pub(crate) apply: Apply,
    pub(crate) compress: Compress,
    pub(crate) threads: usize,
    pub(crate) sub_hash_seed: u64,
}

/// What each side came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) source: Result<(SourceEnd, TargetResult)>,
    pub(crate) target: Result<(SourceEnd, TargetResult)>,
}

impl Place {
    pub(crate) fn journal(&self) -> Result<Option<Journal>> {
        Journal::open(&self.host, self.barriers)
    }

    /// What a sync does before anything else: what was left half done is brought to its end.
    pub(crate) fn finish_unfinished(&self) -> Result<()> {
        let Some(journal) = self.journal()? else {
            return Ok(());
        };
        if journal.is_mixed() {
            self.host.forget_cache();
        }
        let is_half_done = match journal.word() {
            Word::Committing if journal.begun().in_place => false,
            Word::NewVerified => !journal.begun().keeps_undo || journal.has_broken_end(),
            _ if journal.waits_to_be_accepted() => false,
            Word::Committing | Word::NewUnverified | Word::RollingBack => true,
            _ => false,
        };
        match is_half_done {
            true => self
                .end(journal, |job, journal| {
                    job.finish(journal, &CancelToken::new()).map(|end| end.0)
                })
                .map(drop),
            false => Ok(()),
        }
    }

    /// Brings what is left of a job to an end.
    pub(crate) fn end(
        &self,
        journal: Journal,
        work: impl FnOnce(&Unfinished<'_>, Journal) -> Result<Word>,
    ) -> Result<Word> {
        let reopen = Again {
            host: self.host.clone(),
            format: self.format,
            is_gullible: self.is_gullible,
        };
        let unfinished = Unfinished {
            folder: &self.host,
            reopen: &reopen,
            barriers: self.barriers,
        };
        work(&unfinished, journal)
    }

    fn begun(&self, manner: &Manner, session: &Session, access: &Access) -> Result<Begun> {
        let apply = manner.apply;
        Ok(Begun {
            target: "target".into(),
            file_id: "the target".into(),
            format: None,
            parents: Vec::new(),
            follow_parents: false,
            identity: access.identity()?,
            disk_len: session.geometry.disk_len(),
            block_size: session.geometry.block_size().as_u32(),
            hash: session.hasher.kind().name().to_owned(),
            verify: match manner.verify {
                VerifyLevel::Full => "full",
                VerifyLevel::Changed => "changed",
                VerifyLevel::Off => "off",
            }
            .to_owned(),
            in_place: apply == Apply::InPlace,
            began_mixed: false,
            container: Container::Log,
            has_undo: matches!(apply, Apply::Stage | Apply::StageKeepUndo),
            keeps_undo: apply == Apply::StageKeepUndo,
        })
    }

    /// A session of this target and `source`.
    pub(crate) fn session(
        &self,
        source: &SourceDisk,
        manner: &Manner,
        faults: &Faults,
        dice: Dice,
    ) -> Ended {
        let (near, far, wire) = link::pair(dice, faults.link);
        self.host.arm(faults.host.clone(), Some(wire));
        let bytes = source.bytes();
        let mark = source_mark(&root_of(&bytes, HashKind::Xxh3));
        let options = SessionOptions {
            task: manner.task,
            hash: manner.hash,
            block_size: BlockSize::new(BLOCK as u64).expect("a block size"),
            verify: manner.verify,
            compress: manner.compress,
            sub_hash_seed: manner.sub_hash_seed,
            apply: manner.apply,
            container: None,
            goes_on: false,
            until: Until::End,
            source_mark: mark,
            target_root: None,
            may_send_whole: manner.sub_hash_seed.is_multiple_of(2),
        };
        let session = || {
            let mut session = Session::new(options, bytes.len() as u64).expect("a small disk");
            session.threads = manner.threads;
            // So small that there are some, and as if bytes cost nothing.
            session.regions = RegionPolicy {
                len: BLOCK as u64,
                assumed_link: Some(1e12),
                disk: DiskRates {
                    log: 1e12,
                    write: 1e12,
                    scattered_write: 1e12,
                    read_back: 1e12,
                },
                answers_min: 0,
            };
            session
        };
        let cancels = [0, 1].map(|side| {
            let when = faults.cancel.filter(|(whose, _)| *whose == side);
            (CancelToken::new(), when.map(|(_, when)| when))
        });
        let aborts = [0, 1].map(|side: usize| Arc::new(Abort::with_cancel(&cancels[side].0)));
        let (near, far) = (session_link(near), session_link(far));
        scope(|scope| {
            for (token, when) in &cancels {
                if let Some(when) = *when {
                    scope.spawn(move || {
                        sleep(when);
                        token.cancel();
                    });
                }
            }
            let near_session = session();
            let abort = &aborts[0];
            let sending = scope.spawn(move || run_source(&near_session, source, near, abort));
            let target = catch_unwind(AssertUnwindSafe(|| {
                self.play_target(manner, &session(), far, &aborts[1])
            }));
            let target = target.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Internal,
                    "the target's side panicked",
                ))
            });
            let source = sending.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Internal,
                    "the source's side panicked",
                ))
            });
            Ended { source, target }
        })
    }

    fn play_target(
        &self,
        manner: &Manner,
        session: &Session,
        link: SessionLink,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult)> {
        let access = Access::of(&self.host, self.format, self.is_gullible)?;
        let begun = self.begun(manner, session, &access)?;
        if manner.apply == Apply::InPlace {
            return self.write_in_place(&access, begun, session, link, abort);
        }
        let staging = Staging::open(
            Box::new(access),
            Box::new(self.host.clone()),
            self.barriers.with_window(WINDOW),
            session,
            begun,
            session.options.source_mark,
        )?;
        let changes = Changes::Staged(&staging);
        run_target(session, &staging, Some(changes), link, abort)
    }

    fn write_in_place(
        &self,
        access: &Access,
        begun: Begun,
        session: &Session,
        link: SessionLink,
        abort: &Arc<Abort>,
    ) -> Result<(SourceEnd, TargetResult)> {
        if self
            .journal()?
            .is_some_and(|journal| journal.waits_to_be_accepted())
        {
            let message = "an earlier sync waits to be accepted or undone";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let first = Entry {
            begun: Some(begun),
            ..Entry::of(Word::Committing)
        };
        let mut journal = Journal::begin(&self.host, self.barriers, first)?;
        let target = access.open_for_writing()?;
        let finish = move |_| {
            journal.append(Entry::of(Word::Done), Barrier::Done)?;
            Ok(None)
        };
        let changes = InPlaceChanges::new(target.as_ref(), false, Box::new(finish));
        let changes = Changes::InPlace(changes);
        run_target(session, target.as_ref(), Some(changes), link, abort)
    }
}

pub(crate) fn session_link(link: Link) -> SessionLink {
    let peer = link.peer.clone();
    let (sender, mut receiver, closer, _) = split(link);
    let limit = receiver.set_idle_limit(IDLE_LIMIT);
    limit.expect("the link takes any limit");
    SessionLink {
        sender,
        receiver,
        closer,
        peer,
    }
}
