//! What an agent may do with which disk, as its operator said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::disk::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
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

/// Grants by name.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    by_name: BTreeMap<String, Grant>,
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
    }

    /// Opens all disks granted so far in this way.
    pub fn open_all_with(&mut self, options: &OpenOptions) {
        for grant in self.by_name.values_mut() {
            grant.open = options.clone();
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
        self.by_name.is_empty()
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
