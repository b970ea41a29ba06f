//! What syncs saw of the disks of this host, kept for the plans after them.
//!
//! ```text
//! .failback/seen-rates     one JSON object: the places, that written to last first
//! ```
//! A hint and nothing more: what cannot be read counts as nothing seen, and what is wrong in it
//! makes a plan wrong and no disk. Where others may write nothing is read or kept: a name there may
//! be a pipe.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::SeenRates;
use crate::state::{absolute, state_directory};
use crate::system;

const NAME: &str = "seen-rates";
/// Places that are kept, the latest ones: a state directory may be that of many disks.
const PLACE_COUNT_MAX: usize = 64;
/// Bytes of the file.
const LEN_MAX: u64 = 256 << 10;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    places: Vec<Place>,
}

/// A folder, whose files lie on one disk, or a device.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    rates: SeenRates,
}

/// What was seen of the disk on which `target` lies, whose state is kept below `state`.
pub(crate) fn seen_rates(target: &Path, state: Option<&Path>) -> SeenRates {
    let find = || {
        let kept = load(base_of(&state_directory(target, state)?))?;
        let place = place_of(target)?;
        Ok(kept
            .unwrap_or_default()
            .places
            .into_iter()
            .find(|kept| kept.path == place))
    };
    let found: Result<_> = find();
    match found {
        Ok(found) => found.map(|place| place.rates).unwrap_or_default(),
        Err(error) => {
            tracing::debug!(error = error.chain(), "what was seen of a disk is not read");
            SeenRates::default()
        }
    }
}

/// Keeps what a sync to `target`, whose own state directory is `own`, saw.
pub(crate) fn keep_seen_rates(target: &Path, own: &Path, seen: &SeenRates) {
    if seen.is_empty() {
        return;
    }
    let kept = place_of(target).and_then(|place| {
        let directory = base_of(own);
        let Some(mut kept) = load(directory)? else {
            return Ok(());
        };
        let before = kept.places.iter().position(|kept| kept.path == place);
        let before = before.map(|at| kept.places.remove(at).rates);
        let rates = seen.after(&before.unwrap_or_default());
        kept.places.insert(0, Place { path: place, rates });
        kept.places.truncate(PLACE_COUNT_MAX);
        store(directory, &kept)
    });
    if let Err(error) = kept {
        tracing::debug!(error = error.chain(), "what was seen of a disk is not kept");
    }
}

/// The directory of all states, by that of one.
fn base_of(own: &Path) -> &Path {
    own.parent().unwrap_or(own)
}

/// Whether nobody else can say what a name there stands for.
fn is_ours(directory: &Path) -> Result<bool> {
    let failed = |e| Error::io(e, "stat").path(directory);
    let whole = directory.canonicalize().map_err(failed)?;
    system::is_kept_from_others(&whole).map_err(failed)
}

fn place_of(target: &Path) -> Result<PathBuf> {
    let whole = absolute(target)?;
    let folder = whole.parent().filter(|_| !system::is_device(&whole));
    Ok(folder.unwrap_or(&whole).to_owned())
}

/// `None`: others may write there.
fn load(directory: &Path) -> Result<Option<Kept>> {
    let path = directory.join(NAME);
    let failed = |e| Error::io(e, "read").path(&path);
    if !is_ours(directory)? {
        return Ok(None);
    }
    let mut options = OpenOptions::new();
    options.read(true);
    system::keep_private(&mut options);
    // A pipe that took its place meanwhile is not waited for, neither here nor below.
    let file = match options.open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Kept::default())),
        Err(e) => return Err(failed(e)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(Some(Kept::default()));
    }
    let mut text = Vec::new();
    file.take(LEN_MAX).read_to_end(&mut text).map_err(failed)?;
    // A write that a power cut took back, or another program's: begun anew.
    Ok(Some(serde_json::from_slice(&text).unwrap_or_default()))
}

fn store(directory: &Path, kept: &Kept) -> Result<()> {
    let path = directory.join(NAME);
    let failed = |e| Error::io(e, "write").path(&path);
    let text = serde_json::to_vec(kept)
        .map_err(io::Error::from)
        .map_err(failed)?;
    // Whole before it has its name: two syncs may end at once.
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    file.persist(&path).map(drop).map_err(|e| failed(e.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn keep(target: &Path, state: Option<&Path>, seen: &SeenRates) {
        keep_seen_rates(target, &state_directory(target, state).unwrap(), seen);
    }

    fn seen(write: f64) -> SeenRates {
        SeenRates {
            write: Some(write),
            ..SeenRates::default()
        }
    }

    // Goal: a plan finds what a sync to the same place saw, and nothing of another. Method: two
    // disks of one folder, one of another, all with one state directory, and none.
    #[test]
    fn a_place_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        for folder in [&here, &there, &dir.path().join("state")] {
            fs::create_dir(folder).unwrap();
        }
        let state = dir.path().join("state");
        let state = Some(state.as_path());
        keep(&here.join("a.raw"), state, &SeenRates::default());
        assert!(!dir.path().join("state").join(NAME).exists());

        keep(&here.join("a.raw"), state, &seen(400.0));
        keep(&there.join("a.raw"), state, &seen(9.0));
        keep(&here.join("b.raw"), state, &seen(100.0));

        assert_eq!(seen_rates(&here.join("c.raw"), state).write, Some(200.0));
        assert_eq!(seen_rates(&there.join("b.raw"), state).write, Some(9.0));
        assert!(seen_rates(&here.join("c.raw"), None).is_empty());
        // No directory of states is made for it.
        keep(&here.join("a.raw"), None, &seen(1.0));
        assert!(fs::read_dir(&here).unwrap().next().is_none());
    }

    // Goal: a file that is not as it was written is nothing seen, and is written anew. Method: cut
    // off, of other fields, too long, and rates that are none.
    #[test]
    fn what_is_damaged_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk");
        let place = dir.path().canonicalize().unwrap();
        let state = Some(dir.path());
        let path = dir.path().join(NAME);
        keep(&target, state, &seen(5.0));
        let whole = fs::read_to_string(&path).unwrap();
        let odd = format!(r#"{{"places":[{{"path":{place:?},"rates":{{"speed":1}}}}]}}"#);
        let long = " ".repeat(usize::try_from(LEN_MAX).unwrap()) + &whole;
        for text in ["", &whole[..whole.len() - 1], &odd, "[1]", &long] {
            fs::write(&path, text).unwrap();
            assert!(seen_rates(&target, state).is_empty(), "{}", text.trim());
            keep(&target, state, &seen(6.0));
            assert_eq!(seen_rates(&target, state), seen(6.0));
        }
    }

    // Goal: nothing is waited for, followed or kept where others may write. Method: a folder that
    // they may write to, with and without a pipe of the name; then one that is ours, with a link.
    #[cfg(unix)]
    #[test]
    fn a_folder_of_others_is_left_alone() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("disk"), dir.path().join(NAME));
        let state = Some(dir.path());
        let allow = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
        allow(0o777).unwrap();
        keep(&target, state, &seen(5.0));
        assert!(!path.exists());
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(seen_rates(&target, state).is_empty());
        keep(&target, state, &seen(5.0));
        fs::remove_file(&path).unwrap();

        allow(0o755).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "kept").unwrap();
        symlink(&other, &path).unwrap();
        assert!(seen_rates(&target, state).is_empty());
        keep(&target, state, &seen(5.0));
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        assert!(seen_rates(&target, state).is_empty());
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2, "something was left");
    }

    // Goal: it does not grow for ever. Method: more places than are kept; the first is gone.
    #[test]
    fn old_places_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |number: usize| dir.path().join(number.to_string());
        for number in 0..=PLACE_COUNT_MAX {
            fs::create_dir(folder(number)).unwrap();
            keep(&folder(number).join("disk"), Some(dir.path()), &seen(1.0));
        }
        let found = |number| seen_rates(&folder(number).join("disk"), Some(dir.path()));
        assert!(found(0).is_empty());
        assert_eq!(found(1), seen(1.0));
        assert_eq!(found(PLACE_COUNT_MAX), seen(1.0));
    }
}
