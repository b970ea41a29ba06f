//! What must hold in every state, and the search for one in which it does not.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use failback_vhdx::{FileAt, Image, LogState, MemoryFile};

use crate::record::{Change, HEADERS, Op, SECTOR};
use crate::sessions::{Session, open};
use crate::states::{self, Look, State};
use crate::support::header_guids;

/// What must hold after a power cut.
pub(crate) trait Promise {
    /// `Err` says what is wrong.
    fn check(&self, state: &State) -> Result<(), String>;
}

/// Looks at all states and fails at the first that breaks the promise. Returns their count.
pub(crate) fn assert_all(
    promise: &dyn Promise,
    base: &[MemoryFile],
    ops: &[Op],
    look: &Look,
) -> usize {
    let (count, broken) = search(promise, base, ops, look);
    assert_eq!(broken, None, "after {count} states, seed {:#x}", look.seed);
    count
}

/// Looks at states until one breaks the promise, and says which.
pub(crate) fn search(
    promise: &dyn Promise,
    base: &[MemoryFile],
    ops: &[Op],
    look: &Look,
) -> (usize, Option<String>) {
    let mut broken = None;
    let count = states::each(base, ops, look, &mut |state| {
        let Err(what) = promise.check(state) else {
            return ControlFlow::Continue(());
        };
        broken = Some(format!(
            "{what} (state {}, cut between {} and {} of {} changes, choice {:#x})",
            state.number,
            state.earliest,
            state.latest,
            ops.len(),
            state.seed
        ));
        ControlFlow::Break(())
    });
    (count, broken)
}

/// An image opens, is sound, and each sector is old or new.
impl Promise for Session {
    fn check(&self, state: &State) -> Result<(), String> {
        let file = state.files[0].clone();
        let image = open(file.clone(), self.parent.clone(), false);
        let image = image.map_err(|error| format!("does not open: {error}"))?;
        let is_changed = self.history.check(&image, state)?;
        let summary = image.scan_allocation();
        summary.map_err(|error| format!("its BAT contradicts itself: {error}"))?;
        self.check_guids(&image, state, is_changed)?;
        if self.history.is_at_rest(state) {
            let [first, second] = header_guids(&*file);
            if !image.warnings().is_empty() || first != second {
                return Err("was closed, but its headers differ".to_owned());
            }
            if image.log_state() != LogState::Empty {
                return Err("was closed, but has a log to replay".to_owned());
            }
        }
        drop(image);
        if state.number.is_multiple_of(WRITTEN_EVERY) {
            self.check_writable(state)?;
        }
        Ok(())
    }
}

impl Session {
    /// Headers are changed before anything else is, and the name of the content before content.
    fn check_guids(&self, image: &Image, state: &State, is_changed: bool) -> Result<(), String> {
        let before = header_guids(&self.base);
        let file = &state.files[0];
        let is_touched = state.kept.iter().any(|op| !is_header(&self.ops[*op]));
        for (at, guids) in HEADERS.into_iter().zip(header_guids(&**file)) {
            let is_old = before.iter().any(|old| old[..16] == guids[..16]);
            if is_touched && is_old && is_whole_header(&**file, at) {
                return Err(format!("changed under the header of before at {at:#x}"));
            }
        }
        let name = image.data_write_guid().to_bytes_le();
        if is_changed && before.iter().any(|old| old[16..32] == name) {
            return Err("content is new, its name is not".to_owned());
        }
        Ok(())
    }

    /// It can be written and closed, and is then what it was, but for what was written.
    fn check_writable(&self, state: &State) -> Result<(), String> {
        let file = Arc::new(MemoryFile::clone(&state.files[0]));
        let failed = |error| format!("cannot be written: {error}");
        let image = open(file.clone(), self.parent.clone(), true).map_err(failed)?;
        let size = image.virtual_size();
        let sector = u64::from(image.logical_sector_size());
        let at = size - sector;
        let mut before = read_places(&image, 0..at)?;
        let data = vec![254; usize::try_from(sector).unwrap()];
        image
            .write_at(at, &data)
            .and_then(|()| image.close())
            .map_err(failed)?;
        let image = open(file, self.parent.clone(), false).map_err(failed)?;
        before.push(254);
        let mut after = read_places(&image, 0..at)?;
        let mut last = [0; SECTOR];
        image.read_at(at, &mut last).map_err(failed)?;
        after.push(last[0]);
        if image.log_state() != LogState::Empty || before != after {
            return Err("writing one sector changed more".to_owned());
        }
        image.scan_allocation().map_err(failed)?;
        Ok(())
    }
}

/// A byte of each of 256 places.
fn read_places(image: &Image, range: Range<u64>) -> Result<Vec<u8>, String> {
    let step = (range.end / 256).max(1);
    let places = range.step_by(usize::try_from(step).unwrap());
    let mut bytes = vec![0; SECTOR];
    places
        .map(|at| {
            let at = at / SECTOR as u64 * SECTOR as u64;
            image
                .read_at(at, &mut bytes)
                .map_err(|error| error.to_string())?;
            Ok(bytes[0])
        })
        .collect()
}

fn is_header(op: &Op) -> bool {
    match op.change {
        Change::Write { at, .. } => HEADERS.contains(&at),
        Change::Sync | Change::SyncLast | Change::Nothing => true,
        Change::Zero(_) | Change::SetLen(_) => false,
    }
}

fn is_whole_header(file: &dyn FileAt, at: u64) -> bool {
    let mut bytes = vec![0; 4096];
    file.read_at(at, &mut bytes).expect("a file with headers");
    let sum = [bytes[4], bytes[5], bytes[6], bytes[7]];
    bytes[4..8].fill(0);
    crc32c::crc32c(&bytes).to_le_bytes() == sum
}

/// One state in so many is written to.
const WRITTEN_EVERY: usize = 16;
