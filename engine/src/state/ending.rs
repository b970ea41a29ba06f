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

/// Whether something is there that [`remove_needless`] would remove.
///
/// # Errors
/// `Io`.
pub(crate) fn has_needless(folder: &dyn Folder) -> Result<bool> {
    for name in [STAGE_NAME, STAGE_NEW_NAME, CHILD_NAME, UNDO_NAME] {
        let found = folder.open(name);
        if found
            .map_err(|e| Error::io(e, "look for a stage"))?
            .is_some()
        {
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
    let failed = |e| Error::io(e, "remove stage");
    folder.remove(STAGE_NAME).map_err(failed)?;
    folder.remove(STAGE_NEW_NAME).map_err(failed)?;
    for name in [CHILD_NAME, UNDO_NAME] {
        let removed = folder.remove(name);
        removed.map_err(|e| Error::io(e, "remove a differencing image"))?;
    }
    marker::remove_if_over(folder)
}
