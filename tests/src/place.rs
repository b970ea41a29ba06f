//! Places where writing fails: small, read-only, or locked by someone else.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::tools;

/// A file system of its own, unmounted when dropped. Needs root.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    /// Holds the mount point and what is mounted there.
    _dir: TempDir,
}

impl Mount {
    /// An empty tmpfs that holds `bytes`.
    ///
    /// # Panics
    ///
    /// When it cannot be mounted.
    pub fn small(bytes: u64) -> Self {
        let dir = TempDir::new().expect("mount point");
        let size = format!("size={bytes}");
        tools::run(
            "mount",
            [
                "-t",
                "tmpfs",
                "-o",
                &size,
                "failback-test",
                text(dir.path()),
            ],
        );
        let point = dir.path().to_owned();
        Self { point, _dir: dir }
    }

    /// An empty file system of this kind (`ext4`, `xfs`) with so many MiB, in a file.
    ///
    /// # Panics
    ///
    /// When it cannot be made or mounted.
    pub fn in_file(kind: &str, mib: u64) -> Self {
        let dir = in_memory();
        let (file, point) = (dir.path().join("fs"), dir.path().join("mounted"));
        fs::create_dir(&point).expect("mount point");
        let made = fs::File::create(&file).and_then(|file| file.set_len(mib << 20));
        made.expect("file of the file system");
        tools::run(&format!("mkfs.{kind}"), ["-q", text(&file)]);
        tools::run("mount", ["-o", "loop", text(&file), text(&point)]);
        Self { point, _dir: dir }
    }

    /// Fills it with one file, up to what is to be left; removing the file frees the space again.
    ///
    /// # Panics
    ///
    /// When there is less already.
    pub fn fill_up_to(&self, left: u64) -> PathBuf {
        let asked = tools::run("stat", ["-f", "-c", "%a %S", text(self.path())]);
        let numbers: Vec<u64> = asked.split_whitespace().flat_map(str::parse).collect();
        let len = numbers.iter().product::<u64>() - left;
        let ballast = self.path().join("ballast");
        tools::run("fallocate", ["-l", &len.to_string(), text(&ballast)]);
        ballast
    }

    /// Changes what the medium holds at `at` of a file, as rot does: the file system knows nothing
    /// of it. Of one made by [`Self::in_file`], and of whole blocks.
    ///
    /// # Panics
    ///
    /// When the file has nothing there.
    pub fn rot(&self, path: &Path, at: u64, bytes: &[u8]) {
        // Flushes the file, and forgets what is in memory of it.
        let of = format!("of={}", text(path));
        let forget = ["oflag=nocache", "conv=notrunc,fdatasync", "count=0", &of];
        let forget = || tools::run("dd", forget.iter().copied().chain(["status=none"]));
        forget();
        let extents = tools::run("filefrag", ["-v", "-b512", text(path)]);
        let on_medium = extents.lines().find_map(|line| {
            let mut numbers = line
                .split([':', '.', ' '])
                .filter(|word| !word.is_empty())
                .map(str::parse::<u64>);
            let mut next = || numbers.next()?.ok().map(|sectors| sectors * 512);
            let (_, first, last, physical) = (next()?, next()?, next()?, next()?);
            (first..last + 512)
                .contains(&at)
                .then(|| physical + at - first)
        });
        let medium = self.point.with_file_name("fs");
        let medium = fs::File::options().write(true).open(medium);
        medium
            .and_then(|medium| medium.write_all_at(bytes, on_medium.expect("an extent")))
            .expect("rot");
        forget();
        let mut now = vec![0; bytes.len()];
        let file = fs::File::open(path).expect("file");
        file.read_exact_at(&mut now, at).expect("read");
        assert!(now == bytes, "the file is read from the medium");
    }

    /// A folder seen through a mount that allows no writes.
    ///
    /// # Panics
    ///
    /// When it cannot be mounted.
    pub fn read_only(of: &Path) -> Self {
        let dir = TempDir::new().expect("mount point");
        tools::run("mount", ["--bind", text(of), text(dir.path())]);
        let point = dir.path().to_owned();
        let mount = Self { point, _dir: dir };
        tools::run("mount", ["-o", "remount,ro,bind", text(mount.path())]);
        mount
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still be in it.
        tools::output("umount", ["-l", text(&self.point)]);
    }
}

/// A folder in memory where that is to be had, else on a disk: for what is flushed often, and
/// copied, and lost without harm.
///
/// # Panics
///
/// When it cannot be made.
pub fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => TempDir::new_in(memory),
        false => TempDir::new(),
    };
    dir.expect("folder")
}

/// Another process that holds a file; dropped, it is killed.
#[derive(Debug)]
pub struct Holder {
    child: Child,
}

impl Holder {
    /// Holds an open-file-description lock on the whole file, as virtual machine monitors do.
    ///
    /// # Panics
    ///
    /// When the lock is not granted.
    pub fn lock(path: &Path) -> Self {
        const SCRIPT: &str = "\
import fcntl, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
lock = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
fcntl.fcntl(fd, 37, lock)  # F_OFD_SETLK
print('held', flush=True)
time.sleep(600)
";
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT, text(path)]);
        Self::start(command)
    }

    /// Opens the image with qemu-io, which takes QEMU's own locks, and keeps it open.
    ///
    /// # Panics
    ///
    /// When QEMU cannot open it.
    pub fn qemu(path: &Path, format: crate::qemu::Format) -> Self {
        let mut command = Command::new("qemu-io");
        command.args([
            "-f",
            format.name(),
            "-c",
            "length",
            "-c",
            "sleep 600000",
            text(path),
        ]);
        // Written to a pipe its output would stay in its buffer until it ends.
        let mut unbuffered = Command::new("stdbuf");
        unbuffered
            .arg("-oL")
            .arg(command.get_program())
            .args(command.get_args());
        Self::start(unbuffered)
    }

    /// Serves the raw image with qemu-nbd, which opens it for writing, over a socket in `dir`.
    ///
    /// # Panics
    ///
    /// When it does not open the image.
    pub fn nbd(path: &Path, dir: &Path) -> Self {
        let socket = dir.join("nbd.sock");
        let child = Command::new("qemu-nbd")
            .args(["-t", "-f", "raw", "-k", text(&socket), text(path)])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd starts");
        let holder = Self { child };
        let from = Instant::now();
        while !is_locked(path) {
            assert!(from.elapsed() < crate::cli::RUN_MAX, "never opened");
            thread::sleep(Duration::from_millis(1));
        }
        holder
    }

    /// Starts the process and waits for its first line: it holds the file then.
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("line of the holder");
        assert!(!line.is_empty(), "{command:?} does not hold the file");
        Self { child }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether any process holds a lock on the file.
pub fn is_locked(path: &Path) -> bool {
    let Ok(meta) = fs::metadata(path) else {
        return false;
    };
    let inode = format!(":{}", meta.ino());
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    locks
        .lines()
        .any(|line| line.split_whitespace().any(|word| word.ends_with(&inode)))
}

/// Makes a file that its owner may not write; root is expected to respect that.
///
/// # Panics
///
/// When the mode cannot be changed.
pub fn make_read_only(path: &Path) {
    let mut permissions = fs::metadata(path).expect("metadata").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).expect("mode");
}

/// Overwrites bytes of a file.
///
/// # Panics
///
/// When the file cannot be written.
pub fn scribble(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path).expect("file");
    file.write_all_at(bytes, at).expect("scribble");
}

/// Adds bytes to the end of a file.
///
/// # Panics
///
/// When the file cannot be written.
pub fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let file = fs::OpenOptions::new().append(true).open(path);
    file.expect("file").write_all(bytes).expect("append");
}

/// Bytes of a file.
///
/// # Panics
///
/// When the file cannot be read.
pub fn bytes_at(path: &Path, at: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    let file = fs::File::open(path).expect("file");
    file.read_exact_at(&mut bytes, at).expect("bytes");
    bytes
}

/// Names of what stands in a folder, sorted, without failback's state folder.
///
/// # Panics
///
/// When the folder cannot be read.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries.map(|entry| name(entry.expect("entry"))).collect();
    names.retain(|name| name != ".failback");
    names.sort();
    names
}

/// Paths below a folder, by name.
pub fn paths<const N: usize>(dir: &Path, names: [&str; N]) -> [PathBuf; N] {
    names.map(|name| dir.join(name))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
