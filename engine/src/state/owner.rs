//! That a job has a target: until it is over nobody else changes the target, nor what is kept for
//! the job beside it.
//!
//! A file `owner` in the default place of the target's state names the job's directory. It counts
//! as long as a file `open` in that directory has the same token: what a crash has left, or a job
//! whose directory was removed, keeps nobody out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::barrier::Barriers;
use super::elsewhere::is_same;
use super::folder::{Folder, HostFolder};
use super::place::state_directory;
use super::signed::{self, Names};
use crate::error::{Error, ErrorKind, Result};

const NAMES: Names = Names {
    name: "owner",
    new: "owner.new",
};
/// In the directory of a job that is not over: its token.
const OPEN: Names = Names {
    name: "open",
    new: "open.new",
};

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// What the job is called.
    pub(crate) job: String,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// What tells it from another job of that name.
    pub(crate) token: String,
}

impl Owner {
    /// Says in the job's directory, which is `folder`, that it is not over, unless that says so.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn open(&self, folder: &dyn Folder) -> Result<()> {
        // A held job is completed by a process of its own, and each flush then is downtime.
        if self.counts() {
            return Ok(());
        }
        signed::put(folder, OPEN, &self.token, Barriers::new())
    }

    /// Says that it is: whatever names it counts for nothing.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn close(&self, folder: &dyn Folder) -> Result<()> {
        // Durable before the job's last record: else a power cut could bring it back after that.
        signed::remove(folder, OPEN, Barriers::new()).map_err(|e| e.path(&self.directory))
    }

    /// Removes what a job that never began has said.
    pub(crate) fn forget(directory: &Path) {
        for name in [OPEN.name, OPEN.new] {
            drop(fs::remove_file(directory.join(name)));
        }
    }

    /// Takes a target that this job has had before; one whose state is not there, as where a file
    /// system is not mounted, stays as it is.
    ///
    /// # Errors
    /// As [`Owner::take`].
    pub(crate) fn keep(&self, target: &Path) -> Result<()> {
        match state_directory(target, None)?.exists() {
            true => self.take(target),
            false => Ok(()),
        }
    }

    /// Takes a target.
    ///
    /// # Errors
    /// `Refused` where another job has it; `InUse` while somebody works on it; `Usage` for a
    /// directory that cannot be noted; `NoSpace`, `Io`.
    pub(crate) fn take(&self, target: &Path) -> Result<()> {
        if self.directory.to_str().is_none() {
            let message = "has a name that no marker can note: it is not Unicode";
            return Err(Error::new(ErrorKind::Usage, message).path(&self.directory));
        }
        let place = state_directory(target, None)?;
        let folder = HostFolder::lock(&place)?;
        refuse_owned(target, Some(&self.directory))?;
        // One that rotted, or names where the job's directory was before, is written anew.
        match read(&place).is_ok_and(|found| found.as_ref() == Some(self)) {
            true => Ok(()),
            false => signed::put(&folder, NAMES, self, Barriers::new()),
        }
    }

    /// Lets a target go. One that is another's by now stays his.
    ///
    /// # Errors
    /// `InUse`, `Io`.
    pub(crate) fn let_go(&self, target: &Path) -> Result<()> {
        let place = state_directory(target, None)?;
        if read(&place)?.is_none_or(|found| found.token != self.token) {
            return Ok(());
        }
        let folder = HostFolder::lock(&place)?;
        folder
            .remove(NAMES.name)
            .map_err(|e| Error::io(e, "remove marker").path(&place))
    }

    /// Whether the job is not over; where that cannot be looked at, it is not.
    fn counts(&self) -> bool {
        match fs::File::open(self.directory.join(OPEN.name)) {
            Ok(file) => signed::parse::<String>(&file).is_ok_and(|token| token == self.token),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }
}

/// The job that has a target now.
///
/// # Errors
/// `Damaged`, `Io`.
fn owner_of(target: &Path) -> Result<Option<Owner>> {
    let owner = read(&state_directory(target, None)?)?;
    Ok(owner.filter(Owner::counts))
}

/// Refuses a target that a job has other than that of the directory `owner`.
///
/// # Errors
/// `Refused`; `Damaged`, `Io`.
pub(crate) fn refuse_owned(target: &Path, owner: Option<&Path>) -> Result<()> {
    let owner_found = match (owner_of(target), owner) {
        // A job that has the target does not lose it to rot.
        (Err(error), Some(_)) if error.kind() == ErrorKind::Damaged => return Ok(()),
        (found, _) => found?,
    };
    match owner_found {
        Some(found) if !owner.is_some_and(|own| is_same(own, &found.directory)) => {
            Err(owned(target, &found))
        }
        _ => Ok(()),
    }
}

/// Why nobody else changes it.
fn owned(target: &Path, owner: &Owner) -> Error {
    let message = format!(
        "is a target of job `{}`, which is not over: complete, cancel, commit or undo that \
         (job {})",
        owner.job,
        owner.directory.display()
    );
    Error::new(ErrorKind::Refused, message).path(target)
}

fn read(place: &Path) -> Result<Option<Owner>> {
    match fs::File::open(place.join(NAMES.name)) {
        // Once no job has the target it can be removed.
        Ok(file) => signed::parse(&file)
            .map(Some)
            .map_err(|e| e.path(&place.join(NAMES.name))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(e, "read marker").path(place)),
    }
}
