//! The journal of one target: which state it is in, one durable word after the other.
//!
//! ```text
//! page 0   header, then the first entry as JSON, then zeros to the next 4096 bytes
//! page n   the next entry ...
//! ```
//! An entry counts when it and all before it check. Each is durable before the next is written, so
//! only the last can be torn: a broken entry with a sound one behind it is damage.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use failback_vhdx::FileAt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::barrier::{Barrier, Barriers};
use super::container::Container;
use super::folder::Folder;
use crate::error::{Error, ErrorKind, Result};

/// First bytes of every entry; the last one is the version.
const MAGIC: [u8; 8] = *b"FBJRNL\0\x01";
/// Entries begin at multiples of this many bytes.
const PAGE_LEN: u64 = PAGE as u64;
const PAGE: usize = 4096;
/// Bytes of one entry with its header: the longest paths fit.
const ENTRY_LEN_MAX: u64 = 64 << 10;
/// Bytes of a journal: a hundred thousand resumes.
const JOURNAL_LEN_MAX: u64 = 512 << 20;
const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";

/// The first bytes of an entry.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    /// [`MAGIC`].
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

/// What the target holds, in a word. docs/states.md says what each allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Old; the stage grows.
    Staging,
    /// Old; the stage is complete and durable.
    Staged,
    /// Mixed.
    Committing,
    /// New, not read back.
    NewUnverified,
    /// New, proven; the old one can be restored.
    NewVerified,
    /// New; nothing is left to undo it with.
    Done,
    /// Old; the stage was given up.
    Aborted,
    /// Mixed, on the way back.
    RollingBack,
    /// Old again.
    OldRestored,
}

impl Word {
    /// The word itself.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::Committing => "committing",
            Self::NewUnverified => "new_unverified",
            Self::NewVerified => "new_verified",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::RollingBack => "rolling_back",
            Self::OldRestored => "old_restored",
        }
    }

    /// Whether nothing is left to do or undo.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Aborted | Self::OldRestored)
    }

    /// Whether the target is neither the old disk nor the new one, and must not be started.
    #[must_use]
    pub fn is_mixed(self) -> bool {
        matches!(self, Self::Committing | Self::RollingBack)
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The state from here on.
    pub word: Word,
    /// With the first entry: what the job is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// With `staging`: what the source called itself; differs between runs when it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// With `staged`: what was staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// With `staged`, where a new file takes the target's place: the two files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// With `staged`, where a child is merged into the target: the three images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layered: Option<Layered>,
}

impl Entry {
    /// An entry that says nothing but its word.
    #[must_use]
    pub fn of(word: Word) -> Self {
        Self {
            word,
            begun: None,
            source: None,
            sealed: None,
            made: None,
            layered: None,
        }
    }
}

/// What a job is: all that its end needs when nobody is there to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The target as it was named, made absolute.
    pub target: String,
    /// What tells this very file from others, whatever state it is in.
    pub file_id: String,
    /// Its format, where it was named.
    pub format: Option<String>,
    /// Its parents, nearest first.
    pub parents: Vec<String>,
    /// Whether further parents were taken from where the images name them.
    pub follow_parents: bool,
    /// What tells this very file in this very state from others.
    pub identity: String,
    /// Bytes of the disk.
    pub disk_len: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// `blake3` or `xxh3`.
    pub hash: String,
    /// `full`, `changed` or `off`.
    pub verify: String,
    /// Written to the target directly, without a stage: an interrupted job leaves a mixed target.
    pub in_place: bool,
    /// The target was mixed when the job began: an earlier one wrote it in place and did not end.
    /// "Old" is mixed then, and only "new" ends that.
    #[serde(default)]
    pub began_mixed: bool,
    /// What keeps the new disk until all of it is there.
    #[serde(default)]
    pub container: Container,
    /// The stage holds what the target had before.
    pub has_undo: bool,
    /// The stage stays, for an undo, until somebody accepts the result.
    pub keeps_undo: bool,
}

impl Begun {
    /// Whether the target is neither an old disk nor the new one while the job is in this state.
    #[must_use]
    pub fn is_mixed_at(&self, word: Word) -> bool {
        let is_old = matches!(
            word,
            Word::Staging | Word::Staged | Word::Aborted | Word::OldRestored
        );
        match (self.container.replaces(), word.is_mixed()) {
            // The name is the old file's or the new one's at every moment.
            (true, is_between) => self.began_mixed && (is_old || is_between),
            (false, is_mixed) => is_mixed || self.began_mixed && is_old,
        }
    }
}

/// What was staged, when it was complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Root of the disk once the stage is applied, in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// Records of the stage.
    pub records: u64,
    /// Bytes of the stage.
    pub stage_len: u64,
    /// BLAKE3 of all record headers in order, which hold the sums of all payload.
    pub stage_hash: String,
}

/// The new file that is to take the target's place, when all of it was there, and the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Root of the new disk in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// The new file.
    pub new: FileMark,
    /// The old one; absent when there was no target.
    pub old: Option<FileMark>,
}

/// The child that is to be merged into the target, when all of it was there. VHDX images are known
/// by their `DataWriteGuid`, which changes with their content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layered {
    /// Root of the new disk in hexadecimal; absent where nothing is hashed.
    pub new_root: Option<String>,
    /// The target before it was written to.
    pub old: String,
    /// The child, and the target that it was merged into.
    pub new: String,
    /// The image of what the target had, and the target that it was merged into; absent without an
    /// undo.
    pub undo: Option<String>,
    /// BLAKE3 of what the child holds: the places, and what is there then.
    pub new_sum: String,
    /// The same of what the target had at these places; absent without an undo.
    pub old_sum: Option<String>,
}

/// What a file is known by, whatever its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// What tells this very file from others.
    pub id: String,
    /// Changes when its bytes do.
    pub content: String,
}

/// The journal of a job, open for more.
#[derive(Debug)]
pub struct Journal {
    file: Arc<dyn FileAt>,
    barriers: Barriers,
    job: Uuid,
    entries: Vec<Entry>,
    end: u64,
    has_broken_end: bool,
    is_poisoned: bool,
}

impl Journal {
    /// Begins the journal of a new job, in place of that of an older one.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn begin(folder: &dyn Folder, barriers: Barriers, first: Entry) -> Result<Self> {
        let failed = |e| Error::io(e, "begin journal");
        let mut journal = Self {
            file: folder.create(NEW_NAME).map_err(failed)?,
            barriers,
            job: Uuid::new_v4(),
            entries: Vec::new(),
            end: 0,
            has_broken_end: false,
            is_poisoned: false,
        };
        journal.append(first, Barrier::Begun)?;
        folder.rename(NEW_NAME, NAME).map_err(failed)?;
        barriers
            .pass(Barrier::Names, || folder.sync())
            .map_err(failed)?;
        Ok(journal)
    }

    /// The journal that is there; `None` when there is none.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn open(folder: &dyn Folder, barriers: Barriers) -> Result<Option<Self>> {
        let file = folder
            .open(NAME)
            .map_err(|e| Error::io(e, "open journal"))?;
        let Some(file) = file else {
            return Ok(None);
        };
        let Found {
            job,
            entries,
            end,
            has_broken_end,
        } = read_all(file.as_ref())?;
        Ok(Some(Self {
            file,
            barriers,
            job,
            entries,
            end,
            has_broken_end,
            is_poisoned: false,
        }))
    }

    /// The job's id.
    #[must_use]
    pub fn job(&self) -> Uuid {
        self.job
    }

    /// The present state.
    #[must_use]
    pub fn word(&self) -> Word {
        self.entries.last().expect("a journal has an entry").word
    }

    /// What the job is.
    #[must_use]
    pub fn begun(&self) -> &Begun {
        begun(&self.entries)
    }

    /// Whether the target is neither an old disk nor the new one.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        self.begun().is_mixed_at(self.word())
    }

    /// Whether something that does not check stands behind the last entry: an entry that was torn,
    /// so that what it allows was never done, or one that has rotted since.
    #[must_use]
    pub fn has_broken_end(&self) -> bool {
        self.has_broken_end
    }

    /// Whether COMMIT may be what does not check: the target is not what was staged for.
    #[must_use]
    pub fn may_have_lost_commit(&self, identity: &str) -> bool {
        let is_staged = self.word() == Word::Staged;
        self.has_broken_end && is_staged && self.begun().identity != identity
    }

    /// What the source called itself in the latest run.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        let mut newest_first = self.entries.iter().rev();
        newest_first.find_map(|entry| entry.source.as_deref())
    }

    /// The latest seal, unless staging went on after it.
    #[must_use]
    pub fn sealed(&self) -> Option<&Sealed> {
        let mut newest_first = self.entries.iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.sealed.as_ref()
    }

    /// The two files, unless work on the new one went on after it was sealed.
    #[must_use]
    pub fn made(&self) -> Option<&Made> {
        let mut newest_first = self.entries.iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.made.as_ref()
    }

    /// The child, unless work on it went on after it was sealed.
    #[must_use]
    pub fn layered(&self) -> Option<&Layered> {
        let mut newest_first = self.entries.iter().rev();
        let found =
            newest_first.find(|entry| matches!(entry.word, Word::Staged | Word::Staging))?;
        found.layered.as_ref()
    }

    /// Adds an entry and waits until it is durable.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; after that every further call fails.
    pub fn append(&mut self, entry: Entry, barrier: Barrier) -> Result<()> {
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

/// The journal in a state directory, to be looked at only; `None` when there is none.
///
/// # Errors
/// `Damaged`, `Io`.
pub fn peek(directory: &Path) -> Result<Option<Journal>> {
    let file = match File::open(directory.join(NAME)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(e, "open journal").path(directory)),
    };
    let found = read_all(&file)?;
    Ok(Some(Journal {
        file: Arc::new(file),
        barriers: Barriers::new(),
        job: found.job,
        entries: found.entries,
        end: found.end,
        has_broken_end: found.has_broken_end,
        // Open for reading only.
        is_poisoned: true,
    }))
}

fn begun(entries: &[Entry]) -> &Begun {
    entries[0]
        .begun
        .as_ref()
        .expect("checked when it was written or read")
}

fn encode(job: Uuid, sequence: u64, entry: &Entry) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(entry)
        .map_err(|e| Error::new(ErrorKind::Internal, "journal entry").caused_by(e))?;
    let len = u32::try_from(json.len()).ok();
    let Some(len) = len.filter(|len| u64::from(*len) + HEADER_LEN as u64 <= ENTRY_LEN_MAX) else {
        let message = "the names of target and parents are too long for the journal";
        return Err(Error::new(ErrorKind::Usage, message));
    };
    let mut header = Header {
        magic: MAGIC,
        job: *job.as_bytes(),
        sequence: sequence.into(),
        len: len.into(),
        reserved: 0.into(),
        sum: 0.into(),
    };
    header.sum = sum_of(&header, &json).into();
    let mut page = header.as_bytes().to_vec();
    page.extend_from_slice(&json);
    page.resize(page.len().next_multiple_of(PAGE), 0);
    Ok(page)
}

fn sum_of(header: &Header, json: &[u8]) -> u64 {
    let mut bytes = header.as_bytes()[..HEADER_LEN - 8].to_vec();
    bytes.extend_from_slice(json);
    xxh3_64(&bytes)
}

/// An entry that checks, the job and sequence it states, and where the next begins.
struct Parsed {
    entry: Entry,
    job: Uuid,
    sequence: u64,
    end: u64,
}

fn parse_at(file: &dyn FileAt, at: u64, len: u64) -> std::io::Result<Option<Parsed>> {
    let mut bytes = [0; HEADER_LEN];
    if at + HEADER_LEN as u64 > len {
        return Ok(None);
    }
    file.read_at(at, &mut bytes)?;
    let header = Header::ref_from_bytes(&bytes).expect("as long as a header");
    let json_len = u64::from(header.len.get());
    let start = at + HEADER_LEN as u64;
    if header.magic != MAGIC
        || json_len + HEADER_LEN as u64 > ENTRY_LEN_MAX
        || start + json_len > len
    {
        return Ok(None);
    }
    let mut json = vec![0; usize::try_from(json_len).expect("at most 64 KiB")];
    file.read_at(start, &mut json)?;
    if sum_of(header, &json) != header.sum.get() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&json).ok().map(|entry| Parsed {
        entry,
        job: Uuid::from_bytes(header.job),
        sequence: header.sequence.get(),
        end: (start + json_len).next_multiple_of(PAGE_LEN),
    }))
}

struct Found {
    job: Uuid,
    entries: Vec<Entry>,
    end: u64,
    has_broken_end: bool,
}

fn read_all(file: &dyn FileAt) -> Result<Found> {
    let failed = |e| Error::io(e, "read journal");
    let damaged = |at: u64, what: &str| {
        Error::new(ErrorKind::Damaged, format!("journal is damaged: {what}")).at(at)
    };
    let len = file.len().map_err(failed)?;
    if len > JOURNAL_LEN_MAX {
        return Err(damaged(0, "longer than any journal"));
    }
    let first = parse_at(file, 0, len).map_err(failed)?;
    let first = first.filter(|first| first.sequence == 0 && is_job(&first.entry));
    let Some(first) = first else {
        return Err(damaged(0, "its first entry does not check"));
    };
    let (job, mut end) = (first.job, first.end);
    let mut entries = vec![first.entry];
    while let Some(next) = parse_at(file, end, len).map_err(failed)?
        && next.job == job
        && next.sequence == entries.len() as u64
    {
        end = next.end;
        entries.push(next.entry);
    }
    let mut at = end + PAGE_LEN;
    while at < len {
        let later = parse_at(file, at, len).map_err(failed)?;
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
    })
}

/// Whether a first entry says what the job is, in terms that make sense.
fn is_job(entry: &Entry) -> bool {
    entry.begun.as_ref().is_some_and(|begun| {
        crate::units::BlockSize::new(begun.block_size.into()).is_ok()
            && begun.disk_len <= crate::units::DISK_LEN_MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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

    // Goal: a flipped bit fails closed: the journal is refused, or, in the last entry, says what it
    // said before. Method: flip a bit of every byte.
    #[test]
    fn a_flipped_bit_is_found() {
        let bytes = four_entries();
        assert_eq!(bytes.len(), 4 * PAGE);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let (entry, within) = (at / PAGE, at % PAGE);
            match read_all(&MemoryFile::from_bytes(&bytes)) {
                Ok(found) if found.entries.len() == 4 => assert!(within > 60, "{at}"),
                Ok(found) => {
                    let seen = (entry, found.entries.len(), found.has_broken_end);
                    assert_eq!(seen, (3, 3, true), "{at}");
                }
                Err(error) => assert_eq!((entry < 3, error.kind()), (true, ErrorKind::Damaged)),
            }
        }
    }

    // Goal: what was cut off was never durable. Method: every length.
    #[test]
    fn a_torn_end_is_dropped() {
        let bytes = four_entries();
        for len in PAGE..bytes.len() {
            let found = read_all(&MemoryFile::from_bytes(&bytes[..len])).unwrap();
            assert!(found.entries.len() >= len / PAGE);
            assert_eq!(found.end, (found.entries.len() * PAGE) as u64);
        }
    }
}
