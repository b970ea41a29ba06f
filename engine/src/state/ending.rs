//! What the last word of a job makes needless.

use super::folder::Folder;
use super::marker;
use crate::error::{Error, Result};

/// Name of the stage in a state directory.
pub(crate) const STAGE_NAME: &str = "stage";
/// Name of a stage that is written anew.
pub(crate) const STAGE_NEW_NAME: &str = "stage.new";

/// Removes the stage, one that was to take its place, and what leads to the state from another
/// place, unless the target is still mixed.
///
/// # Errors
/// `Damaged`, `Io`.
pub(crate) fn remove_needless(folder: &dyn Folder) -> Result<()> {
    let failed = |e| Error::io(e, "remove stage");
    folder.remove(STAGE_NAME).map_err(failed)?;
    folder.remove(STAGE_NEW_NAME).map_err(failed)?;
    marker::remove_if_over(folder)
}
