//! Power cuts under a real file system: every write that reaches the disk below it is logged, and
//! disks are made of prefixes of the log.
//!
//! ```text
//!   failback -> ext4, XFS, btrfs -> loop device -> FUSE export -> blklogwrites -> base
//!                                                                      |
//!                                                                     log -> state after a cut
//! ```
//!
//! qemu-storage-daemon exports the disk and writes the log, whose format is that of the kernel's
//! dm-log-writes: a head of 512 bytes (magic, version, count of entries: u64; sector size: u32),
//! then for each entry a sector (sector, count of sectors, flags, length: u64) and its data. What
//! was written after the last flush before the cut is lost, torn at a sector (where it is longer
//! than a physical one), or there, as a seed says: a disk with a volatile cache owes no more.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use crate::{cli, place, tools};

const MAGIC: u64 = 0x6a_736677_736872;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// What a disk writes whole or not at all. File systems count on it for the one block that they do
/// not keep twice, their superblock.
const WHOLE: u64 = 4096;
/// Of a hundred unflushed writes, so many are lost, and so many more are torn.
const LOST_PERCENT: u32 = 40;
const TORN_PERCENT: u32 = 20;

/// A file system on a disk whose writes can be logged, and a place where it is mounted.
#[derive(Debug)]
pub struct PowerCuts {
    dir: TempDir,
    kind: String,
    is_mounted: bool,
    daemon: Option<Child>,
}

impl PowerCuts {
    /// An empty file system of this kind with so many MiB, mounted; nothing is logged yet.
    ///
    /// # Panics
    ///
    /// When it cannot be made or mounted.
    pub fn new(kind: &str, mib: u64) -> Self {
        let mut made = Self {
            // Disks are copied for each state.
            dir: place::in_memory(),
            kind: kind.to_owned(),
            is_mounted: false,
            daemon: None,
        };
        fs::create_dir(made.mount_point()).expect("mount point");
        let disk = made.path("disk");
        let file = File::create(&disk).and_then(|file| file.set_len(mib << 20));
        file.expect("disk");
        tools::run(&format!("mkfs.{kind}"), ["-q", text(&disk)]);
        made.mount(&disk);
        made
    }

    /// Where the file system is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.path("mounted")
    }

    /// From now on every write to the disk is logged.
    ///
    /// # Panics
    ///
    /// When the daemon does not start.
    pub fn log(&mut self) {
        self.unmount();
        let [disk, base, log, export] =
            ["disk", "base", "log", "export"].map(|name| self.path(name));
        crate::scene::copy(&disk, &base);
        for path in [&log, &export] {
            File::create(path).expect("file of the daemon");
        }
        let pid = self.path("pid");
        let daemon = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,filename={},node-name=file",
                text(&disk)
            ))
            .arg("--blockdev")
            .arg("driver=raw,file=file,node-name=raw")
            .arg("--blockdev")
            .arg(format!("driver=file,filename={},node-name=log", text(&log)))
            .arg("--blockdev")
            .arg("driver=blklogwrites,file=raw,log=log,log-sector-size=512,node-name=logged")
            .arg("--export")
            .arg(format!(
                "type=fuse,id=fuse,node-name=logged,mountpoint={},writable=on",
                text(&export)
            ))
            .arg("--pidfile")
            .arg(&pid)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon starts");
        let daemon = self.daemon.insert(daemon);
        let from = Instant::now();
        // The file with its number is the last that it makes before it serves.
        while !pid.exists() {
            let ended = daemon.try_wait().expect("state of the daemon");
            assert!(ended.is_none(), "qemu-storage-daemon ended: {ended:?}");
            assert!(from.elapsed() < cli::RUN_MAX, "it never serves");
            thread::sleep(Duration::from_millis(5));
        }
        self.mount(&export);
    }

    /// Unmounts the disk and ends its log.
    ///
    /// # Panics
    ///
    /// When that fails, or the log is not what it should be.
    pub fn end_log(&mut self) -> WriteLog {
        self.unmount();
        let mut daemon = self.daemon.take().expect("a log was begun");
        tools::run("kill", ["-TERM", &daemon.id().to_string()]);
        daemon.wait().expect("end of the daemon");
        let durable = self.path("durable");
        crate::scene::copy(&self.path("base"), &durable);
        WriteLog::open(&self.path("log"), &durable)
    }

    /// Mounts the disk as it is after a power cut behind entry `cut` of the log. Cuts go upwards.
    /// Says how many writes were lost and torn.
    ///
    /// # Panics
    ///
    /// When it does not mount: the kernel could not recover its file system.
    pub fn mount_after(&mut self, log: &mut WriteLog, cut: usize, rng: &mut StdRng) -> (u32, u32) {
        self.unmount();
        let state = self.path("state");
        let harm = log.make(cut, &state, rng);
        self.mount(&state);
        harm
    }

    fn mount(&mut self, disk: &Path) {
        let point = self.mount_point();
        tools::run(
            "mount",
            ["-t", &self.kind, "-o", "loop", text(disk), text(&point)],
        );
        self.is_mounted = true;
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            tools::run("umount", [text(&self.mount_point())]);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for PowerCuts {
    fn drop(&mut self) {
        if self.is_mounted {
            tools::output("umount", ["-l", text(&self.mount_point())]);
        }
        if let Some(mut daemon) = self.daemon.take() {
            // Both fail only when it is gone already; a kill would leave its mount behind.
            tools::output("kill", ["-TERM", &daemon.id().to_string()]);
            let _ = daemon.wait();
        }
    }
}

/// What reached a disk, in order.
#[derive(Debug)]
pub struct WriteLog {
    log: File,
    entries: Vec<LogEntry>,
    /// The disk with what no power cut can take any more.
    durable: PathBuf,
    /// So many entries are in it.
    applied: usize,
}

#[derive(Clone, Copy, Debug)]
struct LogEntry {
    at: u64,
    len: u64,
    flags: u64,
    /// Where its data is in the log; none for a discard.
    data_at: u64,
}

impl LogEntry {
    fn has_data(self) -> bool {
        self.flags & (DISCARD | MARK) == 0
    }
}

impl WriteLog {
    fn open(path: &Path, durable: &Path) -> Self {
        let log = File::open(path).expect("log");
        let number = |at| {
            let mut bytes = [0; 8];
            log.read_exact_at(&mut bytes, at).expect("log");
            u64::from_le_bytes(bytes)
        };
        assert_eq!((number(0), number(8)), (MAGIC, 1), "not a log of writes");
        let (count, mut at) = (number(16), SECTOR);
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = LogEntry {
                at: number(at) * SECTOR,
                len: number(at + 8) * SECTOR,
                flags: number(at + 16),
                data_at: at + SECTOR,
            };
            at = entry.data_at + if entry.has_data() { entry.len } else { 0 };
            entries.push(entry);
        }
        Self {
            log,
            entries,
            durable: durable.to_owned(),
            applied: 0,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many of them are flushes.
    pub fn flushes(&self) -> usize {
        let flushes = self.entries.iter().filter(|entry| entry.flags & FLUSH != 0);
        flushes.count()
    }

    /// Makes the disk after a cut behind entry `cut`; the numbers of writes lost and torn.
    fn make(&mut self, cut: usize, state: &Path, rng: &mut StdRng) -> (u32, u32) {
        let is_flush = |at: &usize| self.entries[*at].flags & FLUSH != 0;
        let flushed = (0..cut).rev().find(is_flush).map_or(0, |at| at + 1);
        assert!(self.applied <= flushed.max(self.applied), "cuts go upwards");
        let open = |path: &Path| OpenOptions::new().write(true).open(path).expect("disk");
        let durable = open(&self.durable);
        for entry in &self.entries[self.applied..flushed.max(self.applied)] {
            self.apply(&durable, *entry, entry.len);
        }
        self.applied = flushed.max(self.applied);
        crate::scene::copy(&self.durable, state);
        let state = open(state);
        let (mut lost, mut torn) = (0, 0);
        for entry in &self.entries[flushed..cut] {
            let fate = rng.random_range(0..100);
            let is_safe = entry.flags & FUA != 0;
            let len = match fate {
                _ if is_safe => entry.len,
                0..LOST_PERCENT => {
                    lost += 1;
                    0
                }
                LOST_PERCENT.. if fate < LOST_PERCENT + TORN_PERCENT && entry.len > WHOLE => {
                    torn += 1;
                    rng.random_range(1..entry.len / SECTOR) * SECTOR
                }
                _ => entry.len,
            };
            self.apply(&state, *entry, len);
        }
        (lost, torn)
    }

    fn apply(&self, disk: &File, entry: LogEntry, len: u64) {
        if entry.flags & MARK != 0 {
            return;
        }
        let mut bytes = vec![0; usize::try_from(len).expect("a write fits in memory")];
        if entry.has_data() {
            self.log
                .read_exact_at(&mut bytes, entry.data_at)
                .expect("log");
        }
        disk.write_all_at(&bytes, entry.at).expect("disk");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
