//! No two jobs that are not over have anything in common: each would undo the other's work.

use std::path::{Path, PathBuf};

use super::history::History;
use super::journal::peek;
use super::place::Jobs;
use super::spec::JobSpec;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};

/// Whether a job may begin beside those that are there. Asked while no other can begin. A journal
/// that cannot be read is told, and stands in the way of its own name alone.
///
/// # Errors
/// `Refused` where one that is not over has a disk, or the pair, of this one; `Io`.
pub(super) fn refuse_overlap(jobs: &Jobs, spec: &JobSpec) -> Result<()> {
    let wanted = places(spec)?;
    for name in jobs.names()?.iter().filter(|name| **name != spec.name) {
        let records = match peek(&jobs.directory(name)?) {
            Ok(Some(records)) => records,
            Ok(None) => continue,
            Err(error) => {
                let error = error.chain();
                tracing::warn!(
                    job = name,
                    error,
                    "a job cannot be read, and was passed over"
                );
                continue;
            }
        };
        let other = History(&records);
        if other.position().phase.is_end() {
            continue;
        }
        if other.spec().pair_name() == spec.pair_name() {
            let pair = spec.pair_name();
            let message = format!("pair `{pair}` is that of job `{name}`, which is not over");
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let taken = places(other.spec())?;
        let shared = wanted.iter().find(|(_, place)| {
            let is_same = |(_, other): &(String, Place)| other == place;
            taken.iter().any(is_same)
        });
        if let Some((what, place)) = shared {
            let message = format!("{what} is a disk of job `{name}`, which is not over");
            let error = Error::new(ErrorKind::Refused, message);
            return Err(match place {
                Place::File(path) => error.path(path),
                Place::Grant(_) => error,
            });
        }
    }
    Ok(())
}

/// Where a disk is, by its one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    /// The text of the endpoint: what is behind it is known to the agent alone.
    Grant(String),
}

impl Place {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Path(path) => Self::File(whole(path)),
            grant => Self::Grant(grant.to_string()),
        }
    }
}

/// All disks of a job, in whatever role, and what each is called.
fn places(spec: &JobSpec) -> Result<Vec<(String, Place)>> {
    let mut found = Vec::new();
    for disk in &spec.disks {
        let source = Place::of(&spec.source_of(disk)?);
        found.push((format!("the source of disk `{}`", disk.id), source));
        let target = Place::File(whole(&disk.target));
        found.push((format!("the target of disk `{}`", disk.id), target));
    }
    Ok(found)
}

/// A path without links, as far as it is there.
fn whole(path: &Path) -> PathBuf {
    let there = path
        .ancestors()
        .find_map(|above| Some((above, above.canonicalize().ok()?)));
    match there {
        Some((above, found)) => match path.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => found.join(rest),
            _ => found,
        },
        None => path.to_owned(),
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    // Goal: one place has one name, whether it is there or not. Method: a file and what is missing,
    // by links and dots.
    #[test]
    fn a_place_has_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir(dir.join("vm")).unwrap();
        fs::write(dir.join("vm/os.raw"), b"x").unwrap();
        symlink(dir.join("vm"), dir.join("link")).unwrap();
        symlink(dir.join("vm/os.raw"), dir.join("alias")).unwrap();
        for (path, wanted) in [
            ("link/os.raw", "vm/os.raw"),
            ("vm/../alias", "vm/os.raw"),
            ("link/new.raw", "vm/new.raw"),
            ("link/folder/new.raw", "vm/folder/new.raw"),
            ("vm/os.raw", "vm/os.raw"),
        ] {
            assert_eq!(whole(&dir.join(path)), dir.join(wanted), "{path}");
        }
    }
}
