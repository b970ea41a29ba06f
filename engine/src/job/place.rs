//! Where jobs are kept, and how one is spoken to from outside the process that runs it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::fence::Epoch;
use super::history::History;
use super::phase::Ask;
use super::spec::is_name;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{HostFolder, RecordLog};
use crate::system::{
    create_marker, create_private_directories, is_kept_from_others, keep_private, remove_marker,
    rename_marker,
};

/// The directory of all jobs of a host.
#[derive(Clone, Debug)]
pub struct Jobs {
    root: PathBuf,
}

impl Jobs {
    /// Jobs below `root`, which need not be there yet.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory of one.
    ///
    /// # Errors
    /// `Usage` for what cannot be a job's name.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        match is_name(name) {
            true => Ok(self.root.join("jobs").join(name)),
            false => {
                let message = format!("`{}` is no name of a job", crate::error::one_line(name));
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }

    pub(crate) fn pair(&self, name: &str) -> PathBuf {
        self.root.join("pairs").join(name)
    }

    /// Makes the directory in which pairs are kept.
    ///
    /// # Errors
    /// As [`Jobs::refuse_foreign`].
    pub(crate) fn make_pairs(&self) -> Result<()> {
        self.make(&["pairs"])
    }

    fn make(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let directory = self.root.join(name);
            create_private_directories(&directory)
                .map_err(|e| Error::io(e, "make directory of jobs").path(&directory))?;
        }
        self.refuse_foreign()
    }

    /// Whether all jobs of a pair on this host are over: until then each of them may want the
    /// machine back. One that cannot be read is told, and stands in the way of its own pair alone.
    ///
    /// # Errors
    /// `Refused` where one is not; those of reading one that may be of the pair; `Io`.
    pub(crate) fn refuse_unfinished_of(&self, pair: &str) -> Result<()> {
        for name in self.names()? {
            let directory = self.directory(&name)?;
            let records = match super::journal::peek(&directory) {
                Ok(Some(records)) => records,
                Ok(None) => continue,
                Err(error) if may_be_of(&directory, pair) => {
                    let message = format!(
                        "job `{name}` may be of pair `{pair}` and not over, and cannot be read"
                    );
                    return Err(Error::new(error.kind(), message)
                        .caused_by(error)
                        .path(&directory));
                }
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(
                        job = name,
                        error,
                        "a job of another pair cannot be read, and was passed over"
                    );
                    continue;
                }
            };
            let history = History(&records);
            let phase = history.position().phase;
            if history.spec().pair_name() == pair && !phase.is_end() {
                let message = format!(
                    "job `{name}` of pair `{pair}` is {}: it is to end first",
                    phase.name()
                );
                return Err(Error::new(ErrorKind::Refused, message));
            }
        }
        Ok(())
    }

    /// Who is in charge of a pair, as this host knows it, whoever holds its fence now; `None`
    /// before the first job.
    ///
    /// # Errors
    /// `Usage` for what cannot be a pair's name; `Damaged`, `Unsupported`, `Io`.
    pub fn epoch(&self, pair: &str) -> Result<Option<Epoch>> {
        if !is_name(pair) {
            let message = format!("`{}` is no name of a pair", crate::error::one_line(pair));
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let log: Option<RecordLog<Epoch>> = RecordLog::peek(&self.pair(pair))?;
        Ok(log.map(|log| log.last().clone()))
    }

    /// Makes what is missing, and keeps all others from beginning a job until it is dropped.
    ///
    /// # Errors
    /// `Usage` for a relative path; as [`Jobs::refuse_foreign`]; `InUse` when somebody has it for
    /// long; `Io`.
    pub(super) fn take_turn(&self) -> Result<fs::File> {
        super::refuse_relative("directory of jobs", &mut self.root.clone())?;
        self.make(&["jobs", "pairs"])?;
        let at = self.root.join(TURN_NAME);
        let failed = |e| Error::io(e, "lock directory of jobs").path(&at);
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        keep_private(&mut options);
        let file = options.open(&at).map_err(failed)?;
        let until = Instant::now() + TURN_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(POLL);
                }
                Err(fs::TryLockError::WouldBlock) => {
                    let message = "another process begins a job there";
                    return Err(Error::new(ErrorKind::InUse, message).path(&at));
                }
                Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }

    /// Whoever can give directories here another name puts journals of his own in their place, with
    /// hooks that run as this user.
    ///
    /// # Errors
    /// `Refused` for a directory that others can write to, or that belongs to somebody else than
    /// this user or root; `Io`.
    pub(super) fn refuse_foreign(&self) -> Result<()> {
        let below = ["jobs", "pairs"].map(|name| self.root.join(name));
        // The operator's own link to it counts for what it leads to.
        let root = self.root.canonicalize();
        let root = root.map_err(|e| Error::io(e, "look up directory of jobs").path(&self.root))?;
        for directory in [&root].into_iter().chain(&below) {
            match is_kept_from_others(directory) {
                Ok(true) => {}
                Ok(false) => {
                    let message = "is no directory that only this user, or root, can write to, as \
                                   jobs and their hooks need";
                    return Err(Error::new(ErrorKind::Refused, message).path(directory));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(e, "stat").path(directory)),
            }
        }
        Ok(())
    }

    /// Whether a process works on the job of that name now; a hint, it may end at any time.
    ///
    /// # Errors
    /// `Usage` for what cannot be a job's name.
    pub fn is_worked_on(&self, name: &str) -> Result<bool> {
        Ok(HostFolder::is_locked(&self.directory(name)?))
    }

    /// Names of all jobs, in order.
    ///
    /// # Errors
    /// `Io`.
    pub fn names(&self) -> Result<Vec<String>> {
        let at = self.root.join("jobs");
        let entries = match fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(e, "list jobs").path(&at)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(|e| Error::io(e, "list jobs").path(&at))?
                .file_name();
            names.extend(name.into_string().ok().filter(|name| is_name(name)));
        }
        names.sort();
        Ok(names)
    }
}

/// Leaves an ask for the process that runs the job, or for the next one that does. Durable: it may
/// be heard long after whoever asked has gone. It takes the place of the one that it takes back.
pub(crate) fn leave_ask(directory: &Path, ask: Ask) -> Result<()> {
    let at = ask_file(directory, ask);
    let taken_back = match ask {
        Ask::Complete => Some(Ask::Hold),
        Ask::Hold => Some(Ask::Complete),
        Ask::Cancel | Ask::Commit | Ask::Undo | Ask::Resume => None,
    };
    let left = match taken_back {
        Some(other) => rename_marker(&ask_file(directory, other), &at),
        None => Ok(false),
    };
    let left = left.and_then(|is_left| match is_left {
        true => Ok(()),
        false => create_marker(&at),
    });
    left.map_err(|e| Error::io(e, "leave word for the job").path(&at))
}

/// Asks that were left, in the order in which they are heard.
pub(crate) fn asks_left(directory: &Path) -> impl Iterator<Item = Ask> {
    let is_left = |ask: &Ask| ask_file(directory, *ask).exists();
    Ask::ALL.into_iter().filter(is_left)
}

/// It is in the journal, or refused. Durable: one that was refused is not heard later, when it can
/// be done.
pub(crate) fn forget_ask(directory: &Path, ask: Ask) -> Result<()> {
    let at = ask_file(directory, ask);
    remove_marker(&at).map_err(|e| Error::io(e, "take word for the job").path(&at))
}

/// Notes of which pair a job is, beside its journal: whoever cannot read that can tell by it whose
/// the job is not. Durable.
pub(super) fn note_pair(directory: &Path, pair: &str) -> Result<()> {
    let at = pair_file(directory, pair);
    create_marker(&at).map_err(|e| Error::io(e, "note the pair of the job").path(&at))
}

/// Removes such notes of jobs that were in a directory before, all but that of `kept`. One that
/// stays makes more pairs that the job may be of, and no fewer.
pub(super) fn forget_pairs(directory: &Path, kept: Option<&str>) {
    let mut noted = noted_pairs(directory);
    noted.retain(|pair| Some(pair.as_str()) != kept);
    for pair in noted {
        drop(fs::remove_file(pair_file(directory, &pair)));
    }
}

/// Whether a job whose journal cannot be read may be of that pair: it may where nothing is noted.
fn may_be_of(directory: &Path, pair: &str) -> bool {
    let noted = noted_pairs(directory);
    noted.is_empty() || noted.iter().any(|noted| noted == pair)
}

fn noted_pairs(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| Some(name.strip_prefix(PAIR_NOTE)?.to_owned()))
        .collect()
}

fn pair_file(directory: &Path, pair: &str) -> PathBuf {
    directory.join(format!("{PAIR_NOTE}{pair}"))
}

fn ask_file(directory: &Path, ask: Ask) -> PathBuf {
    directory.join(format!("ask.{}", ask.name()))
}

/// Begins the name of the file that says of which pair a job is.
const PAIR_NOTE: &str = "pair.";
/// Locked while a job begins. No job can be called so.
const TURN_NAME: &str = "jobs.lock";
/// Beginning a job reads the journals of all.
const TURN_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
