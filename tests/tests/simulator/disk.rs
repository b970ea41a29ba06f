//! Disks of the simulation: the target on its host's file, and a source in memory that changes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use failback_engine::commit::Reopen;
use failback_engine::disk::{
    DiskInfo, Extent, ExtentKind, Layers, NewFile, Source, Target, TargetAccess,
};
use failback_engine::hash::is_zero;
use failback_engine::schedule::pause;
use failback_engine::state::Begun;
use failback_engine::system::MediumAccess;
use failback_engine::units::ByteOffset;
use failback_engine::{Error, ErrorKind, Result};
use failback_vhdx::{FileAt, Image, Place, Run};

use crate::content::BLOCK;
use crate::fault::{PLANTED, is_due};
use crate::world::{Host, HostFile};

/// What lies on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Vhdx,
}

/// The target's disk. Others may go on before and after each call, never within.
#[derive(Debug)]
pub(crate) struct FileDisk {
    file: Arc<HostFile>,
    image: Option<Box<Image>>,
    /// Planted: what was written is taken for what is there.
    is_gullible: bool,
    believed: Mutex<Vec<(u64, Vec<u8>)>>,
}

fn io(error: std::io::Error) -> Error {
    Error::io(error, "simulated disk")
}

fn damaged(error: &failback_vhdx::Error) -> Error {
    let cause = std::error::Error::source(error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let kind = match (error.kind(), cause.map(std::io::Error::kind)) {
        (failback_vhdx::ErrorKind::Io, Some(std::io::ErrorKind::StorageFull)) => ErrorKind::NoSpace,
        (failback_vhdx::ErrorKind::Io, _) => ErrorKind::Io,
        _ => ErrorKind::Damaged,
    };
    Error::new(kind, format!("simulated image: {error}"))
}

fn paused<T>(call: impl FnOnce() -> T) -> T {
    pause();
    let result = call();
    pause();
    result
}

impl FileDisk {
    pub(crate) fn open(host: &Host, format: Format) -> Result<Self> {
        Self::with(host, format, false, Image::open)
    }

    pub(crate) fn open_rw(host: &Host, format: Format, is_gullible: bool) -> Result<Self> {
        Self::with(host, format, is_gullible, Image::open_rw)
    }

    fn with(
        host: &Host,
        format: Format,
        is_gullible: bool,
        open: impl FnOnce(Arc<dyn FileAt>) -> failback_vhdx::Result<Image>,
    ) -> Result<Self> {
        let file = host.target();
        let image = match format {
            Format::Raw => None,
            Format::Vhdx => Some(Box::new(
                paused(|| open(file.clone())).map_err(|e| damaged(&e))?,
            )),
        };
        Ok(Self {
            file,
            image,
            is_gullible,
            believed: Mutex::default(),
        })
    }

    fn len(&self) -> Result<u64> {
        match &self.image {
            None => self.file.len().map_err(io),
            Some(image) => Ok(image.virtual_size()),
        }
    }

    /// All that a reader sees.
    pub(crate) fn content(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len()?).expect("a small disk")];
        self.read(ByteOffset(0), &mut bytes)?;
        Ok(bytes)
    }

    fn read_medium(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(image) = &self.image else {
            return self.file.read_at(at, buf).map_err(io);
        };
        // As the engine's own: the image says where, the file is read there.
        let mut runs = Vec::new();
        let resolved = image.resolve(at..at + buf.len() as u64, &mut runs);
        resolved.map_err(|e| damaged(&e))?;
        for Run { disk, place } in runs {
            let position = |offset: u64| usize::try_from(offset - at).expect("inside the buffer");
            let piece = &mut buf[position(disk.start)..position(disk.end)];
            match place {
                Place::File { at } => self.file.read_at(at, piece).map_err(io)?,
                Place::Replayed => image.read_at(disk.start, piece).map_err(|e| damaged(&e))?,
                Place::Zero | Place::Parent => piece.fill(0),
            }
        }
        Ok(())
    }
}

impl Source for FileDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "simulated".into(),
            virtual_size: self.len().unwrap_or(0),
            logical_sector_size: None,
            image_block_size: self.image.as_ref().map(|image| image.block_size()),
            identity: "simulated".into(),
            warnings: Vec::new(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        paused(|| match &self.image {
            None => self.file.read_at(at.0, buf).map_err(io),
            Some(image) => image.read_at(at.0, buf).map_err(|e| damaged(&e)),
        })
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let (kind, end) = paused(|| match &self.image {
            None => Ok((ExtentKind::Data, self.len()?)),
            Some(image) => {
                let found = image.extent_at(at.0).map_err(|e| damaged(&e))?;
                let kind = match found.kind {
                    failback_vhdx::ExtentKind::Data => ExtentKind::Data,
                    _ => ExtentKind::Zero,
                };
                Ok((kind, found.end))
            }
        })?;
        let end = ByteOffset(end);
        Ok(Extent { kind, end })
    }
}

impl Target for FileDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        if self.is_gullible {
            let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
            believed.push((at.0, data.to_vec()));
        }
        paused(|| match &self.image {
            None => self.file.write_at(at.0, data).map_err(io),
            Some(image) => image.write_at(at.0, data).map_err(|e| damaged(&e)),
        })
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        let range = range.start.0..range.end.0;
        paused(|| match &self.image {
            None => self.file.zero(range).map_err(io),
            Some(image) => image.zero(range).map_err(|e| damaged(&e)),
        })
    }

    fn zero_undefined(&self) -> Result<u64> {
        paused(|| match &self.image {
            None => Ok(0),
            Some(image) => image.zero_undefined().map_err(|e| damaged(&e)),
        })
    }

    fn flush(&self) -> Result<()> {
        paused(|| match &self.image {
            None => self.file.sync().map_err(io),
            Some(image) => image.flush().map_err(|e| damaged(&e)),
        })
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        paused(|| self.read_medium(at.0, buf))?;
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        for (start, data) in believed.iter() {
            let from = at.0.max(*start);
            let to = (at.0 + buf.len() as u64).min(start + data.len() as u64);
            for position in from..to {
                let index = |start: u64| usize::try_from(position - start).expect("a small disk");
                buf[index(at.0)] = data[index(*start)];
            }
        }
        Ok(())
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Medium
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(Some(self.file.mark()))
    }

    fn close(&self) -> Result<()> {
        paused(|| match &self.image {
            None => self.file.sync().map_err(io),
            // As the engine's own.
            Some(image) => image
                .settle()
                .and_then(|()| image.close())
                .and_then(|()| image.prove_structure(self.file.clone()))
                .map_err(|e| damaged(&e)),
        })
    }
}

/// The target of a host, as the engine reaches it, now and after a crash.
#[derive(Debug)]
pub(crate) struct Access {
    host: Host,
    format: Format,
    is_gullible: bool,
    disk: FileDisk,
}

impl Access {
    pub(crate) fn of(host: &Host, format: Format, is_gullible: bool) -> Result<Self> {
        Ok(Self {
            host: host.clone(),
            format,
            is_gullible,
            disk: FileDisk::open(host, format)?,
        })
    }
}

impl TargetAccess for Access {
    fn source(&self) -> &dyn Source {
        &self.disk
    }

    fn identity(&self) -> Result<String> {
        Ok(self.host.identity())
    }

    fn file_id(&self) -> Result<String> {
        Ok("the target".into())
    }

    fn room(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }

    fn open_for_writing(&self) -> Result<Arc<dyn Target>> {
        let disk = FileDisk::open_rw(&self.host, self.format, self.is_gullible)?;
        Ok(Arc::new(disk))
    }
}

/// Finds the target again after a crash.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) host: Host,
    pub(crate) format: Format,
    pub(crate) is_gullible: bool,
}

impl Reopen for Again {
    fn access(&self, _begun: &Begun, _file_id: &str) -> Result<Box<dyn TargetAccess>> {
        let access = Access::of(&self.host, self.format, self.is_gullible)?;
        Ok(Box::new(access))
    }

    fn target(&self, _begun: &Begun) -> Result<Arc<dyn Target>> {
        self.host.forget_cache();
        let disk = FileDisk::open_rw(&self.host, self.format, self.is_gullible)?;
        Ok(Arc::new(disk))
    }

    fn new_file(&self, _begun: &Begun) -> Result<Box<dyn NewFile>> {
        let message = "no job here replaces its target";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn layers(&self, _begun: &Begun) -> Result<(Box<dyn TargetAccess>, Box<dyn Layers>)> {
        let message = "no job here has a child of its target";
        Err(Error::new(ErrorKind::Unsupported, message))
    }
}

/// A source in memory.
#[derive(Debug)]
pub(crate) struct SourceDisk {
    state: Mutex<SourceState>,
}

#[derive(Debug)]
struct SourceState {
    bytes: Arc<Vec<u8>>,
    /// What it becomes after so many reads.
    becomes: Option<(u64, Arc<Vec<u8>>)>,
    fails_in: Option<u64>,
    panics_in: Option<u64>,
}

impl SourceDisk {
    pub(crate) fn new(
        bytes: Arc<Vec<u8>>,
        becomes: Option<(u64, Arc<Vec<u8>>)>,
        fails_in: Option<u64>,
    ) -> Self {
        let state = Mutex::new(SourceState {
            bytes,
            becomes,
            fails_in,
            panics_in: None,
        });
        Self { state }
    }

    /// The same, that panics at its read with this number.
    pub(crate) fn panicking_in(self, panics_in: Option<u64>) -> Self {
        let state = self.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let state = Mutex::new(SourceState { panics_in, ..state });
        Self { state }
    }

    /// What it holds now.
    pub(crate) fn bytes(&self) -> Arc<Vec<u8>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes.clone()
    }
}

impl SourceState {
    fn next_read(&mut self) -> Result<Arc<Vec<u8>>> {
        match &mut self.becomes {
            Some((0, new)) => self.bytes = new.clone(),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        assert!(!is_due(&mut self.panics_in), "{PLANTED}");
        match &mut self.fails_in {
            Some(0) => return Err(Error::new(ErrorKind::Io, "simulated source: bad sector")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self.bytes.clone())
    }
}

impl Source for SourceDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "simulated".into(),
            virtual_size: self.bytes().len() as u64,
            logical_sector_size: None,
            image_block_size: None,
            identity: "simulated".into(),
            warnings: Vec::new(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        paused(|| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = state.next_read()?;
            let at = usize::try_from(at.0).expect("a small disk");
            buf.copy_from_slice(&bytes[at..at + buf.len()]);
            Ok(())
        })
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let bytes = self.bytes();
        let position = usize::try_from(at.0).expect("a small disk");
        // Some zeros are known to be, others have to be read; nothing lies.
        let mut blocks = bytes[position..]
            .chunks(BLOCK)
            .map(|block| (block.len(), is_zero(block)));
        let zeros = blocks.by_ref().take_while(|(_, is_zero)| *is_zero);
        let zeros = zeros.map(|(len, _)| len).sum::<usize>();
        let (kind, len) = match zeros >= KNOWN_ZEROS_MIN {
            true => (ExtentKind::Zero, zeros),
            false => (ExtentKind::Data, BLOCK.min(bytes.len() - position)),
        };
        let end = ByteOffset(at.0 + len as u64);
        Ok(Extent { kind, end })
    }
}

/// Runs of zeros of so many bytes are known to the source without being read.
const KNOWN_ZEROS_MIN: usize = 3 * BLOCK;
