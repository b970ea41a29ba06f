//! Where the state of a target is kept.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::system;

/// The directory of `target`'s state: below `wanted`, else in `.failback` beside a file, else, for
/// a device, in `/var/lib/failback`. The same for every name of the same place.
///
/// # Errors
/// `Io` when the folder of the target cannot be looked up.
pub fn state_directory(target: &Path, wanted: Option<&Path>) -> Result<PathBuf> {
    let whole = absolute(target)?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    let base = match wanted {
        Some(wanted) => wanted.to_owned(),
        None if system::is_device(&whole) => PathBuf::from(OF_DEVICES),
        None => whole
            .parent()
            .unwrap_or(Path::new("/"))
            .join(DIRECTORY_NAME),
    };
    let short: String = name.chars().take(NAME_CHARS_MAX).collect();
    Ok(base.join(format!("{short}-{}", key_of(&whole))))
}

/// Where the new file stands that is to take the place of `whole`, an absolute path: beside it,
/// since only there one step changes the names. The same at every try, so that nothing is left
/// behind that nobody finds.
pub(crate) fn new_file_of(whole: &Path) -> PathBuf {
    whole.with_file_name(format!("{NEW_FILE_PREFIX}{}", key_of(whole)))
}

/// Names of targets are not unique across directories, and may be as long as a name can be.
fn key_of(whole: &Path) -> String {
    let key = blake3::hash(whole.as_os_str().as_encoded_bytes()).to_hex();
    key[..KEY_CHARS].to_owned()
}

/// The target by its whole path; its folder has to be there, it need not.
///
/// # Errors
/// `Io`.
pub(crate) fn absolute(target: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(e, "look up").path(target);
    if target.symlink_metadata().is_ok() {
        return target.canonicalize().map_err(failed);
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(failed)?;
    Ok(folder.join(target.file_name().unwrap_or_default()))
}

/// Where the state of devices is kept.
const OF_DEVICES: &str = "/var/lib/failback";
/// Beside a target that is a file.
pub(super) const DIRECTORY_NAME: &str = ".failback";
const NEW_FILE_PREFIX: &str = ".failback-new.";
const NAME_CHARS_MAX: usize = 40;
const KEY_CHARS: usize = 16;
