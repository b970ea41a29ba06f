//! What is noted of a disk together with what was learnt of its content.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::trust::racy_for;
use crate::disk::{ImageFile, Source};
use crate::error::{Error, Result};
use crate::schedule::sleep;
use crate::system::{MediumAccess, boot_id};

/// A disk in one state: the image itself, then its parents, nearest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// When they were taken, in nanoseconds since 1970.
    pub taken_ns: i64,
    /// Which start of which system took them; `None` where the system does not say.
    pub boot: Option<String>,
    /// Never empty.
    pub images: Vec<ImageFacts>,
    /// Blocks whose content the format leaves undefined were made zero: a sync to the disk did it.
    /// Until then other readers may see something else there than this program.
    pub is_settled: bool,
}

/// One file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFacts {
    /// `raw`, `vhdx`, `vhd`.
    pub format: String,
    /// Names this very file, whatever state it is in.
    pub file_id: String,
    /// Bytes of the file.
    pub file_len: u64,
    /// When bytes were last written, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// When anything of the file was last changed, in nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Whether this system keeps the file itself: another one's clock says nothing here.
    pub is_local: bool,
    /// Bytes of the virtual disk.
    pub disk_len: u64,
    /// Bytes of a logical sector; 0 where the format states none.
    pub sector_size: u32,
    /// Id of the virtual disk; empty where the format has none.
    pub disk_id: String,
    /// Changes once each time that somebody opens the image to change its content; empty where the
    /// format has none.
    pub data_write_guid: String,
    /// Whether nothing waits to be replayed. True where there is no log.
    pub is_log_empty: bool,
    /// Rises with each change of a header; 0 where there is none.
    pub header_sequence: u64,
}

impl Facts {
    /// Facts of this moment about these images; `None` without any, or without a clock.
    #[must_use]
    pub fn now(images: Vec<ImageFacts>) -> Option<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(Self {
            taken_ns: i64::try_from(since.as_nanos()).ok()?,
            boot: boot_id(),
            images,
            is_settled: false,
        })
        .filter(|facts| !facts.images.is_empty())
    }
}

impl ImageFacts {
    /// What the system knows of `file`; what the format says is to be filled in. `None` of a file
    /// of which the system notes no changes.
    ///
    /// # Errors
    /// `Io`.
    pub fn of_file(file: &dyn ImageFile, format: &str, disk_len: u64) -> Result<Option<Self>> {
        let stamp = file.stamp();
        let stamp = stamp.map_err(|e| Error::io(e, "stat").path(file.path()))?;
        Ok(stamp.map(|stamp| Self {
            format: format.to_owned(),
            file_id: stamp.file_id,
            file_len: stamp.len,
            mtime_ns: stamp.mtime_ns,
            ctime_ns: stamp.ctime_ns,
            is_local: file.medium_access() != MediumAccess::Server,
            disk_len,
            sector_size: 0,
            disk_id: String::new(),
            data_write_guid: String::new(),
            is_log_empty: true,
            header_sequence: 0,
        }))
    }
}

/// Facts of a disk that nobody can write now, taken late enough after its last change to tell any
/// later one from it. `None` where that would take too long, or nothing is known.
///
/// # Errors
/// As [`Source::facts`].
pub(crate) fn seal(disk: &dyn Source) -> Result<Option<Facts>> {
    let Some(facts) = disk.facts()? else {
        return Ok(None);
    };
    match racy_for(&facts).map(|wait| Duration::from_nanos(wait.unsigned_abs())) {
        Some(Duration::ZERO) => Ok(Some(facts)),
        Some(wait) if wait <= WAIT_MAX => {
            sleep(wait + SLACK);
            let facts = disk.facts()?;
            Ok(facts.filter(|facts| racy_for(facts) == Some(0)))
        }
        _ => Ok(None),
    }
}

/// Enough for the kernel's tick; coarser times are not waited for.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// The clock of files is behind the one that is asked here, by up to a tick.
const SLACK: Duration = Duration::from_millis(1);
