//! The places in the writer that flush, told by what was written before each flush.

use crate::record::{Change, HEADERS, LOG, Op};

/// A place in the source that flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// A new image: everything but headers and file identifier.
    CreateBody,
    /// A new image: headers and file identifier.
    CreateHead,
    /// The first of the two headers in an update of both.
    HeaderFirst,
    /// The second one.
    HeaderSecond,
    /// The pages of a replayed log, before the log is given up.
    Replay,
    /// Payload, before the log entry that points to it.
    Payload,
    /// A log entry, before its pages are written in place.
    LogEntry,
    /// Nothing but pages in place, before the log entry is given up.
    PagesInPlace,
}

pub(crate) const SITES: [Site; 8] = [
    Site::CreateBody,
    Site::CreateHead,
    Site::HeaderFirst,
    Site::HeaderSecond,
    Site::Replay,
    Site::Payload,
    Site::LogEntry,
    Site::PagesInPlace,
];

/// The site of each flush: index of the change, site. `is_creation` says that the record is that of
/// a new image and of nothing else.
pub(crate) fn find(ops: &[Op], is_creation: bool) -> Vec<(usize, Site)> {
    let mut files = [FileSyncs::default(), FileSyncs::default()];
    let mut found = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        let file = &mut files[op.file];
        match &op.change {
            Change::Write { at, data } => file.write(*at, data),
            Change::Zero(range) => file.last_write = Some(range.start),
            Change::SetLen(_) | Change::Nothing => {}
            Change::Sync if is_creation => found.push((index, file.creation())),
            Change::Sync | Change::SyncLast => found.push((index, file.session())),
        }
    }
    found
}

/// The same changes without these flushes.
pub(crate) fn without(ops: &[Op], left_out: impl Fn(usize) -> bool) -> Vec<Op> {
    let mut ops = ops.to_vec();
    for (index, op) in ops.iter_mut().enumerate() {
        if op.is_sync() && left_out(index) {
            op.change = Change::Nothing;
        }
    }
    ops
}

/// What was seen of one file.
#[derive(Debug, Default)]
struct FileSyncs {
    /// Where the last write since the last sync went.
    last_write: Option<u64>,
    headers: usize,
    has_log: bool,
    has_body: bool,
    /// Where the pages of the last log entry belong.
    pages: Vec<u64>,
    /// Something else was written since the last sync.
    has_payload: bool,
}

impl FileSyncs {
    fn creation(&mut self) -> Site {
        match std::mem::replace(&mut self.has_body, true) {
            false => Site::CreateBody,
            true => Site::CreateHead,
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        self.last_write = Some(at);
        if LOG.contains(&at) && data.starts_with(b"loge") {
            self.pages = pages_of(data);
        }
        let is_structure = HEADERS.contains(&at) || LOG.contains(&at) || self.pages.contains(&at);
        self.has_payload |= !is_structure;
    }

    fn session(&mut self) -> Site {
        let has_payload = std::mem::take(&mut self.has_payload);
        match self.last_write.take() {
            Some(at) if HEADERS.contains(&at) => {
                self.headers += 1;
                match self.headers % 2 {
                    1 => Site::HeaderFirst,
                    _ => Site::HeaderSecond,
                }
            }
            Some(at) if LOG.contains(&at) => {
                self.has_log = true;
                Site::LogEntry
            }
            Some(_) if !self.has_log => Site::Replay,
            Some(at) if !has_payload && self.pages.contains(&at) => Site::PagesInPlace,
            _ => Site::Payload,
        }
    }
}

/// Places of the pages that a log entry describes (sections 2.3.1.1, 2.3.1.3).
fn pages_of(entry: &[u8]) -> Vec<u64> {
    let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
    let count = number(24) & u64::from(u32::MAX);
    let descriptors = (0..count as usize).map(|index| 64 + 32 * index);
    descriptors.map(|at| number(at + 16)).collect()
}
