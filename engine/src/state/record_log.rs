//! A file of records, each durable before the next is written: what a journal is written in.
//!
//! ```text
//! page 0   header, then the first entry as JSON, then zeros; from the middle of the page on the
//!          same once more, if it fits
//! page n   the next entry ...
//! ```
//! An entry counts when one of its copies and all entries before it check: a sector that rots takes
//! no word away. Each is durable before the next is written, so only the last can be torn: a broken
//! entry with a sound one behind it is damage.

use std::fmt::Debug;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use failback_vhdx::FileAt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::barrier::{Barrier, Barriers};
use super::folder::Folder;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::random_id;

/// Entries begin at multiples of this many bytes.
const PAGE_LEN: u64 = PAGE as u64;
const PAGE: usize = 4096;
/// An entry that is no longer than this is in its page twice, each time on sectors of its own.
const COPY: usize = PAGE / 2;
/// Bytes of one entry with its header: the longest paths fit.
const ENTRY_LEN_MAX: u64 = 64 << 10;
/// Bytes of a log: a hundred thousand resumes.
const LOG_LEN_MAX: u64 = 512 << 20;

/// What a log holds.
pub(crate) trait LogEntry: Serialize + DeserializeOwned + Debug {
    /// First bytes of every entry; the last one is the version.
    const MAGIC: [u8; 8];
    /// The file's name.
    const NAME: &'static str;
    /// Its name until the first entry is durable.
    const NEW_NAME: &'static str;

    /// Whether a log can begin with it: it says what all others are about, in terms that make
    /// sense.
    fn can_begin(&self) -> bool;
}

/// The first bytes of an entry.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    /// [`LogEntry::MAGIC`].
    magic: [u8; 8],
    /// The job; entries of another one do not count.
    job: [u8; 16],
    /// Entries before this one.
    sequence: U64,
    /// Bytes of JSON that follow.
    len: U32,
    /// Zero.
    reserved: U32,
    /// XXH3-64 of the bytes before and of the JSON: against accidents.
    sum: U64,
}

const HEADER_LEN: usize = size_of::<Header>();
const _: () = assert!(HEADER_LEN == 48);

/// A log, open for more.
#[derive(Debug)]
pub(crate) struct RecordLog<E> {
    file: Arc<dyn FileAt>,
    barriers: Barriers,
    job: Uuid,
    entries: Vec<E>,
    end: u64,
    has_broken_end: bool,
    broken_copies: u64,
    is_poisoned: bool,
}

impl<E: LogEntry> RecordLog<E> {
    /// Begins the log of a new job, in place of that of an older one.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn begin(
        folder: &dyn Folder,
        barriers: Barriers,
        first: E,
        barrier: Barrier,
    ) -> Result<Self> {
        let failed = |e| Error::io(e, "begin journal");
        let mut log = Self {
            file: folder.create(E::NEW_NAME).map_err(failed)?,
            barriers,
            job: random_id(),
            entries: Vec::new(),
            end: 0,
            has_broken_end: false,
            broken_copies: 0,
            is_poisoned: false,
        };
        log.append(first, barrier)?;
        folder.rename(E::NEW_NAME, E::NAME).map_err(failed)?;
        barriers
            .pass(Barrier::Names, || folder.sync())
            .map_err(failed)?;
        Ok(log)
    }

    /// The log that is there, to work on; `None` when there is none. All that it says is durable
    /// then.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Io`.
    pub(crate) fn open(folder: &dyn Folder, barriers: Barriers) -> Result<Option<Self>> {
        let file = folder
            .open(E::NAME)
            .map_err(|e| Error::io(e, "open journal"))?;
        let Some(file) = file else {
            return Ok(None);
        };
        barriers
            .pass(Barrier::Found, || file.sync())
            .and_then(|()| barriers.pass(Barrier::FoundName, || folder.sync()))
            .map_err(|e| Error::io(e, "flush journal"))?;
        let found = read_all(file.as_ref())?;
        Ok(Some(Self::of(found, file, barriers, false)))
    }

    /// The log in a state directory, to be looked at only; `None` when there is none.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Io`.
    pub(crate) fn peek(directory: &Path) -> Result<Option<Self>> {
        let mut options = File::options();
        options.read(true);
        crate::system::keep_private(&mut options);
        let file = match options.open(directory.join(E::NAME)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(e, "open journal").path(directory)),
        };
        let found = read_all(&file)?;
        // Open for reading only: nothing can be added.
        Ok(Some(Self::of(found, Arc::new(file), Barriers::new(), true)))
    }

    fn of(found: Found<E>, file: Arc<dyn FileAt>, barriers: Barriers, is_poisoned: bool) -> Self {
        Self {
            file,
            barriers,
            job: found.job,
            entries: found.entries,
            end: found.end,
            has_broken_end: found.has_broken_end,
            broken_copies: found.broken_copies,
            is_poisoned,
        }
    }

    /// The job's id.
    pub(crate) fn job(&self) -> Uuid {
        self.job
    }

    /// All entries; there is one at least.
    pub(crate) fn entries(&self) -> &[E] {
        &self.entries
    }

    /// The latest entry.
    pub(crate) fn last(&self) -> &E {
        self.entries.last().expect("a log has an entry")
    }

    /// Whether something that does not check stands behind the last entry: an entry that was torn,
    /// so that what it allows was never done, or one that has rotted since.
    pub(crate) fn has_broken_end(&self) -> bool {
        self.has_broken_end
    }

    /// Entries of which one copy does not check.
    pub(crate) fn broken_copies(&self) -> u64 {
        self.broken_copies
    }

    /// Adds an entry and waits until it is durable.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; after that every further call fails.
    pub(crate) fn append(&mut self, entry: E, barrier: Barrier) -> Result<()> {
        if self.is_poisoned {
            let message = "an earlier write to the journal failed; nothing more is written";
            return Err(Error::new(ErrorKind::Io, message));
        }
        let failed = |e| Error::io(e, "write journal");
        let page = encode(self.job, self.entries.len() as u64, &entry)?;
        self.is_poisoned = true;
        self.file.write_at(self.end, &page).map_err(failed)?;
        let file = self.file.as_ref();
        self.barriers
            .pass(barrier, || file.sync())
            .map_err(failed)?;
        self.is_poisoned = false;
        self.has_broken_end = false;
        self.end += page.len() as u64;
        self.entries.push(entry);
        Ok(())
    }
}

fn encode<E: LogEntry>(job: Uuid, sequence: u64, entry: &E) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(entry)
        .map_err(|e| Error::new(ErrorKind::Internal, "journal entry").caused_by(e))?;
    let len = u32::try_from(json.len()).ok();
    let Some(len) = len.filter(|len| u64::from(*len) + HEADER_LEN as u64 <= ENTRY_LEN_MAX) else {
        let message = format!(
            "an entry of {} bytes is too long for the journal: {ENTRY_LEN_MAX} at most",
            json.len()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    };
    let mut header = Header {
        magic: E::MAGIC,
        job: *job.as_bytes(),
        sequence: sequence.into(),
        len: len.into(),
        reserved: 0.into(),
        sum: 0.into(),
    };
    header.sum = sum_of(&header, &json).into();
    let mut page = header.as_bytes().to_vec();
    page.extend_from_slice(&json);
    if page.len() <= COPY {
        page.resize(COPY, 0);
        page.extend_from_within(..);
    }
    page.resize(page.len().next_multiple_of(PAGE), 0);
    Ok(page)
}

fn sum_of(header: &Header, json: &[u8]) -> u64 {
    let mut bytes = header.as_bytes()[..HEADER_LEN - 8].to_vec();
    bytes.extend_from_slice(json);
    xxh3_64(&bytes)
}

/// An entry that checks, the job and sequence it states, and where the next begins.
struct Parsed<E> {
    entry: E,
    job: Uuid,
    sequence: u64,
    end: u64,
    /// It is there twice, and one of the two does not check.
    has_broken_copy: bool,
}

/// The entry of a page, from whichever copy checks.
fn parse_at<E: LogEntry>(
    file: &dyn FileAt,
    at: u64,
    len: u64,
) -> std::io::Result<Option<Parsed<E>>> {
    let first = parse_copy::<E>(file, at, len, ENTRY_LEN_MAX)?;
    let has_second = first.as_ref().is_none_or(|first| first.len <= COPY as u64);
    let second = match has_second {
        true => parse_copy(file, at + COPY as u64, len, COPY as u64)?,
        false => None,
    };
    let has_broken_copy = has_second && (first.is_none() || second.is_none());
    Ok(first.or(second).map(|copy| Parsed {
        entry: copy.entry,
        job: copy.job,
        sequence: copy.sequence,
        end: (at + copy.len).next_multiple_of(PAGE_LEN),
        has_broken_copy,
    }))
}

struct Copied<E> {
    entry: E,
    job: Uuid,
    sequence: u64,
    /// Bytes of header and JSON.
    len: u64,
}

fn parse_copy<E: LogEntry>(
    file: &dyn FileAt,
    at: u64,
    len: u64,
    len_max: u64,
) -> std::io::Result<Option<Copied<E>>> {
    let mut bytes = [0; HEADER_LEN];
    if at + HEADER_LEN as u64 > len {
        return Ok(None);
    }
    file.read_at(at, &mut bytes)?;
    let header = Header::ref_from_bytes(&bytes).expect("as long as a header");
    let json_len = u64::from(header.len.get());
    let start = at + HEADER_LEN as u64;
    if header.magic != E::MAGIC || json_len + HEADER_LEN as u64 > len_max || start + json_len > len
    {
        return Ok(None);
    }
    let mut json = vec![0; usize::try_from(json_len).expect("at most 64 KiB")];
    file.read_at(start, &mut json)?;
    if sum_of(header, &json) != header.sum.get() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&json).ok().map(|entry| Copied {
        entry,
        job: Uuid::from_bytes(header.job),
        sequence: header.sequence.get(),
        len: HEADER_LEN as u64 + json_len,
    }))
}

struct Found<E> {
    job: Uuid,
    entries: Vec<E>,
    end: u64,
    has_broken_end: bool,
    broken_copies: u64,
}

fn read_all<E: LogEntry>(file: &dyn FileAt) -> Result<Found<E>> {
    let failed = |e| Error::io(e, "read journal");
    let damaged = |at: u64, what: &str| {
        Error::new(ErrorKind::Damaged, format!("journal is damaged: {what}")).at(at)
    };
    let len = file.len().map_err(failed)?;
    if len > LOG_LEN_MAX {
        return Err(damaged(0, "longer than any journal"));
    }
    refuse_other_version(file, len, E::MAGIC)?;
    let first: Option<Parsed<E>> = parse_at(file, 0, len).map_err(failed)?;
    let first = first.filter(|first| first.sequence == 0 && first.entry.can_begin());
    let Some(first) = first else {
        return Err(damaged(0, "its first entry does not check"));
    };
    let (job, mut end) = (first.job, first.end);
    let mut broken_copies = u64::from(first.has_broken_copy);
    let mut entries = vec![first.entry];
    while let Some(next) = parse_at(file, end, len).map_err(failed)?
        && next.job == job
        && next.sequence == entries.len() as u64
    {
        end = next.end;
        broken_copies += u64::from(next.has_broken_copy);
        entries.push(next.entry);
    }
    let mut at = end + PAGE_LEN;
    while at < len {
        let later: Option<Parsed<E>> = parse_at(file, at, len).map_err(failed)?;
        if later.is_some_and(|later| later.job == job) {
            return Err(damaged(end, "an entry does not check, one behind it does"));
        }
        at += PAGE_LEN;
    }
    Ok(Found {
        job,
        entries,
        end,
        has_broken_end: len > end,
        broken_copies,
    })
}

/// A journal of another release is told from a damaged one when both copies say so, or its only
/// one.
fn refuse_other_version(file: &dyn FileAt, len: u64, ours: [u8; 8]) -> Result<()> {
    let version_at = |at: u64| -> Result<Option<u8>> {
        let mut magic = [0; 8];
        if at + magic.len() as u64 > len {
            return Ok(None);
        }
        file.read_at(at, &mut magic)
            .map_err(|e| Error::io(e, "read journal"))?;
        let (name, version) = magic.split_at(7);
        Ok((name == &ours[..7]).then(|| version[0]))
    };
    let known = ours[7];
    match (version_at(0)?, version_at(COPY as u64)?) {
        (Some(version), second) if version != known && second.is_none_or(|v| v == version) => {
            let message =
                format!("journal is of version {version}, and only {known} is known here");
            Err(Error::new(ErrorKind::Unsupported, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Begun, Container, Entry, Word};
    use failback_vhdx::MemoryFile;

    fn begin() -> Begun {
        Begun {
            target: "disk.vhdx".into(),
            file_id: "1:2".into(),
            format: None,
            parents: Vec::new(),
            follow_parents: false,
            identity: "1:2:3".into(),
            disk_len: 1 << 30,
            block_size: 1 << 20,
            hash: "blake3".into(),
            verify: "changed".into(),
            in_place: false,
            began_mixed: false,
            container: Container::Log,
            has_undo: true,
            keeps_undo: false,
        }
    }

    /// A journal of four entries, and where each begins.
    fn four_entries() -> Vec<u8> {
        let first = Entry {
            begun: Some(begin()),
            ..Entry::of(Word::Staging)
        };
        let rest = [Word::Staged, Word::Committing, Word::NewUnverified].map(Entry::of);
        let job = Uuid::from_u128(9);
        let entries = std::iter::once(first).chain(rest).zip(0..);
        entries
            .flat_map(|(entry, sequence)| encode(job, sequence, &entry).unwrap())
            .collect()
    }

    // Goal: a rotted bit takes no word away. Method: flip every bit of every entry that is there
    // twice; all entries are found, and what was got over is told.
    #[test]
    fn a_flipped_bit_is_healed() {
        let bytes = four_entries();
        assert_eq!(bytes.len(), 4 * PAGE);
        let file = MemoryFile::from_bytes(&bytes);
        let sound = read_all::<Entry>(&file).unwrap().entries;
        for bit in 0..bytes.len() * 8 {
            let (at, flipped) = (bit / 8, [bytes[bit / 8] ^ 1 << (bit % 8)]);
            file.write_at(at as u64, &flipped).unwrap();
            let found = read_all::<Entry>(&file).unwrap();
            assert_eq!(found.entries, sound, "bit {bit}");
            assert!(!found.has_broken_end, "bit {bit}");
            let says_something = at % COPY < HEADER_LEN;
            assert!(found.broken_copies == 1 || !says_something, "bit {bit}");
            file.write_at(at as u64, &bytes[at..=at]).unwrap();
        }
    }

    // Goal: a rotted or torn sector takes no word away. Method: lose every sector in turn.
    #[test]
    fn a_lost_sector_is_healed() {
        let bytes = four_entries();
        let sound = read_all::<Entry>(&MemoryFile::from_bytes(&bytes))
            .unwrap()
            .entries;
        for sector in 0..bytes.len() / 512 {
            let mut bytes = bytes.clone();
            bytes[sector * 512..][..512].fill(0xff);
            let found = read_all::<Entry>(&MemoryFile::from_bytes(&bytes)).unwrap();
            assert_eq!(found.entries, sound, "sector {sector}");
        }
    }

    // Goal: damage of both copies fails closed: the journal is refused, or, in the last entry, says
    // what it said before and that something stands behind. Method: flip a bit of every byte in
    // both copies.
    #[test]
    fn damage_of_both_copies_is_found() {
        let bytes = four_entries();
        for at in (0..bytes.len()).filter(|at| at % PAGE < COPY) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes[at + COPY] ^= 1 << ((at + 3) % 8);
            let (entry, within) = (at / PAGE, at % PAGE);
            match read_all::<Entry>(&MemoryFile::from_bytes(&bytes)) {
                Ok(found) if found.entries.len() == 4 => assert!(within > 60, "{at}"),
                Ok(found) => {
                    let seen = (entry, found.entries.len(), found.has_broken_end);
                    assert_eq!(seen, (3, 3, true), "{at}");
                }
                Err(error) => assert_eq!((entry < 3, error.kind()), (true, ErrorKind::Damaged)),
            }
        }
    }

    // Goal: an entry that does not fit twice is kept once, and the next is found behind it. Method:
    // long names; a flipped bit is damage then.
    #[test]
    fn a_long_entry_is_there_once() {
        let long = Entry {
            begun: Some(Begun {
                parents: vec!["p".repeat(3000), "q".repeat(3000)],
                ..begin()
            }),
            ..Entry::of(Word::Staging)
        };
        let job = Uuid::from_u128(9);
        let mut bytes = encode(job, 0, &long).unwrap();
        assert_eq!(bytes.len(), 2 * PAGE);
        bytes.extend(encode(job, 1, &Entry::of(Word::Staged)).unwrap());
        let found = read_all::<Entry>(&MemoryFile::from_bytes(&bytes)).unwrap();
        assert_eq!((found.entries.len(), found.broken_copies), (2, 0));
        bytes[1000] ^= 1;
        let error = read_all::<Entry>(&MemoryFile::from_bytes(&bytes))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }

    // Goal: a journal of another release is not called damaged. Method: that of the first version,
    // which had one copy of each entry.
    #[test]
    fn another_version_is_named() {
        let mut bytes = four_entries();
        bytes[7] = 1;
        bytes[COPY..PAGE].fill(0);
        let error = read_all::<Entry>(&MemoryFile::from_bytes(&bytes))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.chain().contains("version 1"), "{}", error.chain());
    }

    // Goal: what was cut off was never durable. Method: every length; a copy that is whole counts.
    #[test]
    fn a_torn_end_is_dropped() {
        let bytes = four_entries();
        for len in PAGE..bytes.len() {
            let found = read_all::<Entry>(&MemoryFile::from_bytes(&bytes[..len])).unwrap();
            assert!(found.entries.len() >= len / PAGE);
            assert!(found.entries.len() <= len.div_ceil(PAGE));
            assert_eq!(found.end, (found.entries.len() * PAGE) as u64);
        }
    }
}
