//! Checks that a differencing image and its parent belong together (section 2.6.2.6.3).

use super::findings::Findings;
use super::metadata::Disk;
use super::{ParentIdentity, Severity};

pub(super) fn check(disk: &Disk, parent: Option<&ParentIdentity>, findings: &mut Findings) {
    let Some(parent) = parent else { return };
    if !disk.has_parent {
        findings.note(LOCATOR, None, "parent-unused", || {
            "a parent was given, and the image has none".to_owned()
        });
        return;
    }
    // A locator that cannot be read was told as such.
    let Some((at, locator)) = &disk.locator else {
        return;
    };
    let mut tell = |severity, rule, detail: String| {
        findings.add(severity, LOCATOR, *at, rule, || detail);
    };
    let guid = parent.data_write_guid;
    if guid != locator.linkage() && Some(guid) != locator.linkage2() {
        let wanted = locator.linkage();
        let detail = format!("wants a parent with data write GUID {wanted}; that given has {guid}");
        tell(Severity::Error, "parent-linkage", detail);
    }
    let sectors = (disk.geometry.sector_size(), parent.logical_sector_size);
    if sectors.0 != sectors.1 {
        let detail = format!(
            "sectors of {} bytes on a parent with {}",
            sectors.0, sectors.1
        );
        tell(Severity::Error, "parent-sector-size", detail);
    }
    let sizes = (disk.geometry.virtual_size(), parent.virtual_size);
    if sizes.0 != sizes.1 {
        // A child that has grown reads zero behind its parent; one that is shorter loses data.
        let severity = match sizes.0 > sizes.1 {
            true => Severity::Note,
            false => Severity::Warning,
        };
        let detail = format!("{} bytes on a parent of {}", sizes.0, sizes.1);
        tell(severity, "parent-size", detail);
    }
    if let Some(disk_id) = disk.disk_id
        && disk_id != parent.disk_id
    {
        let detail = format!("disk {disk_id} on a parent that is {}", parent.disk_id);
        tell(Severity::Warning, "parent-disk-id", detail);
    }
}

const LOCATOR: &str = "parent locator";
