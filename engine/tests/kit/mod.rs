//! A session of two disks in this process, and disks that misbehave.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod stamped;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use failback_engine::disk::{DiskInfo, Extent, MemoryDisk, Source, Target};
use failback_engine::hash::HashKind;
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionLink, SessionOptions, Task, Until, run_source,
    run_target,
};
use failback_engine::system::MediumAccess;
use failback_engine::transport::link::{IDLE_LIMIT, Link, loopback};
use failback_engine::transport::{Apply, Compress, SourceEnd, TargetResult, VerifyLevel, split};
use failback_engine::units::{BlockSize, ByteOffset};
use failback_engine::{Abort, Error, ErrorKind, Result};

/// The smallest blocks, so that small disks have many.
pub(crate) const BLOCK: usize = 64 << 10;
/// A sub-block.
pub(crate) const PAGE: usize = 4096;

/// Options of a delta in the smallest blocks.
pub(crate) fn delta() -> SessionOptions {
    SessionOptions {
        task: Task::Delta,
        hash: HashKind::Blake3,
        block_size: BlockSize::new(BLOCK as u64).unwrap(),
        verify: VerifyLevel::Changed,
        compress: Compress::Off,
        sub_hash_seed: 7,
        apply: Apply::InPlace,
        container: None,
        goes_on: false,
        until: Until::End,
        source_mark: 0,
        target_root: None,
        may_send_whole: false,
    }
}

/// A session's end of a link.
pub(crate) fn session_link(link: Link) -> SessionLink {
    let peer = link.peer.clone();
    let (sender, mut receiver, closer, _) = split(link);
    receiver.set_idle_limit(IDLE_LIMIT).unwrap();
    SessionLink {
        sender,
        receiver,
        closer,
        peer,
    }
}

/// What both roles came to.
pub(crate) struct Ended {
    pub source: Result<(SourceEnd, TargetResult)>,
    pub target: Result<(SourceEnd, TargetResult)>,
    /// Bytes that the target put on the link.
    pub wire_out: u64,
    /// Bytes that it got.
    pub wire_in: u64,
}

/// Runs both roles over the loopback.
pub(crate) fn run_session(
    source: &dyn Source,
    target: &dyn Target,
    options: SessionOptions,
    is_new: bool,
) -> Ended {
    run_aborting(source, target, options, is_new, &Arc::new(Abort::new()))
}

/// The same with the source's abort in the caller's hand.
pub(crate) fn run_aborting(
    source: &dyn Source,
    target: &dyn Target,
    options: SessionOptions,
    is_new: bool,
    abort: &Arc<Abort>,
) -> Ended {
    run_over(loopback::pair(), source, target, options, is_new, abort)
}

/// The same over any link: the source's end, then the target's.
pub(crate) fn run_over(
    links: (Link, Link),
    source: &dyn Source,
    target: &dyn Target,
    options: SessionOptions,
    is_new: bool,
    abort: &Arc<Abort>,
) -> Ended {
    let session = || Session::new(options, source.info().virtual_size).unwrap();
    run_sessions(
        links,
        (source, session()),
        (target, session()),
        is_new,
        abort,
    )
}

/// The same with the sessions of both sides as the caller made them.
pub(crate) fn run_sessions(
    (near, far): (Link, Link),
    (source, source_session): (&dyn Source, Session),
    (target, target_session): (&dyn Target, Session),
    is_new: bool,
    abort: &Arc<Abort>,
) -> Ended {
    let near = session_link(near);
    let peer = far.peer.clone();
    let (sender, mut receiver, closer, counters) = split(far);
    receiver.set_idle_limit(IDLE_LIMIT).unwrap();
    let far = SessionLink {
        sender,
        receiver,
        closer,
        peer,
    };
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| run_source(&source_session, source, near, abort));
        let changes = (target_session.options.task != Task::Compare)
            .then(|| Changes::InPlace(InPlaceChanges::new(target, is_new, Box::new(|_| Ok(None)))));
        let target = run_target(
            &target_session,
            target,
            changes,
            far,
            &Arc::new(Abort::new()),
        );
        Ended {
            source: sending.join().unwrap(),
            target,
            wire_out: counters.bytes_out(),
            wire_in: counters.bytes_in(),
        }
    })
}

/// A disk in memory with one fault.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub disk: MemoryDisk,
    pub fault: Fault,
    pub reads: AtomicU64,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Reads from this position on fail.
    ReadError(u64),
    /// Writes from this position on find no space.
    WriteFull(u64),
    /// Flushing fails.
    FlushError,
    /// What is read back has one bit flipped at this position.
    ReadBackLies(u64),
    /// The byte at this position changes behind our back once it has been read.
    ChangesAfterRead(u64),
}

impl Faulty {
    pub(crate) fn new(bytes: Vec<u8>, fault: Fault) -> Self {
        Self {
            disk: MemoryDisk::new(bytes),
            fault,
            reads: AtomicU64::new(0),
        }
    }
}

fn covers(at: ByteOffset, len: usize, position: u64) -> bool {
    (at.0..at.0 + len as u64).contains(&position)
}

impl Source for Faulty {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.fault {
            Fault::ReadError(from) if at.0 + buf.len() as u64 > from => {
                Err(Error::new(ErrorKind::Io, "bad sector").at(from))
            }
            Fault::ChangesAfterRead(position) if covers(at, buf.len(), position) => {
                self.disk.read(at, buf)?;
                if self.reads.fetch_add(1, Ordering::SeqCst) == 0 {
                    self.disk.write(ByteOffset(position), &[0xee])?;
                }
                Ok(())
            }
            _ => self.disk.read(at, buf),
        }
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        self.disk.extent_at(at)
    }
}

impl Target for Faulty {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        match self.fault {
            Fault::WriteFull(from) if at.0 + data.len() as u64 > from => {
                Err(Error::new(ErrorKind::NoSpace, "no space left").at(at.0))
            }
            _ => self.disk.write(at, data),
        }
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.disk.zero(range)
    }

    fn zero_undefined(&self) -> Result<u64> {
        self.disk.zero_undefined()
    }

    fn flush(&self) -> Result<()> {
        match self.fault {
            Fault::FlushError => Err(Error::new(ErrorKind::Io, "flush failed")),
            _ => Ok(()),
        }
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.disk.read(at, buf)?;
        match self.fault {
            Fault::ReadBackLies(position) if covers(at, buf.len(), position) => {
                let index = usize::try_from(position - at.0).unwrap();
                buf[index] ^= 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Cache
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A disk of any length without memory: block n is filled with a byte made from n, some blocks are
/// zero; what is written is forgotten.
#[derive(Debug)]
pub(crate) struct Endless {
    pub blocks: u64,
    pub is_zero: fn(u64) -> bool,
}

impl Source for Endless {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            virtual_size: self.blocks * BLOCK as u64,
            ..MemoryDisk::new(Vec::new()).info()
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let block = at.0 / BLOCK as u64;
        buf.fill(if (self.is_zero)(block) {
            0
        } else {
            u8::try_from(block % 250).unwrap() + 1
        });
        Ok(())
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let end = ByteOffset((at.0 / BLOCK as u64 + 1) * BLOCK as u64);
        Ok(Extent {
            kind: failback_engine::disk::ExtentKind::Data,
            end,
        })
    }
}

impl Target for Endless {
    fn write(&self, _at: ByteOffset, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _range: Range<ByteOffset>) -> Result<()> {
        Ok(())
    }

    fn zero_undefined(&self) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.read(at, buf)
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Cache
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
