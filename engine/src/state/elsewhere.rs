//! The state of a target, wherever it is kept: no command passes over one that is not over.

use std::path::{Path, PathBuf};

use super::entry::Word;
use super::folder::{Folder, HostFolder};
use super::journal::{Journal, peek};
use super::marker::{self, Marker};
use super::owner::refuse_owned;
use super::place::state_directory;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Access, HostFile, create_private_directories};

/// The state directory of `target`, below `wanted` or in the default place, locked for this job
/// alone; the default place is locked in any case. A marker that leads to a job which is over goes.
///
/// # Errors
/// `InUse` while another job has one of them; `Refused` when a state elsewhere is not over, and for
/// a target of a failback job other than that of the directory `owner`; `Damaged`, `Io`.
pub(crate) fn lock_state(
    target: &Path,
    wanted: Option<&Path>,
    owner: Option<&Path>,
) -> Result<HostFolder> {
    let (default, wanted) = (
        state_directory(target, None)?,
        state_directory(target, wanted)?,
    );
    create_private_directories(&wanted)
        .map_err(|e| Error::io(e, "make state directory").path(&wanted))?;
    let folder = match (is_same(&default, &wanted), HostFolder::lock(&default)) {
        (true, place) => place?,
        (false, Ok(place)) => HostFolder::lock_elsewhere(&wanted, place)?,
        // Where nothing can be made beside the target no marker can stand: whoever names another
        // place is told so, and has asked for it.
        (false, Err(error)) if is_denied(&error) => {
            tracing::warn!(error = error.chain(), "no marker can be left at the target");
            HostFolder::lock(&wanted)?
        }
        (false, Err(error)) => return Err(error),
    };
    refuse_owned(target, owner)?;
    refuse_elsewhere(target, &wanted)?;
    let place = folder.elsewhere();
    let place = place.map_or(&folder as &dyn Folder, |elsewhere| elsewhere.place);
    if let Some(marker) = Marker::read(place)?
        && peek(Path::new(&marker.state))?.is_some_and(|journal| journal.is_over())
    {
        marker::remove(place)?;
    }
    Ok(folder)
}

/// # Errors
/// `Refused` when a state that is not over is kept elsewhere than in `directory`, or cannot be
/// found; `Damaged`, `Io`.
pub(crate) fn refuse_elsewhere(target: &Path, directory: &Path) -> Result<()> {
    let Some((found, journal)) = find_elsewhere(target, directory)? else {
        return Ok(());
    };
    let base = found.parent().unwrap_or(&found);
    let message = format!(
        "an earlier sync of it is not over ({}) and has its state in another place; name that \
         state directory: {}",
        journal.word().name(),
        base.display()
    );
    Err(Error::new(ErrorKind::Refused, message).path(target))
}

/// The state of `target` that is not over and is kept elsewhere than in `directory`.
///
/// # Errors
/// `Refused` when it cannot be found, `Damaged`, `Io`.
pub(crate) fn find_elsewhere(
    target: &Path,
    directory: &Path,
) -> Result<Option<(PathBuf, Journal)>> {
    let default = state_directory(target, None)?;
    if let Some(marker) = read_marker(&default)?
        && !is_same(Path::new(&marker.state), directory)
    {
        let state = PathBuf::from(&marker.state);
        match peek(&state)? {
            Some(journal) if journal.is_over() => {}
            Some(journal) => return Ok(Some((state, journal))),
            // Moved to where it is looked for.
            None if peek(directory)?.is_some_and(|own| own.job().to_string() == marker.job) => {}
            None => {
                let message = format!(
                    "an earlier sync of it is not over, and its state is gone: {}; bring it back, \
                     or remove the marker in {} if the disk is replaced",
                    marker.state,
                    default.display()
                );
                return Err(Error::new(ErrorKind::Refused, message).path(target));
            }
        }
    }
    if is_same(&default, directory) {
        return Ok(None);
    }
    match peek(&default)? {
        Some(journal) if has_begun_to_change(&journal, target)? => Ok(Some((default, journal))),
        _ => Ok(None),
    }
}

fn read_marker(default: &Path) -> Result<Option<Marker>> {
    let failed = |e| Error::io(e, "read marker").path(default);
    match std::fs::File::open(default.join(marker::NAME)) {
        Ok(file) => Marker::parse(&file).map(Some).map_err(|e| e.path(default)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// A job that has only staged so far leaves the old disk to others: it finds out that it was
/// changed.
fn has_begun_to_change(journal: &Journal, target: &Path) -> Result<bool> {
    let is_staging = matches!(journal.word(), Word::Staging | Word::Staged);
    if journal.is_over() || !is_staging || journal.is_mixed() {
        return Ok(!journal.is_over());
    }
    if journal.begun().container.replaces() {
        // Whose the name is, is looked up: a lost COMMIT leaves no mixed disk.
        return Ok(false);
    }
    let failed = |e| Error::io(e, "stat").path(target);
    let identity = HostFile::open(target, Access::Inspect)?.identity();
    Ok(journal.may_have_lost_commit(&identity.map_err(failed)?))
}

/// Whether nothing can be made there, now or later.
fn is_denied(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::InUse | ErrorKind::Refused | ErrorKind::Damaged | ErrorKind::NoSpace
    )
}

/// Whether two paths lead to the same directory.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().ok();
    one == other || whole(one).is_some_and(|one| whole(other) == Some(one))
}
