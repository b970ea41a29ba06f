//! What an agent may do with which disk, as its operator said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control_spec::ControlSpec;
use super::hinting::DiskMaps;
use super::pair::{Lease, Pair, ServedPair};
use crate::disk::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::step::Step;
use crate::units::DISK_LEN_MAX;

/// One disk and what peers may do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The image or device.
    pub path: PathBuf,
    /// Whether peers may change it.
    pub is_writable: bool,
    /// The largest disk that a first sync may make here, in bytes; `None`: the file has to exist.
    pub create_max: Option<u64>,
    /// How the disk is opened.
    pub open: OpenOptions,
    /// Where the state of its syncs is kept; `None`: beside it.
    pub state: Option<PathBuf>,
}

/// What a peer opened, and what is held as long as that is open.
#[derive(Debug)]
pub(super) struct OpenGrant {
    pub(super) grant: Grant,
    pub(super) _lease: Option<Lease>,
    /// Instead of a saved map.
    pub(super) maps: Option<DiskMaps>,
}

/// Grants by name.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    by_name: BTreeMap<String, Grant>,
    pairs: BTreeMap<String, Arc<ServedPair>>,
    /// Where the state of the disks of pairs is kept; `None`: beside them.
    pair_state: Option<PathBuf>,
}

/// Bytes of a grant's name.
const NAME_LEN_MAX: usize = failback_transport::NAME_LEN_MAX;

impl Grants {
    /// No grants: everything is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a grant.
    ///
    /// # Errors
    /// `Usage` for a bad name, or one that is taken.
    pub fn add(&mut self, name: &str, grant: Grant) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_plain) {
            let message =
                format!("grant name `{name}` is not made of letters, digits, `-`, `_` and `.`");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        match self.by_name.insert(name.to_owned(), grant) {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Usage,
                format!("grant `{name}` is given twice"),
            )),
        }
    }

    /// Adds a grant written `NAME=PATH[:ro|:rw[,max=SIZE]]`; `size` reads a size such as `64G`.
    ///
    /// # Errors
    /// `Usage`: in doubt nothing is granted.
    pub fn add_text(&mut self, text: &str, size: impl Fn(&str) -> Option<u64>) -> Result<()> {
        let usage = |what: &str| {
            let message =
                format!("grant `{text}` {what}; the form is NAME=PATH[:ro|:rw[,max=SIZE]]");
            Error::new(ErrorKind::Usage, message)
        };
        let (name, rest) = text.split_once('=').ok_or_else(|| usage("has no `=`"))?;
        let (path, is_writable, max) = match rest.rsplit_once(':') {
            Some((path, "ro")) => (path, false, None),
            Some((path, "rw")) => (path, true, None),
            Some((path, rights)) if rights.starts_with("rw,") => (
                path,
                true,
                Some(
                    rights
                        .strip_prefix("rw,max=")
                        .ok_or_else(|| usage("has unknown rights"))?,
                ),
            ),
            // A colon may be part of a path; what looks like rights and is none must not be taken
            // for one.
            Some((_, rights)) if !rights.contains('/') && rights.len() <= 3 => {
                return Err(usage("has unknown rights"));
            }
            _ => (rest, false, None),
        };
        if path.is_empty() {
            return Err(usage("has no path"));
        }
        let max = max.map(|max| {
            size(max)
                .filter(|max| *max <= DISK_LEN_MAX)
                .ok_or_else(|| usage("has a bad size"))
        });
        self.add(
            name,
            Grant {
                path: PathBuf::from(path),
                is_writable,
                create_max: max.transpose()?,
                open: OpenOptions::default(),
                state: None,
            },
        )
    }

    /// Keeps the state of all disks granted so far below this directory.
    pub fn keep_state_in(&mut self, directory: &Path) {
        for grant in self.by_name.values_mut() {
            grant.state = Some(directory.to_owned());
        }
        self.pair_state = Some(directory.to_owned());
    }

    /// Opens all disks granted so far in this way.
    pub fn open_all_with(&mut self, options: &OpenOptions) {
        for grant in self.by_name.values_mut() {
            grant.open = options.clone();
        }
    }

    /// Lets jobs of other hosts control these machines. Who is in charge of each is kept below
    /// `state`, locked from now on.
    ///
    /// # Errors
    /// `Usage` for what makes no sense; `InUse` while another agent serves one of them, or a job
    /// of this host moves one; `Damaged`, `Refused`, `Io`.
    pub fn add_control(&mut self, spec: &ControlSpec, state: &Path) -> Result<()> {
        spec.check()?;
        for (name, pair) in &spec.pairs {
            self.add_pair(name, Pair::of(pair)?, state)?;
        }
        Ok(())
    }

    /// The same for one machine, as a program has it.
    ///
    /// # Errors
    /// As [`Grants::add_control`].
    pub fn add_pair(&mut self, name: &str, pair: Pair, state: &Path) -> Result<()> {
        if self.pairs.contains_key(name) {
            let shown = crate::error::one_line(name);
            let message = format!("pair `{shown}` is given twice");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let served = ServedPair::open(name, pair, state)?;
        self.pairs.insert(name.to_owned(), Arc::new(served));
        Ok(())
    }

    /// The machine of that name.
    ///
    /// # Errors
    /// `NotGranted`.
    pub(super) fn pair(&self, name: &str) -> Result<&ServedPair> {
        let pair = self.pairs.get(name);
        pair.map(Arc::as_ref).ok_or_else(|| {
            let shown = crate::error::one_line(name);
            let message = format!("no machine is controlled under the name `{shown}`");
            Error::new(ErrorKind::NotGranted, message)
        })
    }

    /// What can be opened under that name now, and what is to be kept as long as it is open. A disk
    /// of a pair is called `PAIR/DISK`, which no other grant can be.
    ///
    /// # Errors
    /// As [`Grants::find`]; those of a pair.
    pub(super) fn open(&self, name: &str, step: &Step<'_>) -> Result<OpenGrant> {
        match name.split_once('/') {
            Some((pair, disk)) => {
                let mut opened = self.pair(pair)?.grant(disk, step)?;
                opened.grant.state.clone_from(&self.pair_state);
                Ok(opened)
            }
            None => Ok(OpenGrant {
                grant: self.find(name)?.clone(),
                _lease: None,
                maps: None,
            }),
        }
    }

    /// The grant of that name.
    ///
    /// # Errors
    /// `NotGranted`.
    pub fn find(&self, name: &str) -> Result<&Grant> {
        self.by_name.get(name).ok_or_else(|| {
            let message = format!(
                "no disk is granted under the name `{}`",
                crate::error::one_line(name)
            );
            Error::new(ErrorKind::NotGranted, message)
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.pairs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Grants> {
        let mut grants = Grants::new();
        grants
            .add_text(text, |size| size.parse().ok())
            .map(|()| grants)
    }

    // Goal: rights are what the operator wrote. Method: each form.
    #[test]
    fn forms_of_a_grant() {
        let grant = |text: &str| parsed(text).unwrap().find("web").unwrap().clone();
        let plain = Grant {
            path: "/a.vhdx".into(),
            is_writable: false,
            create_max: None,
            open: OpenOptions::default(),
            state: None,
        };
        assert_eq!(grant("web=/a.vhdx"), plain);
        assert_eq!(grant("web=/a.vhdx:ro"), plain);
        assert_eq!(
            grant("web=/a.vhdx:rw"),
            Grant {
                is_writable: true,
                ..plain.clone()
            }
        );
        assert_eq!(
            grant("web=/a.vhdx:rw,max=99"),
            Grant {
                is_writable: true,
                create_max: Some(99),
                ..plain
            }
        );
    }

    // Goal: in doubt nothing is granted. Method: near misses.
    #[test]
    fn a_bad_grant_is_refused() {
        for text in [
            "web",
            "=/a",
            "web=",
            "web=:rw",
            "web=/a:rx",
            "web=/a:RW",
            "web=/a:rw,max=",
            "web=/a:rw,min=1",
            "we b=/a",
            "a/b=/a",
        ] {
            assert_eq!(parsed(text).unwrap_err().kind(), ErrorKind::Usage, "{text}");
        }
        assert_eq!(
            parsed("web=/a").unwrap().find("db").unwrap_err().kind(),
            ErrorKind::NotGranted
        );
    }
}
