//! The lock of a state directory, and who has it.
//!
//! What keeps others out is the system's lock on the file; it ends with its process. The text in
//! the file is for whoever is turned away, and for people who find a lock on a file system of
//! several hosts: which process, and of which boot of which host. A text that is left when the
//! lock is free is that of a process that died; it counts for nothing and is written over.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::system;

pub(super) const LOCK_NAME: &str = "lock";
/// Bytes of the text that are looked at.
const TEXT_LEN_MAX: u64 = 256;

/// Held as long as this lives.
#[derive(Debug)]
pub(super) struct DirectoryLock(File);

impl DirectoryLock {
    /// The lock of the directory at `path`, which is there; `doing` is what whoever has it does.
    ///
    /// # Errors
    /// `InUse` while another job has it, `Io`.
    pub(super) fn take(path: &Path, doing: &str) -> Result<Self> {
        let failed = |what: &'static str| move |e| Error::io(e, what).path(path);
        let file =
            open(&path.join(LOCK_NAME)).map_err(failed("open the lock of state directory"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who = match Holder::read(&file).filter(|holder| !holder.is_gone()) {
                    Some(Holder { pid, .. }) => format!("another job, process {pid},"),
                    // It has the lock and did not say yet who it is.
                    None => "another job".to_owned(),
                };
                let message = format!("{who} {doing}");
                return Err(Error::new(ErrorKind::InUse, message).path(path));
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock state directory")(e)),
        }
        if let Some(Holder { pid, .. }) = Holder::read(&file) {
            tracing::info!(pid, "a process died that had this state directory");
        }
        // The lock is held without it.
        if let Err(error) = Holder::this().write(&file) {
            tracing::warn!(%error, "lock of state directory does not say whose it is");
        }
        Ok(Self(file))
    }
}

impl DirectoryLock {
    /// Whether somebody has the lock of the directory at `path`. What cannot be found out is no.
    pub(super) fn is_taken(path: &Path) -> bool {
        let Ok(file) = File::open(path.join(LOCK_NAME)) else {
            return false;
        };
        let mut text = String::new();
        match (&file).take(TEXT_LEN_MAX).read_to_string(&mut text) {
            // To try the lock is to have it for a moment, in which somebody could be turned away:
            // that is done only where a process says that it has it.
            Ok(_) if Holder::parse(&text).is_none_or(|holder| holder.is_gone()) => false,
            Ok(_) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            // Some systems do not let others read what is locked.
            Err(_) => true,
        }
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // A text that stays is taken for that of a process that died, which does no harm.
        let _ = self.0.set_len(0);
        // Not left to the closing: a process that another thread is about to start has the file as
        // well until it runs its program, and whoever takes the state up meanwhile would be
        // refused.
        let _ = self.0.unlock();
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    system::keep_private(&mut options);
    options.open(path)
}

/// Who has a lock, as the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    /// Of which boot of which host, where the system tells.
    boot: Option<String>,
}

impl Holder {
    fn this() -> Self {
        Self {
            pid: std::process::id(),
            boot: system::boot_id(),
        }
    }

    /// Whether it is no process of this host and boot any more. Of another host nothing is known.
    fn is_gone(&self) -> bool {
        self.boot != system::boot_id() || !system::may_be_running(self.pid)
    }

    /// `None` when the file does not say, or cannot be read while another process has the lock.
    fn read(mut file: &File) -> Option<Self> {
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(TEXT_LEN_MAX).read_to_string(&mut text).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.strip_prefix("pid ")?.parse().ok()?;
        let boot = lines.next().and_then(|line| line.strip_prefix("boot "));
        Some(Self {
            pid,
            boot: boot.map(str::to_owned),
        })
    }

    fn write(&self, mut file: &File) -> io::Result<()> {
        let mut text = format!("pid {}\n", self.pid);
        if let Some(boot) = &self.boot {
            text += &format!("boot {boot}\n");
        }
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DOING: &str = "works here";

    fn error_of(path: &Path) -> Error {
        DirectoryLock::take(path, DOING).expect_err("it is taken")
    }

    // Goal: who is turned away learns by whom. Method: two locks of one directory.
    #[test]
    fn the_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(dir.path(), DOING).unwrap();
        assert!(DirectoryLock::is_taken(dir.path()));
        let error = error_of(dir.path());
        assert_eq!(error.kind(), ErrorKind::InUse);
        let name = format!("process {},", std::process::id());
        assert!(error.chain().contains(&name), "{}", error.chain());
        drop(lock);
        assert_eq!(fs::read(dir.path().join(LOCK_NAME)).unwrap(), b"");
        assert!(!DirectoryLock::is_taken(dir.path()));
        DirectoryLock::take(dir.path(), DOING).unwrap();
    }

    // Goal: a lock ends with its owner, though a process that is about to be started has the file
    // as well. Method: a second descriptor of the same opening, as a fork makes it.
    #[cfg(unix)]
    #[test]
    fn a_fork_keeps_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(dir.path(), DOING).unwrap();
        let _of_a_child = lock.0.try_clone().unwrap();
        drop(lock);
        DirectoryLock::take(dir.path(), DOING).unwrap();
    }

    // Goal: what a dead process, or one of an earlier boot, left behind is no lock, and is not
    // named while another has it. Method: such texts, and some that say nothing.
    #[test]
    fn a_stale_text_is_no_lock() {
        let boot = system::boot_id().unwrap_or_default();
        let texts = [
            format!("pid 4294967295\nboot {boot}\n"),
            format!("pid {}\nboot of another time\n", std::process::id()),
            "pid x\n".to_owned(),
            "\0\0\0".to_owned(),
        ];
        for text in texts {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(LOCK_NAME);
            fs::write(&path, &text).unwrap();
            let lock = DirectoryLock::take(dir.path(), DOING).unwrap();
            assert_eq!(Holder::read(&lock.0), Some(Holder::this()));
            // As if it had not said yet who it is.
            fs::write(&path, &text).unwrap();
            let said = error_of(dir.path()).chain();
            assert!(said.contains("another job works"), "{said}");
        }
    }
}
