//! What the last word of a job makes needless.

use super::folder::Folder;
use super::marker;
use crate::error::{Error, Result};

/// Name of the stage in a state directory.
pub(crate) const STAGE_NAME: &str = "stage";
/// Name of a stage that is written anew.
pub(crate) const STAGE_NEW_NAME: &str = "stage.new";

/// Name of the differencing child of a target that is to be merged into it.
pub(crate) const CHILD_NAME: &str = "child.avhdx";
/// Name of the image of what the target had at the child's places.
pub(crate) const UNDO_NAME: &str = "undo.avhdx";

/// What a last word makes needless, and how a failure to remove it is told.
const NEEDLESS: [(&str, &str); 4] = [
    (STAGE_NAME, "remove stage"),
    (STAGE_NEW_NAME, "remove stage"),
    (CHILD_NAME, "remove a differencing image"),
    (UNDO_NAME, "remove a differencing image"),
];

/// Whether something is there that [`remove_needless`] would remove.
///
/// # Errors
/// `Io`.
pub(crate) fn has_needless(folder: &dyn Folder) -> Result<bool> {
    for (name, _) in NEEDLESS {
        let found = folder.open(name);
        let found = found.map_err(|e| Error::io(e, "look for a stage"))?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the stage, one that was to take its place, a child and its undo, and what leads to the
/// state from another place, unless the target is still mixed.
///
/// # Errors
/// `Damaged`, `Io`.
pub(crate) fn remove_needless(folder: &dyn Folder) -> Result<()> {
    for (name, what) in NEEDLESS {
        folder.remove(name).map_err(|e| Error::io(e, what))?;
    }
    marker::remove_if_over(folder)
}
