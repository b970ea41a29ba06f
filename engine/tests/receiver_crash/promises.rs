//! What has to hold in every state that a power cut can leave.

use failback_engine::Result;
use failback_engine::state::{Barriers, Journal, Word};

use crate::scenario::{BLOCK, Record, WINDOW, content, finish, roll_back, staging};
use crate::states::State;
use crate::world::{Op, World};

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
    let word = journal.map(|journal| journal.word());
    let seen = content(&world, record.disk.format).map_err(|e| told("target", e))?;
    match word {
        None | Some(Word::Staging | Word::Staged | Word::Aborted | Word::OldRestored) => {
            is("the target, not written to", &seen, &record.disk.old)?;
        }
        Some(Word::NewUnverified | Word::NewVerified | Word::Done) => {
            is("the target, written", &seen, &record.disk.new)?;
        }
        // Mixed, and says so.
        Some(Word::Committing | Word::RollingBack) => {}
    }
    if state.made == record.ops.len() && !word.is_some_and(|word| record.ends.contains(&word)) {
        return Err(format!("it had ended, and the journal says {word:?}"));
    }
    if let Some(word) = word {
        check_ends(record, state, word)?;
    }
    if matches!(word, None | Some(Word::Staging)) {
        check_window(record, state).map_err(|e| told("resume", e))??;
    }
    Ok(word)
}

/// Both ends can be reached from here, where there are two.
fn check_ends(record: &Record, state: &State, word: Word) -> std::result::Result<(), String> {
    let (disk, told) = (&record.disk, |what: &str, e: failback_engine::Error| {
        format!("{what} from {}: {}", word.name(), e.chain())
    });
    let world = World::like(&state.host);
    let end = finish(&world, disk.format).map_err(|e| told("recover", e))?;
    let seen = content(&world, disk.format).map_err(|e| told("recovered", e))?;
    match end {
        Word::Staging | Word::Aborted | Word::OldRestored => {
            is("recovered to the old disk", &seen, &disk.old)?;
        }
        Word::NewVerified | Word::Done => is("recovered to the new disk", &seen, &disk.new)?,
        _ => return Err(format!("recover ends as {}", end.name())),
    }
    if !word.is_final() {
        let world = World::like(&state.host);
        roll_back(&world, disk.format).map_err(|e| told("rollback", e))?;
        let seen = content(&world, disk.format).map_err(|e| told("rolled back", e))?;
        is("rolled back", &seen, &disk.old)?;
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

fn is(what: &str, seen: &[u8], expected: &[u8]) -> std::result::Result<(), String> {
    if seen == expected {
        return Ok(());
    }
    let at = seen.iter().zip(expected).position(|(a, b)| a != b);
    Err(format!("{what}: differs at {at:?}"))
}
