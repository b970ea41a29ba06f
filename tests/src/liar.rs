//! A medium that acknowledges writes and keeps other bytes: a file system of this process, over
//! FUSE, with the kernel's page cache in front of it.
//!
//! ```text
//!   failback --write(2)--> page cache --FUSE_WRITE--> Medium    keeps what the lie says
//!            <--read(2)---     |                         |
//!            <--O_DIRECT read--+-------FUSE_READ---------+      shows what it keeps
//! ```
//!
//! Files stay in the page cache from one open to the next (`FOPEN_KEEP_CACHE`), so a plain read
//! shows what was written; only a read past the cache tells the truth. One folder, no folders in
//! it: the state of a target is kept elsewhere. What is a lie of names (rename, unlink) is not
//! played.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

/// What is kept of a write instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing: the old bytes stay.
    Lost,
    /// All of it but one bit.
    FlippedBit,
    /// All of it, in another place.
    Misdirected,
}

/// All lies.
pub const LIES: [Lie; 3] = [Lie::Lost, Lie::FlippedBit, Lie::Misdirected];

/// One lie that is to be told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which.
    pub lie: Lie,
    /// How many writes that change something within `places` are kept truly before it.
    pub after: usize,
    /// Places of a file to which a write must go to be lied about.
    pub places: Range<u64>,
}

/// The kernel may keep names and attributes for so long: not at all.
const KEPT_FOR: Duration = Duration::ZERO;
const ATTR_KEPT_FOR: Duration = Duration::from_secs(1);
/// Bytes that the file system says it has left.
const ROOM: u64 = 1 << 40;
const BLOCK_LEN: u32 = 4096;
/// How far a misdirected write goes astray.
const ASTRAY: u64 = 64 << 10;

/// A mounted file system that lies when it is told to; unmounted when dropped. Needs root.
#[derive(Debug)]
pub struct Liar {
    // Dropped first: it unmounts.
    _session: BackgroundSession,
    medium: Arc<Mutex<Medium>>,
    dir: TempDir,
}

impl Liar {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// When it cannot be mounted.
    pub fn mount() -> Self {
        let dir = TempDir::new().expect("mount point");
        let medium = Arc::new(Mutex::new(Medium::default()));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("failback-liar".into()),
            MountOption::NoDev,
            MountOption::NoSuid,
        ];
        let server = Server(Arc::clone(&medium));
        let session = fuser::spawn_mount(server, dir.path(), &config).expect("mount");
        Self {
            _session: session,
            medium,
            dir,
        }
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a file there, of which the page cache knows nothing.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut medium = self.medium();
        let inode = medium.new_inode(bytes);
        medium.names.insert(name.into(), inode);
    }

    /// What the medium holds of a file, whatever the page cache shows.
    ///
    /// # Panics
    ///
    /// When there is no such file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let medium = self.medium();
        let inode = medium.names[OsStr::new(name)];
        medium.files[&inode].bytes.clone()
    }

    /// From now on it tells this lie, once; `None` for none.
    pub fn tell(&self, plan: Option<Plan>) {
        self.medium().plan = plan;
    }

    /// How many writes would still be kept truly; `None` once the lie was told.
    pub fn left(&self) -> Option<usize> {
        self.medium().plan.as_ref().map(|plan| plan.after)
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        lock(&self.medium)
    }
}

fn lock(medium: &Mutex<Medium>) -> MutexGuard<'_, Medium> {
    medium.lock().expect("no panic under it")
}

/// What is really there.
#[derive(Debug, Default)]
struct Medium {
    names: BTreeMap<OsString, u64>,
    files: BTreeMap<u64, Kept>,
    last_inode: u64,
    plan: Option<Plan>,
}

#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    changed: SystemTime,
    mode: u16,
}

impl Medium {
    fn new_inode(&mut self, bytes: Vec<u8>) -> u64 {
        self.last_inode = self.last_inode.max(INodeNo::ROOT.0) + 1;
        let kept = Kept {
            bytes,
            changed: SystemTime::now(),
            mode: 0o644,
        };
        self.files.insert(self.last_inode, kept);
        self.last_inode
    }

    fn find(&self, name: &OsStr) -> Result<u64, Errno> {
        self.names.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn file(&mut self, inode: INodeNo) -> Result<&mut Kept, Errno> {
        self.files.get_mut(&inode.0).ok_or(Errno::ENOENT)
    }

    fn write(&mut self, inode: INodeNo, at: u64, data: &[u8]) -> Result<(), Errno> {
        let len = data.len() as u64;
        let from = index(at);
        let lie = self.lie_about(inode, at, data);
        let kept = self.file(inode)?;
        kept.changed = SystemTime::now();
        // The length is always kept: a medium whose files are short is found by any reader.
        let end = kept.bytes.len().max(index(at + len));
        kept.bytes.resize(end, 0);
        match lie {
            None => kept.bytes[from..][..data.len()].copy_from_slice(data),
            Some(Lie::Lost) => {}
            Some(Lie::FlippedBit) => {
                kept.bytes[from..][..data.len()].copy_from_slice(data);
                let byte = from + data.len() / 3;
                kept.bytes[byte] ^= 1 << (byte % 8);
            }
            Some(Lie::Misdirected) => {
                let astray = match at >= ASTRAY {
                    true => index(at - ASTRAY),
                    false => from + data.len(),
                };
                let end = kept.bytes.len().min(astray + data.len());
                let there = &mut kept.bytes[astray.min(end)..end];
                there.copy_from_slice(&data[..there.len()]);
            }
        }
        Ok(())
    }

    /// Whether this write is the one, and the lie.
    fn lie_about(&mut self, inode: INodeNo, at: u64, data: &[u8]) -> Option<Lie> {
        let plan = self.plan.as_mut()?;
        let now = &self.files.get(&inode.0)?.bytes;
        let there = now.get(index(at).min(now.len())..).unwrap_or_default();
        let there = &there[..there.len().min(data.len())];
        // Bytes past the end count as zeros.
        let is_changed =
            there != &data[..there.len()] || data[there.len()..].iter().any(|b| *b > 0);
        if !plan.places.contains(&at) || !is_changed {
            return None;
        }
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        self.plan.take().map(|plan| plan.lie)
    }

    fn attr(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        let (kind, perm, size, time) = match self.files.get(&inode.0) {
            _ if inode == INodeNo::ROOT => (FileType::Directory, 0o755, 0, SystemTime::UNIX_EPOCH),
            None => return Err(Errno::ENOENT),
            Some(kept) => {
                let len = kept.bytes.len() as u64;
                (FileType::RegularFile, kept.mode, len, kept.changed)
            }
        };
        Ok(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_LEN,
            flags: 0,
        })
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("files of tests fit in memory")
}

/// The file system's side of the kernel's requests.
struct Server(Arc<Mutex<Medium>>);

impl Server {
    fn medium(&self) -> MutexGuard<'_, Medium> {
        lock(&self.0)
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let medium = self.medium();
        let found = medium.find(name).and_then(|at| medium.attr(INodeNo(at)));
        match found {
            Ok(attr) => reply.entry(&KEPT_FOR, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.medium().attr(inode) {
            Ok(attr) => reply.attr(&ATTR_KEPT_FOR, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut medium = self.medium();
        if let Ok(kept) = medium.file(inode) {
            kept.changed = SystemTime::now();
            if let Some(size) = size {
                kept.bytes.resize(index(size), 0);
            }
            if let Some(mode) = mode.and_then(|mode| u16::try_from(mode & 0o7777).ok()) {
                kept.mode = mode;
            }
        }
        match medium.attr(inode) {
            Ok(attr) => reply.attr(&ATTR_KEPT_FOR, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut medium = self.medium();
        let inode = medium.new_inode(Vec::new());
        medium.names.insert(name.to_owned(), inode);
        if let (Ok(kept), Ok(mode)) = (medium.file(INodeNo(inode)), u16::try_from(mode & 0o7777)) {
            kept.mode = mode;
        }
        let attr = medium.attr(INodeNo(inode));
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        match attr {
            Ok(attr) => reply.created(&KEPT_FOR, &attr, Generation(0), FileHandle(0), flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.medium().names.remove(name) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // Exchanging two names is more than a file system has to offer.
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let mut medium = self.medium();
        match medium.names.remove(name) {
            None => reply.error(Errno::ENOENT),
            Some(inode) => {
                medium.names.insert(new_name.to_owned(), inode);
                reply.ok();
            }
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.medium().file(inode) {
            Err(errno) => reply.error(errno),
            Ok(kept) => {
                let from = index(offset).min(kept.bytes.len());
                let to = (from + size as usize).min(kept.bytes.len());
                reply.data(&kept.bytes[from..to]);
            }
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.medium().write(inode, offset, data) {
            Err(errno) => reply.error(errno),
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a write of the kernel")),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        _inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let medium = self.medium();
        let names = medium.names.iter().zip(1..).skip(index(offset));
        for ((name, inode), next) in names {
            if reply.add(INodeNo(*inode), next, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = ROOM / u64::from(BLOCK_LEN);
        reply.statfs(
            blocks,
            blocks,
            blocks,
            1 << 20,
            1 << 20,
            BLOCK_LEN,
            255,
            BLOCK_LEN,
        );
    }
}

/// Bytes of a file by a plain read, which the page cache answers.
///
/// # Panics
///
/// When it cannot be read.
pub fn through_the_cache(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("file")
}

/// Bytes of a file by reads past the page cache.
///
/// # Errors
///
/// Those of `dd`, which makes them.
pub fn past_the_cache(path: &Path) -> io::Result<Vec<u8>> {
    let mut from = OsString::from("if=");
    from.push(path);
    let done = std::process::Command::new("dd")
        .arg(from)
        .args(["iflag=direct", "bs=1M", "status=none"])
        .output()?;
    match done.status.success() {
        true => Ok(done.stdout),
        false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr))),
    }
}
