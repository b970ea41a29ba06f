//! What is recorded: syncs, roll-backs and acceptances of small disks.

use std::sync::Arc;

use failback_engine::commit::{Staging, Unfinished};
use failback_engine::disk::MemoryDisk;
use failback_engine::hash::HashKind;
use failback_engine::state::{Barriers, Begun, Container, Folder, Journal, Word};
use failback_engine::sync::{
    Changes, Session, SessionLink, SessionOptions, Task, Until, run_source, run_target,
};
use failback_engine::transport::link::{IDLE_LIMIT, Link, loopback};
use failback_engine::transport::{Apply, Compress, SourceEnd, TargetResult, VerifyLevel, split};
use failback_engine::units::BlockSize;
use failback_engine::{Abort, CancelToken, Result};
use failback_vhdx::FileAt;

use crate::disk::{Access, Again, FileDisk, Format, target_of};
use crate::world::{Host, Op, TARGET, World};

/// Blocks of the map: small, so that small disks have many.
pub(crate) const BLOCK: usize = 64 << 10;
/// Small windows, so that small syncs have several.
pub(crate) const WINDOW: u64 = 192 << 10;

/// A target, what it holds, and what it is to hold.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) format: Format,
    /// There is no target; `old` are zeros.
    pub(crate) is_missing: bool,
    pub(crate) host: Host,
    pub(crate) old: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

/// What was done to a host, and on what.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) disk: Disk,
    pub(crate) base: Host,
    pub(crate) ops: Vec<Op>,
    /// The state words in which it may end.
    pub(crate) ends: Vec<Word>,
}

pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) | 1;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(step).collect()
}

/// Raw: blocks changed in part and whole, made zero, and made from zeros.
pub(crate) fn raw_disk() -> Disk {
    let mut old = vec![0; 8 * BLOCK + 4096];
    for (block, seed) in [(0, 1), (1, 2), (2, 3), (4, 4), (6, 5)] {
        old[block * BLOCK..][..BLOCK].copy_from_slice(&pattern(seed, BLOCK));
    }
    let mut new = old.clone();
    new[100..5000].copy_from_slice(&pattern(50, 4900));
    new[BLOCK..2 * BLOCK].copy_from_slice(&pattern(51, BLOCK));
    new[2 * BLOCK..3 * BLOCK].fill(0);
    new[3 * BLOCK + 8192..][..4096].copy_from_slice(&pattern(53, 4096));
    new[6 * BLOCK + 60_000..][..1000].copy_from_slice(&pattern(54, 1000));
    new[8 * BLOCK..].copy_from_slice(&pattern(55, 4096));
    let mut disk = empty(Format::Raw, old, new);
    let world = World::on(&disk.host);
    world.target().unwrap().write_at(0, &disk.old).unwrap();
    disk.host = after(&disk.host, &world.ops());
    disk
}

pub(crate) fn empty(format: Format, old: Vec<u8>, new: Vec<u8>) -> Disk {
    let mut host = Host::default();
    host.files.push(Arc::default());
    host.names.insert(TARGET.to_owned(), 0);
    Disk {
        format,
        is_missing: false,
        host,
        old,
        new,
    }
}

/// The host once all of a record is durable.
pub(crate) fn after(base: &Host, ops: &[Op]) -> Host {
    let mut host = base.copied();
    ops.iter().for_each(|op| host.apply(op, |_| true));
    host
}

/// The host at the first moment at which its journal says `word`.
pub(crate) fn at_word(base: &Host, ops: &[Op], word: Word) -> Host {
    after(base, &ops[..=position_of(base, ops, word)])
}

/// The change that makes the journal say `word`.
pub(crate) fn position_of(base: &Host, ops: &[Op], word: Word) -> usize {
    let mut host = base.copied();
    let found = ops.iter().position(|op| {
        host.apply(op, |_| true);
        let journal = Journal::open(&World::like(&host), Barriers::new());
        let journal = journal.ok().flatten();
        journal.is_some_and(|found| found.word() == word)
    });
    found.unwrap_or_else(|| panic!("the record never says {}", word.name()))
}

pub(crate) fn options(task: Task, apply: Apply) -> SessionOptions {
    SessionOptions {
        task,
        hash: HashKind::Blake3,
        block_size: BlockSize::new(BLOCK as u64).unwrap(),
        verify: VerifyLevel::Changed,
        compress: Compress::Off,
        sub_hash_seed: 7,
        apply,
        container: None,
        goes_on: false,
        until: Until::End,
        source_mark: 1,
        target_root: None,
        may_send_whole: false,
    }
}

/// A session of that disk, of which the target is `world`'s.
pub(crate) fn staging(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
) -> Result<(Staging, Session)> {
    let folder = Box::new(world.clone());
    staging_as(
        world,
        disk,
        barriers,
        options(Task::Delta, Apply::Stage),
        folder,
    )
}

/// How many staged blocks a sync with that verify level goes on with.
pub(crate) fn resumed_with(world: &World, disk: &Disk, verify: VerifyLevel) -> Result<u64> {
    let options = SessionOptions {
        verify,
        ..options(Task::Delta, Apply::Stage)
    };
    let folder = Box::new(world.clone());
    let (staging, _) = staging_as(world, disk, Barriers::new(), options, folder)?;
    Ok(staging.resumed_blocks())
}

fn staging_as(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    options: SessionOptions,
    folder: Box<dyn Folder>,
) -> Result<(Staging, Session)> {
    let session = Session::new(options, disk.old.len() as u64)?;
    let access = Box::new(Access::of(world, disk.format)?);
    let begun = begun(Container::Log, options.apply);
    let staging = Staging::open(access, folder, barriers, &session, begun, 1)?;
    Ok((staging, session))
}

/// What a job is.
pub(crate) fn begun(container: Container, apply: Apply) -> Begun {
    Begun {
        target: "target".into(),
        file_id: "the target".into(),
        format: None,
        parents: Vec::new(),
        follow_parents: false,
        identity: String::new(),
        disk_len: 0,
        block_size: 0,
        hash: String::new(),
        verify: String::new(),
        in_place: false,
        began_mixed: false,
        container,
        has_undo: apply != Apply::StageNoUndo,
        keeps_undo: apply == Apply::StageKeepUndo,
    }
}

fn link(link: Link) -> SessionLink {
    let peer = link.peer.clone();
    let (sender, mut receiver, closer, _) = split(link);
    receiver.set_idle_limit(IDLE_LIMIT).unwrap();
    SessionLink {
        sender,
        receiver,
        closer,
        peer,
    }
}

/// A whole sync to the target of `world`.
pub(crate) fn sync(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    task: Task,
    apply: Apply,
) -> Result<()> {
    sync_in(
        world,
        disk,
        barriers,
        options(task, apply),
        Box::new(world.clone()),
    )
}

/// The same with its state in `folder`.
fn sync_in(
    world: &World,
    disk: &Disk,
    barriers: Barriers,
    options: SessionOptions,
    folder: Box<dyn Folder>,
) -> Result<()> {
    let (staging, session) = staging_as(world, disk, barriers, options, folder)?;
    run_with(disk, options, |far, abort| {
        let changes = Some(Changes::Staged(&staging));
        run_target(&session, &staging, changes, far, abort)
    })
}

/// Runs `target` against a source that holds what the disk is to become.
pub(crate) fn run_with(
    disk: &Disk,
    options: SessionOptions,
    target: impl FnOnce(SessionLink, &Arc<Abort>) -> Result<(SourceEnd, TargetResult)>,
) -> Result<()> {
    let source_session = Session::new(options, disk.new.len() as u64)?;
    let source = MemoryDisk::new(disk.new.clone());
    let (near, far) = loopback::pair();
    let (near, far) = (link(near), link(far));
    std::thread::scope(|scope| {
        let abort = Arc::new(Abort::new());
        let sending = scope.spawn(move || run_source(&source_session, &source, near, &abort));
        let abort = Arc::new(Abort::new());
        let ended = target(far, &abort);
        let sent = sending.join().unwrap();
        assert!(ended?.1.equal);
        sent.map(drop)
    })
}

/// Records a sync.
pub(crate) fn record_sync(disk: &Disk, barriers: Barriers, task: Task, apply: Apply) -> Record {
    record_sync_in(disk, barriers, task, apply, |world| Box::new(world.clone()))
}

/// The same with its state in another folder of the host.
pub(crate) fn record_sync_in(
    disk: &Disk,
    barriers: Barriers,
    task: Task,
    apply: Apply,
    folder: impl Fn(&World) -> Box<dyn Folder>,
) -> Record {
    let world = World::on(&disk.host);
    let (barriers, options) = (barriers.with_window(WINDOW), options(task, apply));
    sync_in(&world, disk, barriers, options, folder(&world)).unwrap();
    Record {
        disk: disk.clone(),
        base: disk.host.clone(),
        ops: world.ops(),
        ends: vec![match apply {
            Apply::StageKeepUndo => Word::NewVerified,
            _ => Word::Done,
        }],
    }
}

/// Records a sync that goes on with what an earlier one had staged; meanwhile the source got one
/// block's old content back, and changed another.
pub(crate) fn record_resumed(disk: &Disk, barriers: Barriers) -> Record {
    let first = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let sealed = position_of(&first.base, &first.ops, Word::Staged);
    let base = after(&first.base, &first.ops[..sealed]);
    let mut disk = disk.clone();
    let (old, new) = (&disk.old, &mut disk.new);
    new[..BLOCK].copy_from_slice(&old[..BLOCK]);
    let end = new.len();
    new[end - 3000..].copy_from_slice(&pattern(77, 3000));
    let world = World::on(&base);
    let barriers = barriers.with_window(WINDOW);
    sync(&world, &disk, barriers, Task::Delta, Apply::Stage).unwrap();
    Record {
        disk,
        ops: world.ops(),
        base,
        ends: vec![Word::Done],
    }
}

/// Records a sync whose process is killed when its journal has just got its name, and the next one,
/// which goes on: nothing was made durable in between.
pub(crate) fn record_after_kill(disk: &Disk, barriers: Barriers) -> Record {
    let first = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let named = |op: &Op| matches!(op, Op::Rename { to, .. } if to == "journal");
    let killed = first.ops.iter().position(named).expect("a journal") + 1;
    let mut ops = first.ops[..killed].to_vec();
    let world = World::on(&after(&first.base, &ops));
    let barriers = barriers.with_window(WINDOW);
    sync(&world, disk, barriers, Task::Delta, Apply::Stage).unwrap();
    ops.extend(world.ops());
    Record { ops, ..first }
}

/// Records what `work` does to a host with a journal.
pub(crate) fn record_end(
    disk: &Disk,
    base: &Host,
    barriers: Barriers,
    work: impl FnOnce(&Unfinished<'_>, Journal) -> Result<(Word, failback_engine::commit::Outcome)>,
) -> Record {
    record_end_in(disk, base, barriers, |world| Box::new(world.clone()), work)
}

/// The same with its state in another folder of the host.
pub(crate) fn record_end_in(
    disk: &Disk,
    base: &Host,
    barriers: Barriers,
    folder: impl Fn(&World) -> Box<dyn Folder>,
    work: impl FnOnce(&Unfinished<'_>, Journal) -> Result<(Word, failback_engine::commit::Outcome)>,
) -> Record {
    let world = World::on(base);
    let folder = folder(&world);
    let (word, _) = end(&world, disk.format, folder.as_ref(), barriers, work).unwrap();
    Record {
        disk: disk.clone(),
        base: base.clone(),
        ops: world.ops(),
        ends: vec![word],
    }
}

/// Brings what a host has of a job to an end.
pub(crate) fn end(
    world: &World,
    format: Format,
    folder: &dyn Folder,
    barriers: Barriers,
    work: impl FnOnce(&Unfinished<'_>, Journal) -> Result<(Word, failback_engine::commit::Outcome)>,
) -> Result<(Word, failback_engine::commit::Outcome)> {
    let journal = Journal::open(folder, barriers)?.expect("a journal");
    let reopen = Again {
        world: world.clone(),
        format,
    };
    let unfinished = Unfinished {
        folder,
        reopen: &reopen,
        barriers,
    };
    work(&unfinished, journal)
}

/// `recover`.
pub(crate) fn finish(world: &World, format: Format) -> Result<Word> {
    let work =
        |unfinished: &Unfinished<'_>, journal| unfinished.finish(journal, &CancelToken::new());
    Ok(end(world, format, world, Barriers::new(), work)?.0)
}

/// `rollback`.
pub(crate) fn roll_back(world: &World, format: Format) -> Result<Word> {
    let work =
        |unfinished: &Unfinished<'_>, journal| unfinished.roll_back(journal, &CancelToken::new());
    Ok(end(world, format, world, Barriers::new(), work)?.0)
}

/// What a reader of the target sees; `None` where there is none.
pub(crate) fn seen(world: &World, format: Format) -> Result<Option<FileDisk>> {
    let file = world.target();
    file.map(|file| FileDisk::open(file, format)).transpose()
}

/// What a reader of the target sees, which is there.
pub(crate) fn content(world: &World, format: Format) -> Result<Vec<u8>> {
    FileDisk::open(target_of(world)?, format)?.content()
}
