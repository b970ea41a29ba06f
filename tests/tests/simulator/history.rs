//! One seed: a target, a source, and what happens to them.
//!
//! ```text
//! a few steps    sync, recover, roll back, accept, change the source, change the target;
//!                in most of them something goes wrong, and what it left is looked at
//! then           nothing goes wrong any more: what is half done ends without the source, and the
//!                same sync ends equal
//! ```

use std::sync::Arc;

use failback_engine::hash::{HashKind, is_zero};
use failback_engine::schedule::{Dice, note};
use failback_engine::state::{Barriers, Word};
use failback_engine::sync::Task;
use failback_engine::transport::{Apply, Compress, SourceEnd, TargetResult, VerifyLevel};
use failback_engine::{CancelToken, ErrorKind, Result as EngineResult};
use failback_vhdx::{CreateOptions, FileAt, Image, Kind};

use crate::content::{BLOCK, Content, Goal, changed, noise, root_of};
use crate::disk::{FileDisk, Format, SourceDisk};
use crate::fault::{Faults, Lie};
use crate::oracle::{Attempt, Belief, Broken, Found};
use crate::session::{Ended, Manner, Place, WINDOW};
use crate::world::Host;

/// Blocks of the VHDX.
const IMAGE_BLOCK: u32 = 1 << 20;
/// Bytes of the largest record of a stage: a block and what it had before, header and padding.
const RECORD_MAX: u64 = 2 * BLOCK as u64 + 8192;

/// What is broken on purpose, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// A flush that is left out.
    Barrier(failback_engine::state::Barrier),
    /// The medium lies, and the target's disk reads back what it wrote.
    GullibleReadBack,
}

/// How often what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sessions: u64,
    pub(crate) ended_well: u64,
    pub(crate) deaths: u64,
    pub(crate) power_cuts: u64,
    pub(crate) lies: u64,
    pub(crate) resumed: u64,
    /// Sessions that changed their plan.
    pub(crate) replanned: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.ended_well += other.ended_well;
        self.deaths += other.deaths;
        self.power_cuts += other.power_cuts;
        self.lies += other.lies;
        self.resumed += other.resumed;
        self.replanned += other.replanned;
    }
}

/// Lives through the history of a seed.
///
/// # Errors
/// The promise that was broken.
pub(crate) fn live(seed: u64, planted: Planted) -> Result<Tally, Broken> {
    let mut history = History::new(seed, planted);
    let steps = 1 + history.dice.below(5);
    for _ in 0..steps {
        history.step()?;
    }
    history.end_well()?;
    Ok(history.tally)
}

/// Lives through one sync in which `faults`, a panic, meet one of the sides. Whether it came to
/// that.
///
/// # Errors
/// The promise that was broken.
pub(crate) fn live_with_panic(seed: u64, faults: &Faults) -> Result<bool, Broken> {
    let mut history = History::new(seed, Planted::Nothing);
    history.may_panic = true;
    history.may_lie = false;
    let ended = history.sync_with(faults, false)?;
    let ended = ended.expect("nothing is half done");
    let error_of = |result: EngineResult<_>| result.err().map(|error| error.kind());
    let (source, target) = (error_of(ended.source), error_of(ended.target));
    let wanted = match faults.source_panics_in {
        Some(_) => source,
        None => target,
    };
    match (wanted, source, target) {
        (Some(ErrorKind::Internal), ..) => {}
        (_, None, None) => return Ok(false),
        other => return Err(format!("a panic ended a sync as {other:?}")),
    }
    history.end_well()?;
    Ok(true)
}

struct History {
    place: Place,
    dice: Dice,
    source: Content,
    belief: Belief,
    /// Whether media may lie in this history; what is mixed then need not be marked.
    may_lie: bool,
    has_lied: bool,
    may_panic: bool,
    has_misdirected: bool,
    hash: HashKind,
    tally: Tally,
}

impl History {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let format = [Format::Raw, Format::Vhdx][dice.index(2)];
        let host = Host::new(dice.fork());
        let content = first_content(&mut dice, format);
        make_target(&host, format, &content);
        host.restart(false);
        let source = changed(&mut dice, &content);
        let may_lie = dice.one_in(4);
        Self {
            place: Place {
                host,
                format,
                barriers: match planted {
                    Planted::Barrier(barrier) => Barriers::without(barrier),
                    _ => Barriers::new(),
                },
                is_gullible: planted == Planted::GullibleReadBack,
            },
            belief: Belief::new(content),
            source,
            may_lie: may_lie || planted == Planted::GullibleReadBack,
            has_lied: false,
            may_panic: false,
            has_misdirected: false,
            hash: [HashKind::Blake3, HashKind::Xxh3][dice.index(2)],
            tally: Tally::default(),
            dice,
        }
    }

    fn step(&mut self) -> Result<(), Broken> {
        note("step", (0, 0));
        match self.dice.below(12) {
            0..7 => self.sync(),
            7 => self.end(Way::Recover),
            8 => self.end(Way::RollBack),
            9 => self.end(Way::Accept),
            10 => {
                self.source = changed(&mut self.dice, &self.source);
                Ok(())
            }
            _ => self.change_target(),
        }
    }

    fn manner(&mut self) -> Manner {
        let dice = &mut self.dice;
        let any_apply = [Apply::StageKeepUndo, Apply::StageNoUndo, Apply::InPlace][dice.index(3)];
        let any_verify = [VerifyLevel::Full, VerifyLevel::Off][dice.index(2)];
        Manner {
            task: [Task::Delta, Task::Delta, Task::Delta, Task::Full][dice.index(4)],
            hash: match dice.one_in(16) {
                true => HashKind::Xxh3,
                false => self.hash,
            },
            verify: [VerifyLevel::Changed, any_verify][dice.index(2)],
            apply: [Apply::Stage, any_apply][dice.index(2)],
            compress: [
                Compress::Zstd(1),
                Compress::Auto,
                Compress::Off,
                Compress::Off,
            ][dice.index(4)],
            threads: 1 + dice.index(3),
            sub_hash_seed: dice.next_u64(),
        }
    }

    /// The process and its host after a step: dead or alive, with or without power.
    fn restart(&mut self) {
        let (is_alive, lied) = self.place.host.mend();
        self.has_lied |= lied.is_some();
        self.has_misdirected |= lied == Some(Lie::Misdirected);
        let lost_power = self.dice.one_in(if is_alive { 4 } else { 2 });
        self.place.host.restart(lost_power);
        self.tally.deaths += u64::from(!is_alive);
        self.tally.power_cuts += u64::from(lost_power);
        self.tally.lies += u64::from(lied.is_some());
        note("restart", (u64::from(is_alive), u64::from(lost_power)));
    }

    fn sync(&mut self) -> Result<(), Broken> {
        let faults = Faults::any(&mut self.dice, self.may_lie);
        let early = self.dice.one_in(4);
        self.sync_with(&faults, early).map(drop)
    }

    /// A sync in which that goes wrong, `early`: while an earlier one is brought to its end. How
    /// each side ended, if it came to a session.
    fn sync_with(&mut self, faults: &Faults, early: bool) -> Result<Option<Ended>, Broken> {
        if early {
            self.place.host.arm(faults.host.clone(), None);
        }
        let is_prepared = self.place.finish_unfinished();
        if early || is_prepared.is_err() {
            self.restart();
            let found = self.judge(None)?;
            if is_prepared.is_err() || found.is_none() {
                return Ok(None);
            }
        }
        let Some(found) = self.judge(None)? else {
            return Ok(None);
        };
        let manner = self.manner();
        let becomes = changed(&mut self.dice, &self.source);
        let mutation = faults.source_changes_in.map(|left| (left, becomes.clone()));
        let goal = match mutation {
            Some(_) => Goal(vec![self.source.clone(), becomes]),
            None => Goal(vec![self.source.clone()]),
        };
        if found.word.is_none_or(Word::is_final) || found.is_in_place {
            self.belief.settle(&found.seen, found.is_mixed);
        }
        let attempt = Attempt {
            before: found.seen.clone(),
            goal,
        };
        let source = SourceDisk::new(self.source.clone(), mutation, faults.source_fails_in);
        let source = source.panicking_in(faults.source_panics_in);
        let dice = self.dice.fork();
        let ended = self.place.session(&source, &manner, faults, dice);
        self.source = source.bytes();
        self.tally.sessions += 1;
        self.restart();
        let found = self.judge(Some(&attempt))?;
        let is_ok = [ended.source.is_ok(), ended.target.is_ok()];
        note("ended", (u64::from(is_ok[0]), u64::from(is_ok[1])));
        for result in [&ended.source, &ended.target] {
            self.check_verdict(result, &manner, &attempt, found.as_ref())?;
        }
        Ok(Some(ended))
    }

    /// "ok" is said of equal disks alone, and is still true after a power cut.
    fn check_verdict(
        &mut self,
        result: &EngineResult<(SourceEnd, TargetResult)>,
        manner: &Manner,
        attempt: &Attempt,
        found: Option<&Found>,
    ) -> Result<(), Broken> {
        let (end, result) = match result {
            Ok(ended) => ended,
            Err(error) if error.kind() == ErrorKind::Internal && !self.may_panic => {
                return Err(format!("a panic: {}", error.chain()));
            }
            Err(_) => return Ok(()),
        };
        if !result.equal {
            return match attempt.goal.0.len() {
                1 if !self.has_lied => Err("roots differ, and nobody changed the source".into()),
                _ => Ok(()),
            };
        }
        self.tally.ended_well += 1;
        self.tally.replanned += u64::from(end.replans > 0);
        if self.has_lied && !self.is_found(manner.verify) {
            return Ok(());
        }
        let seen = match found {
            Some(found) => found.seen.clone(),
            None => Arc::new(
                self.content()
                    .map_err(|e| format!("ok, and {}", e.chain()))?,
            ),
        };
        if !attempt.goal.admits(&seen) {
            return Err(format!("ok on a different image: {manner:?}"));
        }
        let root = root_of(&seen, manner.hash);
        for said in [end.root, result.root].into_iter().flatten() {
            if said.to_string() != root {
                return Err(format!("ok with the root of another disk: {manner:?}"));
            }
        }
        let is_marked_new = found.is_none_or(|found| {
            // What was not to be read back is not called proven.
            let is_unread = manner.verify == VerifyLevel::Off && found.waits;
            let is_kept = |word| word == Word::NewVerified || is_unread;
            found
                .word
                .is_none_or(|word| word.is_final() || is_kept(word))
        });
        match is_marked_new {
            true => Ok(()),
            false => Err(format!(
                "ok, and the journal says {found:?}",
                found = found.map(|f| f.word)
            )),
        }
    }

    /// Whether a medium that lies is found out: not where nothing is read back; and where only what
    /// was written is, not by a header or log entry that hits a block which nobody wrote.
    fn is_found(&self, verify: VerifyLevel) -> bool {
        match verify {
            VerifyLevel::Full => true,
            VerifyLevel::Changed => !(self.has_misdirected && self.place.format == Format::Vhdx),
            VerifyLevel::Off => false,
        }
    }

    fn end(&mut self, way: Way) -> Result<(), Broken> {
        let Ok(Some(journal)) = self.place.journal() else {
            return Ok(());
        };
        let faults = Faults::any(&mut self.dice, self.may_lie);
        self.place.host.arm(faults.host, None);
        let ended = self.place.end(journal, way.work());
        note("ended", (u64::from(ended.is_ok()), 0));
        self.restart();
        self.judge(None).map(drop)
    }

    /// Somebody else writes to the target, as a VM would, where nothing forbids it.
    fn change_target(&mut self) -> Result<(), Broken> {
        let Some(found) = self.judge(None)? else {
            return Ok(());
        };
        if found.is_mixed || matches!(found.word, Some(Word::NewUnverified | Word::NewVerified)) {
            return Ok(());
        }
        let new = changed(&mut self.dice, &found.seen);
        let written = write_target(&self.place, &found.seen, &new);
        written.map_err(|e| format!("a writer of the target: {}", e.chain()))?;
        match found.word {
            Some(Word::Staging | Word::Staged) => self.belief.change(new),
            _ => self.belief.settle(&new, false),
        }
        self.judge(None).map(drop)
    }

    /// Looks at what is there. `None` once a medium has lied: then only verdicts count.
    fn judge(&mut self, attempt: Option<&Attempt>) -> Result<Option<Found>, Broken> {
        let judged = self.belief.judge(&self.place, attempt);
        match judged {
            Ok(found) => Ok(Some(found)),
            Err(_) if self.has_lied => Ok(None),
            Err(broken) => Err(broken),
        }
    }

    fn content(&self) -> EngineResult<Vec<u8>> {
        FileDisk::open(&self.place.host, self.place.format)?.content()
    }

    /// Nothing goes wrong any more.
    fn end_well(&mut self) -> Result<(), Broken> {
        note("the end", (0, 0));
        if self.has_lied {
            // What a lie broke may be beyond repair: another disk takes its place.
            self.start_over();
        }
        let found = self.judge(None)?.expect("nothing lies");
        self.end_half_done(&found)?;
        let found = self.judge(None)?.expect("nothing lies");
        let due = self.due_to_be_resumed(&found);
        if found.word.is_none_or(Word::is_final) || found.is_in_place {
            self.belief.settle(&found.seen, found.is_mixed);
        }
        let task = if due.is_some() {
            Task::Delta
        } else {
            self.manner().task
        };
        let manner = Manner {
            task,
            apply: Apply::Stage,
            verify: [VerifyLevel::Changed, VerifyLevel::Full][self.dice.index(2)],
            ..self.manner()
        };
        let attempt = Attempt {
            before: found.seen,
            goal: Goal(vec![self.source.clone()]),
        };
        let source = SourceDisk::new(self.source.clone(), None, None);
        let dice = self.dice.fork();
        let ended = self
            .place
            .session(&source, &manner, &Faults::default(), dice);
        self.tally.sessions += 1;
        let lost_power = self.dice.one_in(2);
        self.place.host.restart(lost_power);
        let found = self.judge(Some(&attempt))?;
        for result in [&ended.target, &ended.source] {
            match result {
                Ok((_, result)) if result.equal => {}
                Ok(_) => return Err("the last sync did not end equal".into()),
                Err(_) => return Err(format!("the last sync failed: {ended:?}")),
            }
            self.check_verdict(result, &manner, &attempt, found.as_ref())?;
        }
        self.tally.resumed += u64::from(due.is_some());
        Ok(())
    }

    fn start_over(&mut self) {
        self.has_lied = false;
        self.has_misdirected = false;
        self.place.host.clear_state();
        let target = self.place.host.target();
        target.set_len(0).expect("nothing fails");
        make_target(&self.place.host, self.place.format, &self.source);
        self.belief = Belief::new(self.source.clone());
        self.source = changed(&mut self.dice, &self.source);
    }

    /// What is half done ends without the source, one way or the other.
    fn end_half_done(&mut self, found: &Found) -> Result<(), Broken> {
        let Some(word) = found.word else {
            return Ok(());
        };
        let by_undo = found.has_undo && self.dice.one_in(2);
        let way = match word {
            Word::Committing if found.is_in_place => return Ok(()),
            Word::Committing | Word::NewUnverified if by_undo => Way::RollBack,
            Word::NewUnverified if found.waits => Way::Accept,
            Word::Committing | Word::NewUnverified | Word::RollingBack => Way::Recover,
            Word::Staged if !self.belief.is_stale && self.dice.one_in(2) => Way::Recover,
            Word::NewVerified if by_undo => Way::RollBack,
            Word::NewVerified if found.has_broken_end => Way::Recover,
            Word::NewVerified => Way::Accept,
            _ => return Ok(()),
        };
        let old = self.belief.old.clone();
        let ended = self.end_for_good(way);
        let ended = match (word, ended) {
            // Cancelled by somebody before COMMIT, say: it can still be given up.
            (_, Ok(word)) => word,
            (_, Err(error)) => {
                return Err(format!("{way:?} from {}: {}", word.name(), error.chain()));
            }
        };
        let found = self.judge(None)?.expect("nothing lies");
        let is_end = ended.is_final() || ended == Word::NewVerified || found.waits;
        if !is_end || found.word != Some(ended) {
            return Err(format!("{way:?} from {} ends as {ended:?}", word.name()));
        }
        if way == Way::RollBack && found.seen != old {
            return Err("rolled back, and not the old disk".into());
        }
        match ended {
            _ if found.waits => self
                .end_for_good(Way::Accept)
                .map(drop)
                .map_err(|e| e.chain()),
            _ => Ok(()),
        }
    }

    fn end_for_good(&self, way: Way) -> EngineResult<Word> {
        let journal = self.place.journal()?.expect("a journal");
        self.place.end(journal, way.work())
    }

    /// Blocks that an interrupted sync had staged so long ago that they must be durable.
    fn due_to_be_resumed(&self, found: &Found) -> Option<usize> {
        if found.word != Some(Word::Staging) || self.belief.is_stale {
            return None;
        }
        let ends = self.place.host.staged_ends();
        let total = ends.last().copied()?;
        let due = ends
            .iter()
            .filter(|end| **end + 2 * WINDOW + RECORD_MAX <= total);
        Some(due.count())
    }
}

/// How a job is ended without the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Recover,
    RollBack,
    Accept,
}

type Journal = failback_engine::state::Journal;
type Unfinished<'a> = failback_engine::commit::Unfinished<'a>;

impl Way {
    fn work(self) -> impl FnOnce(&Unfinished<'_>, Journal) -> EngineResult<Word> {
        move |job, journal| {
            let cancel = CancelToken::new();
            let ended = match self {
                Self::Recover => job.finish(journal, &cancel),
                Self::RollBack => job.roll_back(journal, &cancel),
                Self::Accept => job.accept(journal),
            };
            ended.map(|(word, _)| word)
        }
    }
}

fn first_content(dice: &mut Dice, format: Format) -> Content {
    let len = match format {
        Format::Raw => BLOCK * (6 + dice.index(10)) + 4096 * dice.index(3),
        Format::Vhdx => (1 + dice.index(3)) * IMAGE_BLOCK as usize,
    };
    let mut bytes = vec![0; len];
    for _ in 0..3 + dice.below(8) {
        let start = dice.index(len) / BLOCK * BLOCK;
        let end = (start + BLOCK * (1 + dice.index(2))).min(len);
        noise(dice, &mut bytes[start..end]);
    }
    Arc::new(bytes)
}

/// Writes a new target, which is durable then.
fn make_target(host: &Host, format: Format, content: &Content) {
    let file = host.target();
    match format {
        Format::Raw => file.write_at(0, content).expect("nothing fails"),
        Format::Vhdx => {
            let options = CreateOptions {
                block_size: Some(IMAGE_BLOCK),
                ..CreateOptions::new(content.len() as u64, Kind::Dynamic)
            };
            let image = Image::create(file.clone(), &options).expect("nothing fails");
            for (at, block) in (0..).step_by(BLOCK).zip(content.chunks(BLOCK)) {
                if !is_zero(block) {
                    image.write_at(at, block).expect("nothing fails");
                }
            }
            image.close().expect("nothing fails");
        }
    }
    file.sync().expect("nothing fails");
}

fn write_target(place: &Place, old: &[u8], new: &[u8]) -> EngineResult<()> {
    use failback_engine::disk::Target;
    let disk = FileDisk::open_rw(&place.host, place.format, false)?;
    let pairs = (0..)
        .step_by(BLOCK)
        .zip(old.chunks(BLOCK).zip(new.chunks(BLOCK)));
    for (at, (before, after)) in pairs {
        if before != after {
            disk.write(failback_engine::units::ByteOffset(at), after)?;
        }
    }
    disk.flush()?;
    disk.close()
}
