//! The tie between a differencing image and its parent (section 2.6.2.6).

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, Warning};
use crate::metadata::Metadata;

/// Whether `parent` is there when it has to be, and the one that the image was made from. Its
/// length may be another: what lies behind its end reads zero.
pub(crate) fn check_parent(
    child: &Metadata,
    parent: Option<&Image>,
    warnings: &mut Vec<Warning>,
) -> Result<()> {
    let (locator, parent) = match (&child.locator, parent) {
        (None, None) => return Ok(()),
        (None, Some(_)) => {
            return Err(Error::invalid("image has no parent, yet one was given"));
        }
        (Some(locator), None) => {
            let path = [locator.relative_path(), locator.absolute_win32_path()];
            let named = path.into_iter().flatten().next().unwrap_or("another image");
            let detail = format!("differencing image, needs its parent: {named}");
            return Err(Error::new(ErrorKind::ParentNeeded, detail));
        }
        (Some(locator), Some(parent)) => (locator, parent),
    };
    let found = parent.data_write_guid();
    let wrong =
        |detail: String| Err(Error::new(ErrorKind::WrongParent, detail).of("parent locator"));
    if found != locator.linkage() && Some(found) != locator.linkage2() {
        return wrong(format!(
            "parent has DataWriteGuid {found}, the image was made from {}",
            locator.linkage()
        ));
    }
    if parent.logical_sector_size() != child.geometry.sector_size() {
        return wrong("parent has another logical sector size".to_owned());
    }
    if parent.disk_id() != child.disk_id {
        warnings.push(Warning::ParentIsOfAnotherDisk);
    }
    Ok(())
}
