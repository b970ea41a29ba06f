//! What the last word of a job makes needless.

use super::folder::Folder;
use crate::error::{Error, Result};

/// Name of the stage in a state directory.
pub(crate) const STAGE_NAME: &str = "stage";
/// Name of a stage that is written anew.
pub(crate) const STAGE_NEW_NAME: &str = "stage.new";

/// Removes the stage, and one that was to take its place.
///
/// # Errors
/// `Io`.
pub(crate) fn remove_stage(folder: &dyn Folder) -> Result<()> {
    let failed = |e| Error::io(e, "remove stage");
    folder.remove(STAGE_NAME).map_err(failed)?;
    folder.remove(STAGE_NEW_NAME).map_err(failed)
}
