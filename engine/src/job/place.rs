//! Where jobs are kept, and how one is spoken to from outside the process that runs it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::phase::Ask;
use super::spec::is_name;
use crate::error::{Error, ErrorKind, Result};
use crate::system::create_marker;

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
/// be heard long after whoever asked has gone.
pub(crate) fn leave_ask(directory: &Path, ask: Ask) -> Result<()> {
    let at = ask_file(directory, ask);
    create_marker(&at).map_err(|e| Error::io(e, "leave word for the job").path(&at))
}

/// Asks that were left, in the order in which they are heard.
pub(crate) fn asks_left(directory: &Path) -> impl Iterator<Item = Ask> {
    let is_left = |ask: &Ask| ask_file(directory, *ask).exists();
    Ask::ALL.into_iter().filter(is_left)
}

/// It is in the journal, or refused.
pub(crate) fn forget_ask(directory: &Path, ask: Ask) -> Result<()> {
    let at = ask_file(directory, ask);
    match fs::remove_file(&at) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(e, "take word for the job").path(&at))
        }
        _ => Ok(()),
    }
}

fn ask_file(directory: &Path, ask: Ask) -> PathBuf {
    directory.join(format!("ask.{}", ask.name()))
}
