//! What a job has done, one durable record after the other. A record that allows a step is durable
//! before the step, and one that tells of its effect comes after it: whoever goes on after a crash
//! does the step again, and every step can be done again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::phase::{Ask, Phase, Position, Way};
use super::spec::JobSpec;
use crate::error::Result;
use crate::operation::Writes;
use crate::state::{Barrier, Barriers, Folder, LogEntry, RecordLog};

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written: milliseconds since 1970, by this host's clock. Nothing is ordered by
    /// it.
    pub at_ms: u64,
    /// Where the job is from here on.
    pub position: Position,
    /// With the first record: what the job is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Box<Begun>>,
    /// What there is to know, beside the position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fact: Option<Fact>,
}

/// What a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The same for every attempt to start the same job.
    pub key: Option<String>,
    /// What it is to do.
    pub spec: JobSpec,
    /// The pair's epoch when it began.
    pub epoch: u64,
    /// 16 random bytes that tell it from another job of the same name.
    #[serde(default)]
    pub token: [u8; 16],
}

/// Something that a job found out or did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    /// A rule of the preflight, and what it found.
    Checked {
        /// Id of the rule.
        rule: String,
        /// Of which disk; empty for the machine.
        disk: String,
        /// Whether the job can go on.
        holds: bool,
        /// In words.
        said: String,
        /// Where the rule is from, when it is a platform's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// How targets will be made equal, and why.
    Chosen {
        /// The way.
        way: Way,
        /// Reason codes.
        reasons: Vec<String>,
        /// Downtime that the planner expects of it, seconds; `None`: nothing was measured.
        downtime: Option<f64>,
        /// What it rests on, disk by disk.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        plans: Vec<DiskPlan>,
    },
    /// Somebody asked for something.
    Asked {
        /// What.
        ask: Ask,
    },
    /// Snapshots are to be made for a pass; each may exist from here on.
    PassBegins {
        /// Number of the pass, from 1.
        pass: u32,
    },
    /// All disks are staged as they were in the snapshots of a pass.
    PassEnded {
        /// The pass.
        pass: u32,
        /// Seconds that it took.
        seconds: f64,
        /// Each disk.
        disks: Vec<Moved>,
    },
    /// The snapshots of a pass are gone.
    Released {
        /// The pass.
        pass: u32,
    },
    /// Downtime, if the source were stopped now.
    Predicted {
        /// Seconds.
        downtime: f64,
        /// What they are made of.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parts: Vec<DowntimePart>,
    },
    /// The source is being asked to stop: T0 of the downtime.
    Stopping {
        /// It had power: it gets it back if the job is given up.
        was_on: bool,
    },
    /// The source has no power.
    Stopped {
        /// Power was taken away: the guest did not shut down.
        forced: bool,
    },
    /// A disk of the stopped source, which nobody has open.
    Quiet {
        /// The disk.
        disk: String,
        /// What tells it in this state from any other.
        identity: String,
    },
    /// A map of a disk was made of what a tracker named. Whether it was used says
    /// [`Moved::hinted`].
    Hinted {
        /// The disk.
        disk: String,
        /// Root of the source if the tracker spoke true.
        root: String,
        /// Bytes that were read of it.
        read: u64,
    },
    /// A hint was not used.
    HintRejected {
        /// The disk.
        disk: String,
        /// `hint_rejected:` and why.
        reason: String,
    },
    /// All of a stopped disk was read after the target was started, and found to be what was sent.
    Scanned {
        /// The disk.
        disk: String,
        /// Bytes that were read of it.
        read: u64,
    },
    /// All that a stopped disk has is sealed beside its target.
    Final {
        /// What was moved.
        moved: Moved,
    },
    /// A target became what was sealed.
    Applied {
        /// The disk.
        disk: String,
        /// State of the target in a word.
        word: String,
        /// What tells it in this state from any other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
    },
    /// Who is in charge of the pair.
    Epoch {
        /// The new epoch.
        epoch: u64,
        /// The side; `None`: nobody may start the machine.
        authority: Option<String>,
    },
    /// A machine was started. Of the target it is T1 of the downtime.
    Started {
        /// The side.
        side: String,
        /// What the probe said of it: the first line, escaped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<String>,
    },
    /// What will be asked when nobody asks for anything before.
    Deadline {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// What.
        ask: Ask,
    },
    /// Something was let go of, or brought back, and is not touched again.
    Item {
        /// What: `accept:os`, `delete:source`, `restore:os`.
        item: String,
        /// How it went.
        said: String,
    },
    /// What the target's guest wrote since it was started, which an undo takes away.
    Lost {
        /// The disk.
        disk: String,
        /// What is known of it.
        writes: Writes,
    },
    /// The job will go on by itself.
    Retry {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// How often that happened since the job last got on, from 1.
        attempt: u32,
    },
    /// Why the job stands.
    Failed {
        /// Kind of the error.
        kind: String,
        /// One line.
        message: String,
        /// Trying again may help by itself.
        is_transient: bool,
    },
}

impl Fact {
    /// Cuts what others said, which is of any length, to what fits an entry.
    fn cut(&mut self) {
        let said = match self {
            Self::Checked { said, .. } | Self::Item { said, .. } => said,
            Self::Started {
                said: Some(said), ..
            } => said,
            Self::Failed { message, .. } => message,
            Self::HintRejected { reason, .. } => reason,
            _ => return,
        };
        if said.len() > SAID_LEN_MAX {
            said.truncate(said.floor_char_boundary(SAID_LEN_MAX));
            said.push_str(CUT_MARK);
        }
    }
}

/// Bytes that are kept of a text in a fact. As JSON a byte can take six; an entry has 64 KiB.
const SAID_LEN_MAX: usize = 8 << 10;
/// Ends a text of which that is not all.
const CUT_MARK: &str = " [cut]";

/// What the planner expects of either way, for one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// The disk.
    pub disk: String,
    /// `delta` or `full`: the better one for this disk.
    pub strategy: Option<String>,
    /// A delta; `None` where nothing was measured.
    pub delta: Option<Expected>,
    /// A full copy.
    pub full: Option<Expected>,
    /// Share of the pieces that differ: an interval that holds the truth 19 times of 20.
    pub differing: Option<(f64, f64)>,
}

/// What a way is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Seconds from start to end.
    pub seconds: f64,
    /// Payload bytes.
    pub bytes: u64,
    /// Seconds for which the machine stands still.
    pub downtime: f64,
}

/// A part of a predicted downtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DowntimePart {
    /// `stop`, `copy`, `apply`, `start`.
    pub part: String,
    /// Seconds.
    pub seconds: f64,
    /// What they rest on.
    pub basis: Basis,
}

/// What a number rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A default, or what the job's policy says.
    Assumed,
    /// Worked out from a sample.
    Estimated,
    /// It took that long the last time.
    Measured,
}

impl Basis {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Assumed => "assumed",
            Self::Estimated => "estimated",
            Self::Measured => "measured",
        }
    }
}

/// What a pass, or the final copy, did for one disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The disk.
    pub disk: String,
    /// Root of the content, hexadecimal; the source's and the target's. `None` where nothing was
    /// hashed.
    pub root: Option<String>,
    /// Bytes that differed, in 4 KiB units.
    pub changed: u64,
    /// Bytes of payload after compression.
    pub sent: u64,
    /// Bytes of the source that were read.
    pub source_read: u64,
    /// Bytes on the link, both directions.
    pub wire: u64,
    /// Seconds.
    pub seconds: f64,
    /// Reason codes.
    pub reasons: Vec<String>,
    /// Only what a tracker named was read of the source: the root is right if that spoke true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hinted: bool,
    /// What tells the target, and what is staged for it, from any other state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

impl LogEntry for Record {
    const MAGIC: [u8; 8] = *b"FBJOB\0\0\x01";
    const NAME: &'static str = "job";
    const NEW_NAME: &'static str = "job.new";

    fn can_begin(&self) -> bool {
        let is_first = self.position == Position::at(Phase::Created);
        self.begun.is_some() && is_first
    }
}

/// Hears of each record once it is durable.
pub(crate) type Hears = Arc<dyn Fn(&Record) + Send + Sync>;

/// The journal of a job.
pub(crate) struct JobJournal {
    log: RecordLog<Record>,
    hears: Option<Hears>,
}

impl std::fmt::Debug for JobJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobJournal")
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl JobJournal {
    /// Begins the journal of a new job.
    pub(crate) fn begin(folder: &dyn Folder, barriers: Barriers, begun: Begun) -> Result<Self> {
        let first = Record {
            at_ms: now_ms(),
            position: Position::at(Phase::Created),
            begun: Some(Box::new(begun)),
            fact: None,
        };
        RecordLog::begin(folder, barriers, first, Barrier::Job).map(Self::of)
    }

    /// The journal that is there.
    pub(crate) fn open(folder: &dyn Folder, barriers: Barriers) -> Result<Option<Self>> {
        Ok(RecordLog::open(folder, barriers)?.map(Self::of))
    }

    fn of(log: RecordLog<Record>) -> Self {
        Self { log, hears: None }
    }

    /// From now on somebody hears of each record.
    pub(crate) fn tell(&mut self, hears: Hears) {
        self.hears = Some(hears);
    }

    /// All records.
    pub(crate) fn records(&self) -> &[Record] {
        self.log.entries()
    }

    /// What the job is.
    pub(crate) fn begun(&self) -> &Begun {
        begun_of(self.records())
    }

    /// Where the job is.
    pub(crate) fn position(&self) -> Position {
        self.log.last().position
    }

    /// Notes a fact where the job is.
    pub(crate) fn note(&mut self, fact: Fact) -> Result<()> {
        self.append(self.position(), Some(fact))
    }

    /// Moves the job on.
    pub(crate) fn go_to(&mut self, position: Position, fact: Option<Fact>) -> Result<()> {
        self.append(position, fact)
    }

    fn append(&mut self, position: Position, mut fact: Option<Fact>) -> Result<()> {
        if let Some(fact) = &mut fact {
            fact.cut();
        }
        let record = Record {
            at_ms: now_ms(),
            position,
            begun: None,
            fact,
        };
        self.log.append(record, Barrier::Job)?;
        if let Some(hears) = &self.hears {
            hears(self.log.last());
        }
        Ok(())
    }
}

/// The records of a job in its directory, to be looked at; `None` when there is none.
///
/// # Errors
/// `Damaged`, `Unsupported`, `Io`.
pub(crate) fn peek(directory: &std::path::Path) -> Result<Option<Vec<Record>>> {
    let log: Option<RecordLog<Record>> = RecordLog::peek(directory)?;
    Ok(log.map(|log| log.entries().to_vec()))
}

pub(crate) fn begun_of(records: &[Record]) -> &Begun {
    let begun = records.first().and_then(|first| first.begun.as_deref());
    begun.expect("checked when it was written or read")
}

pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::ops::Range;
    use std::sync::Mutex;

    use failback_vhdx::{FileAt, FileExtent};

    use super::*;
    use crate::job::Epoch;
    use crate::state::Elsewhere;

    /// Files that a power cut takes back to what was flushed; names stay.
    #[derive(Debug, Default)]
    struct Volatile(Mutex<BTreeMap<String, Arc<Bytes>>>);

    #[derive(Debug, Default)]
    struct Bytes(Mutex<(Vec<u8>, Vec<u8>)>);

    impl Volatile {
        fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Bytes>>> {
            self.0.lock().unwrap()
        }

        fn cut_power(&self) {
            for file in self.files().values() {
                let mut file = file.0.lock().unwrap();
                file.0 = file.1.clone();
            }
        }
    }

    impl Folder for Volatile {
        fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
            let file = self.files().get(name).cloned();
            Ok(file.map(|file| -> Arc<dyn FileAt> { file }))
        }

        fn forget(&self, name: &str, _from: u64) -> io::Result<bool> {
            Ok(self.files().contains_key(name))
        }

        fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
            let file = Arc::<Bytes>::default();
            self.files().insert(name.to_owned(), file.clone());
            Ok(file)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            let file = self.files().remove(from).ok_or(io::ErrorKind::NotFound)?;
            self.files().insert(to.to_owned(), file);
            Ok(())
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.files().remove(name);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn elsewhere(&self) -> Option<Elsewhere<'_>> {
            None
        }
    }

    impl FileAt for Bytes {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().0.len() as u64)
        }

        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            let bytes = self.0.lock().unwrap();
            let found = bytes.0.get(at..at + buf.len());
            buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            let mut bytes = self.0.lock().unwrap();
            let end = bytes.0.len().max(at + data.len());
            bytes.0.resize(end, 0);
            bytes.0[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            let len = usize::try_from(len).unwrap();
            self.0.lock().unwrap().0.resize(len, 0);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            let mut bytes = self.0.lock().unwrap();
            bytes.1 = bytes.0.clone();
            Ok(())
        }

        fn zero(&self, range: Range<u64>) -> io::Result<()> {
            let len = usize::try_from(range.end - range.start).unwrap();
            self.write_at(range.start, &vec![0; len])
        }

        fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
            Ok(())
        }

        fn extent_at(&self, _at: u64) -> io::Result<FileExtent> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn begun() -> Begun {
        Begun {
            key: None,
            spec: JobSpec::new("web").disk("os", "/cloud/os.raw", "/vm/os.raw"),
            epoch: 1,
            token: [7; 16],
        }
    }

    /// Whether a job's journal and a pair's fence say after a power cut what they said before it.
    fn lasts(barriers: Barriers) -> bool {
        let folder = Volatile::default();
        let mut journal = JobJournal::begin(&folder, barriers, begun()).unwrap();
        let before = journal.position();
        journal
            .go_to(
                Position::at(Phase::Applying),
                Some(Fact::Stopped { forced: true }),
            )
            .unwrap();
        assert_ne!(journal.position(), before);
        let epoch = |epoch| Epoch {
            epoch,
            authority: None,
            job: "web".to_owned(),
        };
        let mut fence = RecordLog::begin(&folder, barriers, epoch(1), Barrier::Job).unwrap();
        fence.append(epoch(2), Barrier::Job).unwrap();
        let said = (journal.records().to_vec(), fence.last().clone());

        folder.cut_power();

        let journal = JobJournal::open(&folder, Barriers::new());
        let fence: Result<Option<RecordLog<Epoch>>> = RecordLog::open(&folder, Barriers::new());
        let found = (
            journal.ok().flatten().map(|it| it.records().to_vec()),
            fence.ok().flatten().map(|it| it.last().clone()),
        );
        found == (Some(said.0), Some(said.1))
    }

    // Goal: no finding and no error is too long for the journal that has to take it, and who reads
    // one that was cut sees that. Method: texts of characters that take most room, of every length
    // around the bound; short ones stay.
    #[test]
    fn what_others_say_fits_the_journal() {
        let folder = Volatile::default();
        let mut journal = JobJournal::begin(&folder, Barriers::new(), begun()).unwrap();
        let mut said = |text: String| {
            let fact = Fact::Item {
                item: "accept:os".to_owned(),
                said: text,
            };
            journal.note(fact).unwrap();
            match journal.records().last().unwrap().fact.clone() {
                Some(Fact::Item { said, .. }) => said,
                other => panic!("{other:?}"),
            }
        };
        for (unit, len) in [("\u{1}", 1), ("\u{1f525}", 4), ("x", 1)] {
            for more in [0, 1, 3, 60 << 10] {
                let text = unit.repeat(SAID_LEN_MAX / len + more);
                let kept = said(text.clone());
                match more {
                    0 => assert_eq!(kept, text),
                    _ => {
                        let rest = kept.strip_suffix(CUT_MARK).unwrap();
                        assert_eq!(rest.len(), SAID_LEN_MAX);
                        assert!(text.starts_with(rest));
                    }
                }
            }
        }
        let odd = "x".to_owned() + &"\u{1f525}".repeat(SAID_LEN_MAX);
        assert!(said(odd).ends_with("\u{1f525} [cut]"));
        let fact = Fact::Failed {
            kind: "io".to_owned(),
            message: "\u{1}".repeat(1 << 20),
            is_transient: false,
        };
        journal.note(fact).unwrap();
    }

    // Goal: what a job noted before a step, and who may start a machine, outlive a power cut; the
    // flush is what makes it so. Method: the power goes after a record of each, with the barrier
    // and without it.
    #[test]
    fn a_record_of_a_job_outlives_a_power_cut() {
        assert!(lasts(Barriers::new()));
        assert!(!lasts(Barriers::without(Barrier::Job)));
    }
}
