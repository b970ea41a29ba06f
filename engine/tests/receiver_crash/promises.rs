//! What has to hold in every state that a power cut can leave.

use failback_engine::Result;
use failback_engine::state::{Barriers, Journal, Word};

use failback_vhdx::FileAt;

use crate::disk::{FileDisk, Format};
use crate::scenario::{BLOCK, Disk, Record, WINDOW, finish, roll_back, seen, staging};
use crate::states::State;
use crate::world::{BESIDE, Op, World};

/// Bytes of the largest record: one block and what it had before, with its header and padding.
const RECORD_MAX: u64 = 2 * BLOCK as u64 + 8192;

/// The word of the state.
///
/// # Errors
/// The promise that is broken.
pub(crate) fn check(record: &Record, state: &State) -> std::result::Result<Option<Word>, String> {
    let world = World::like(&state.host);
    let told = |what: &str, error: failback_engine::Error| format!("{what}: {}", error.chain());
    let journal = Journal::open(&world, Barriers::new()).map_err(|e| told("journal", e))?;
    let is_mixed = journal.as_ref().is_some_and(Journal::is_mixed);
    let has_undo = journal
        .as_ref()
        .is_some_and(|journal| journal.begun().has_undo);
    let word = journal.map(|journal| journal.word());
    let disk = &record.disk;
    let seen = seen(&world, disk.format).map_err(|e| told("target", e))?;
    match word {
        None | Some(Word::Staging | Word::Staged | Word::Aborted | Word::OldRestored) => {
            is_old("the target, not written to", seen.as_ref(), disk)?;
        }
        Some(Word::NewUnverified | Word::NewVerified | Word::Done) => {
            is_new("the target, written", seen.as_ref(), disk)?;
        }
        // Mixed, and says so.
        Some(Word::Committing | Word::RollingBack) if is_mixed => {
            is_readable("the target, mixed", seen.as_ref())?;
        }
        Some(Word::Committing | Word::RollingBack) => {
            is_old("the target, replaced", seen.as_ref(), disk)
                .or_else(|_| is_new("the target, replaced", seen.as_ref(), disk))?;
        }
    }
    if state.made == record.ops.len() && !word.is_some_and(|word| record.ends.contains(&word)) {
        return Err(format!("it had ended, and the journal says {word:?}"));
    }
    if let Some(word) = word {
        check_ends(record, state, word, has_undo)?;
    }
    if matches!(word, None | Some(Word::Staging)) {
        check_window_beside(record, state)?;
        if has_stage(record) {
            check_window(record, state).map_err(|e| told("resume", e))??;
        }
    }
    Ok(word)
}

/// Holds a state of a disk that is written in place, or was left mixed by that: whatever is not
/// the new disk is said to be mixed, but for an old one that nothing was written to; nothing but
/// `sync`, the same again, ends that.
///
/// # Errors
/// The promise that is broken.
pub(crate) fn check_marked(
    record: &Record,
    state: &State,
    sync: impl Fn(&World, &Disk) -> Result<()>,
) -> std::result::Result<Option<Word>, String> {
    let disk = &record.disk;
    let word = is_marked("found", &World::like(&state.host), disk)?;
    if state.made == record.ops.len() && word != Some(Word::Done) {
        return Err(format!("it had ended, and the journal says {word:?}"));
    }
    if word.is_some() {
        for (what, end) in [
            ("recovered", finish as fn(&World, Format) -> Result<Word>),
            ("rolled back", roll_back),
        ] {
            let world = World::like(&state.host);
            // May be refused.
            let ended = end(&world, disk.format);
            is_marked(what, &world, disk)?;
            sync_to_end(what, &world, disk, &sync, ended.err())?;
        }
    }
    let world = World::like(&state.host);
    sync_to_end("found", &world, disk, &sync, None)?;
    Ok(word)
}

fn sync_to_end(
    what: &str,
    world: &World,
    disk: &Disk,
    sync: &impl Fn(&World, &Disk) -> Result<()>,
    before: Option<failback_engine::Error>,
) -> std::result::Result<(), String> {
    let told = |e: failback_engine::Error| {
        let before = before.as_ref().map(failback_engine::Error::chain);
        format!("{what} ({before:?}), then the same sync: {}", e.chain())
    };
    sync(world, disk).map_err(told)?;
    match is_marked(what, world, disk)? {
        Some(Word::Done) => Ok(()),
        word => Err(format!("{what}, then the same sync: ended as {word:?}")),
    }
}

/// A host whose disk is new, or mixed and said to be; or old, where it began as that.
fn is_marked(what: &str, world: &World, disk: &Disk) -> std::result::Result<Option<Word>, String> {
    let told = |error: failback_engine::Error| format!("{what}: {}", error.chain());
    let journal = Journal::open(world, Barriers::new()).map_err(told)?;
    let is_mixed = journal.as_ref().is_some_and(Journal::is_mixed);
    let word = journal.map(|journal| journal.word());
    let seen = seen(world, disk.format).map_err(told)?;
    match word {
        _ if is_mixed => is_readable(what, seen.as_ref())?,
        None => is_old(what, seen.as_ref(), disk)?,
        Some(_) => is_new(what, seen.as_ref(), disk)?,
    }
    Ok(word)
}

/// Both ends can be reached from here, where there are two.
fn check_ends(
    record: &Record,
    state: &State,
    word: Word,
    has_undo: bool,
) -> std::result::Result<(), String> {
    let (disk, told) = (&record.disk, |what: &str, e: failback_engine::Error| {
        format!("{what} from {}: {}", word.name(), e.chain())
    });
    let world = World::like(&state.host);
    let end = finish(&world, disk.format).map_err(|e| told("recover", e))?;
    let now = seen(&world, disk.format).map_err(|e| told("recovered", e))?;
    match end {
        Word::Staging | Word::Aborted | Word::OldRestored => {
            is_old("recovered to the old disk", now.as_ref(), disk)?;
        }
        Word::NewVerified | Word::Done => {
            is_new("recovered to the new disk", now.as_ref(), disk)?;
        }
        _ => return Err(format!("recover ends as {}", end.name())),
    }
    if !word.is_final() && (has_undo || matches!(word, Word::Staging | Word::Staged)) {
        let world = World::like(&state.host);
        roll_back(&world, disk.format).map_err(|e| told("rollback", e))?;
        let now = seen(&world, disk.format).map_err(|e| told("rolled back", e))?;
        is_old("rolled back", now.as_ref(), disk)?;
    }
    Ok(())
}

/// What was staged is there but for two windows: one being flushed, one being filled.
fn check_window(record: &Record, state: &State) -> Result<std::result::Result<(), String>> {
    let stage = record.ops.iter().find_map(|op| match op {
        Op::Create { name, file } if name == "stage" => Some(*file),
        _ => None,
    });
    let made = record.ops[..state.made].iter();
    let ends: Vec<u64> = made
        .filter_map(|op| match op {
            Op::Write { file, at, data } if Some(*file) == stage => Some(at + data.len() as u64),
            _ => None,
        })
        .collect();
    let total = ends.last().copied().unwrap_or(0);
    let due = |end: &&u64| **end + 2 * WINDOW + RECORD_MAX <= total;
    let due = match record.ops.iter().any(|op| op.makes("stage.new")) {
        false => ends.iter().filter(due).count() as u64,
        // Nothing was staged but what was there before.
        true => {
            let before = World::like(&record.base);
            staging(&before, &record.disk, Barriers::new())?
                .0
                .resumed_blocks()
        }
    };
    let (staging, _) = staging(&World::like(&state.host), &record.disk, Barriers::new())?;
    let resumed = staging.resumed_blocks();
    Ok(match resumed >= due {
        true => Ok(()),
        false => Err(format!("{resumed} blocks resumed, {due} were durable")),
    })
}

/// Whether the record is of a job that stages in a log.
fn has_stage(record: &Record) -> bool {
    record.base.names.contains_key("stage")
        || record
            .ops
            .iter()
            .any(|op| op.makes("stage") || op.makes("stage.new"))
}

fn is_beside(op: &Op) -> bool {
    matches!(op, Op::Create { name, .. } if name == BESIDE)
}

/// Of a raw disk whose new file begins empty: what was written is there but for two windows.
fn check_window_beside(record: &Record, state: &State) -> std::result::Result<(), String> {
    let made = record.ops[..state.made].iter().rposition(is_beside);
    let is_raw = record.disk.format == Format::Raw;
    let Some(made) = made.filter(|_| is_raw && !record.ops.iter().any(is_cloned)) else {
        return Ok(());
    };
    let Op::Create { file, .. } = &record.ops[made] else {
        unreachable!("found as one");
    };
    let written: Vec<(u64, &[u8])> = record.ops[made..state.made]
        .iter()
        .filter_map(|op| match op {
            Op::Write { file: of, at, data } if of == file => Some((*at, data.as_ref())),
            _ => None,
        })
        .collect();
    let total: u64 = written.iter().map(|(_, data)| data.len() as u64).sum();
    let mut sum = 0;
    for (at, data) in written {
        sum += data.len() as u64;
        if sum + 2 * WINDOW + BLOCK as u64 > total {
            break;
        }
        let mut there = vec![0; data.len()];
        let read = state.host.files[*file].read_at(at, &mut there);
        if read.is_err() || there != data {
            return Err(format!(
                "what was written at {at} is gone, {total} bytes later"
            ));
        }
    }
    Ok(())
}

/// Clones begin with the whole target.
fn is_cloned(op: &Op) -> bool {
    matches!(op, Op::Write { data, .. } if data.len() > 4 * BLOCK)
}

fn is_old(what: &str, seen: Option<&FileDisk>, disk: &Disk) -> std::result::Result<(), String> {
    match (seen, disk.is_missing) {
        (None, true) => Ok(()),
        (Some(seen), false) => is(what, seen, &disk.old),
        (seen, _) => Err(format!("{what}: is there: {}", seen.is_some())),
    }
}

fn is_new(what: &str, seen: Option<&FileDisk>, disk: &Disk) -> std::result::Result<(), String> {
    is(what, seen.ok_or(format!("{what}: is missing"))?, &disk.new)
}

fn is_readable(what: &str, seen: Option<&FileDisk>) -> std::result::Result<(), String> {
    let read = seen.map_or(Ok(()), FileDisk::read_through);
    read.map_err(|error| format!("{what}: {}", error.chain()))
}

fn is(what: &str, seen: &FileDisk, expected: &[u8]) -> std::result::Result<(), String> {
    match seen.first_other(expected) {
        Ok(None) => Ok(()),
        Ok(Some(at)) => Err(format!("{what}: differs at {at}")),
        Err(error) => Err(format!("{what}: {}", error.chain())),
    }
}
