//! The key that the maps of a state directory are told by.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;

use failback_vhdx::FileAt;

use crate::error::{Error, ErrorKind, Result};
use crate::system;

/// Name of the key's file.
pub(super) const KEY_NAME: &str = "map.key";
const KEY_LEN: usize = 32;
const CONTEXT: &str = "failback map mac 1";

/// The key of a state directory. Whoever cannot read it cannot make a map that is believed.
#[derive(Clone)]
pub struct MapKey([u8; KEY_LEN]);

impl fmt::Debug for MapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MapKey(..)")
    }
}

impl MapKey {
    /// A key of these bytes.
    #[must_use]
    pub fn of(secret: [u8; KEY_LEN]) -> Self {
        Self(blake3::derive_key(CONTEXT, &secret))
    }

    /// The key of `directory`; `None` when it has none.
    ///
    /// # Errors
    /// `Refused` when others can read it, `Damaged` when it is no key, `Io`.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(KEY_NAME);
        let failed = |e| Error::io(e, "read").path(&path);
        let mut options = OpenOptions::new();
        options.read(true);
        system::keep_private(&mut options);
        let mut file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        if !system::is_private_file(&file).map_err(failed)? {
            let message = "is no file of this user alone (owner, mode 0600), as a key has to be";
            return Err(Error::new(ErrorKind::Refused, message).path(&path));
        }
        let mut secret = [0; KEY_LEN];
        let mut rest = [0];
        let is_whole =
            file.read_exact(&mut secret).is_ok() && file.read(&mut rest).is_ok_and(|n| n == 0);
        match is_whole {
            true => Ok(Some(Self::of(secret))),
            false => Err(Error::new(ErrorKind::Damaged, "is no key of maps").path(&path)),
        }
    }

    /// The same, made where it is missing. `directory` has to be there.
    ///
    /// # Errors
    /// As [`MapKey::load`].
    pub fn load_or_make(directory: &Path) -> Result<Self> {
        if let Some(key) = Self::load(directory)? {
            return Ok(key);
        }
        let path = directory.join(KEY_NAME);
        let failed = |e| Error::io(e, "make").path(&path);
        // Whole before it has its name, and never in place of another: two jobs may make it at
        // once, and maps of both are to be believed.
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        file.write_all(&random()).map_err(failed)?;
        FileAt::sync(file.as_file()).map_err(failed)?;
        match file.persist_noclobber(&path) {
            Ok(_) => system::sync_directory_of(&path).map_err(failed)?,
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e.error)),
        }
        Self::load(directory)?
            .ok_or_else(|| Error::new(ErrorKind::Io, "was removed while it was made").path(&path))
    }

    pub(super) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        *self.hash(parts).as_bytes()
    }

    /// Compares in constant time.
    pub(super) fn is_mac(&self, parts: &[&[u8]], mac: &[u8; 32]) -> bool {
        self.hash(parts) == *mac
    }

    fn hash(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Bytes that nobody can know: those of three version 4 UUIDs, in which 366 bits are random.
fn random() -> [u8; KEY_LEN] {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..3 {
        hasher.update(uuid::Uuid::new_v4().as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a key is made once and kept. Method: made twice, by two callers; another directory.
    #[test]
    fn a_key_is_made_once() {
        let [dir, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        assert!(MapKey::load(dir.path()).unwrap().is_none());
        let mac = |key: &MapKey| key.mac(&[b"x"]);
        let first = MapKey::load_or_make(dir.path()).unwrap();
        let again = MapKey::load_or_make(dir.path()).unwrap();
        let foreign = MapKey::load_or_make(other.path()).unwrap();
        assert_eq!(mac(&first), mac(&again));
        assert_ne!(mac(&first), mac(&foreign));
        assert!(first.is_mac(&[b"", b"x"], &mac(&first)));
    }

    // Goal: what is no key, or is everybody's, is none. Method: a short one, a long one, one that
    // others can read.
    #[cfg(unix)]
    #[test]
    fn what_is_no_secret_key_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        MapKey::load_or_make(dir.path()).unwrap();
        let path = dir.path().join(KEY_NAME);
        let kind = || MapKey::load_or_make(dir.path()).unwrap_err().kind();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert_eq!(kind(), ErrorKind::Refused);
        mode(0o600);
        std::fs::write(&path, [1; 31]).unwrap();
        assert_eq!(kind(), ErrorKind::Damaged);
        std::fs::write(&path, [1; 33]).unwrap();
        assert_eq!(kind(), ErrorKind::Damaged);
    }
}
