//! The stage written anew without the records that no longer count.
//!
//! A source that changes between runs leaves a record of a block behind with each. So when a stage
//! is taken up again and more of it is dead than alive:
//!
//! ```text
//! stage.new    gets the records that count                     flushed
//! stage        is the name of that file from here on           names flushed
//! ```
//! A power cut leaves one of the two under the name, and both say the same of every block. Before
//! it the journal has to say `staging`: a seal speaks of the records of one file. After it nothing
//! may be written before the names are durable: it would be lost with the new file.
//!
//! Every byte that is written here stands for a dead one, so that compaction at most doubles what
//! is written to a stage.

use super::log::StageLog;
use super::record::{Bytes, NewRecord, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Barrier, Folder, STAGE_NAME, STAGE_NEW_NAME};

/// The stage of `folder`, compacted if that is worth it. Where there is no room for that it stays
/// as it is.
///
/// # Errors
/// `Damaged`, `Io`.
pub(crate) fn compact(stage: StageLog, folder: &dyn Folder) -> Result<StageLog> {
    if !stage.is_mostly_dead() {
        return Ok(stage);
    }
    match write_anew(&stage, folder) {
        Ok(anew) => {
            let failed = |e| Error::io(e, "compact stage");
            folder.rename(STAGE_NEW_NAME, STAGE_NAME).map_err(failed)?;
            let barriers = stage.barriers();
            barriers
                .pass(Barrier::CompactedName, || folder.sync())
                .map_err(failed)?;
            Ok(anew)
        }
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            tracing::warn!(error = error.chain(), "stage not compacted");
            let failed = |e| Error::io(e, "read stage");
            folder.remove(STAGE_NEW_NAME).map_err(failed)?;
            stage.read_again()
        }
        Err(error) => Err(error),
    }
}

/// Moves what counts, block by block, so that there is never more than one index.
fn write_anew(stage: &StageLog, folder: &dyn Folder) -> Result<StageLog> {
    let file = folder
        .create(STAGE_NEW_NAME)
        .map_err(|e| Error::io(e, "make stage"))?;
    let anew = stage.successor(file);
    while let Some(record) = stage.take_first()? {
        copy(&record, stage, &anew)?;
    }
    anew.flush(Barrier::Compacted)?;
    Ok(anew)
}

fn copy(record: &Record, from: &StageLog, to: &StageLog) -> Result<()> {
    let (new, old) = (from.new_bytes(record)?, from.old_bytes(record)?);
    to.append(&NewRecord {
        block: record.block,
        is_drop: false,
        runs: &record.runs,
        new: match record.new_is_zero {
            true => Bytes::Zero,
            false => Bytes::Kept(&new),
        },
        old: match (record.old_is_zero, record.old_is_kept) {
            (true, _) => Bytes::Zero,
            (_, true) => Bytes::Kept(&old),
            (false, false) => Bytes::Unknown,
        },
        new_leaf: record.new_leaf,
        old_leaf: record.old_leaf,
    })?;
    Ok(())
}
