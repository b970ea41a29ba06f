//! Disks on the files of a host whose power can be cut.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use failback_engine::commit::Reopen;
use failback_engine::disk::{
    DiskInfo, Extent, ExtentKind, Layers, NewFile, Source, Target, TargetAccess,
};
use failback_engine::state::Begun;
use failback_engine::system::MediumAccess;
use failback_engine::units::ByteOffset;
use failback_engine::{Error, ErrorKind, Result};
use failback_vhdx::{FileAt, Image};

use crate::beside::Beside;
use crate::layered::Stack;
use crate::world::{World, WorldFile};
use crate::wrapping::LOG_START;

/// What lies on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Vhdx,
}

/// A disk on a file.
#[derive(Debug)]
pub(crate) enum FileDisk {
    Raw(Arc<WorldFile>),
    Vhdx(Box<Image>),
}

fn io(error: std::io::Error) -> Error {
    Error::io(error, "test disk")
}

pub(crate) fn damaged(error: failback_vhdx::Error) -> Error {
    Error::new(ErrorKind::Damaged, format!("test image: {error}"))
}

/// Bytes that are looked at at once.
const PIECE_LEN: usize = 64 << 10;

thread_local! {
    static PIECE: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE_LEN]);
}

impl FileDisk {
    pub(crate) fn open(file: Arc<WorldFile>, format: Format) -> Result<Self> {
        Ok(match format {
            Format::Raw => Self::Raw(file),
            Format::Vhdx => Self::Vhdx(Box::new(Image::open(file).map_err(damaged)?)),
        })
    }

    pub(crate) fn open_rw(file: Arc<WorldFile>, format: Format) -> Result<Self> {
        Ok(match format {
            Format::Raw => Self::Raw(file),
            Format::Vhdx => {
                let image = Image::open_rw(file).map_err(damaged)?;
                image.begin_log_at(LOG_START);
                Self::Vhdx(Box::new(image))
            }
        })
    }

    fn len(&self) -> u64 {
        match self {
            Self::Raw(file) => file.len().unwrap(),
            Self::Vhdx(image) => image.virtual_size(),
        }
    }

    /// The first byte that is not as expected; `None`: none. Looked at piece by piece: most of what
    /// a state costs is this.
    pub(crate) fn first_other(&self, expected: &[u8]) -> Result<Option<usize>> {
        let len = usize::try_from(self.len()).unwrap();
        if len != expected.len() {
            return Ok(Some(len.min(expected.len())));
        }
        self.find_piece(|at, found| {
            let expected = &expected[at..at + found.len()];
            if found == expected {
                return None;
            }
            let within = found.iter().zip(expected).position(|(a, b)| a != b);
            within.map(|within| at + within)
        })
    }

    /// Reads all of it, whatever it holds.
    pub(crate) fn read_through(&self) -> Result<()> {
        self.find_piece(|_, _| None).map(drop)
    }

    /// Reads piece by piece until one is found.
    fn find_piece(&self, find: impl Fn(usize, &[u8]) -> Option<usize>) -> Result<Option<usize>> {
        let len = usize::try_from(self.len()).unwrap();
        PIECE.with_borrow_mut(|piece| {
            for at in (0..len).step_by(PIECE_LEN) {
                let found = &mut piece[..PIECE_LEN.min(len - at)];
                self.read(ByteOffset(at as u64), found)?;
                let place = find(at, found);
                if place.is_some() {
                    return Ok(place);
                }
            }
            Ok(None)
        })
    }

    pub(crate) fn content(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len()).unwrap()];
        self.read(ByteOffset(0), &mut bytes)?;
        Ok(bytes)
    }
}

impl Source for FileDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "test".into(),
            virtual_size: self.len(),
            logical_sector_size: None,
            image_block_size: match self {
                Self::Raw(_) => None,
                Self::Vhdx(image) => Some(image.block_size()),
            },
            identity: "test".into(),
            warnings: Vec::new(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Raw(file) => file.read_at(at.0, buf).map_err(io),
            Self::Vhdx(image) => image.read_at(at.0, buf).map_err(damaged),
        }
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let (kind, end) = match self {
            Self::Raw(_) => (ExtentKind::Data, self.len()),
            Self::Vhdx(image) => {
                let found = image.extent_at(at.0).map_err(damaged)?;
                let kind = match found.kind {
                    failback_vhdx::ExtentKind::Data => ExtentKind::Data,
                    _ => ExtentKind::Zero,
                };
                (kind, found.end)
            }
        };
        Ok(Extent {
            kind,
            end: ByteOffset(end),
        })
    }
}

impl Target for FileDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        match self {
            Self::Raw(file) => file.write_at(at.0, data).map_err(io),
            Self::Vhdx(image) => image.write_at(at.0, data).map_err(damaged),
        }
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        let range = range.start.0..range.end.0;
        match self {
            Self::Raw(file) => file.zero(range).map_err(io),
            Self::Vhdx(image) => image.zero(range).map_err(damaged),
        }
    }

    fn zero_undefined(&self) -> Result<u64> {
        match self {
            Self::Raw(_) => Ok(0),
            Self::Vhdx(image) => image.zero_undefined().map_err(damaged),
        }
    }

    fn flush(&self) -> Result<()> {
        match self {
            Self::Raw(file) => file.sync().map_err(io),
            Self::Vhdx(image) => image.flush().map_err(damaged),
        }
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.read(at, buf)
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Medium
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(match self {
            // As of a device.
            Self::Raw(_) => None,
            Self::Vhdx(_) => Some(self.len().to_string()),
        })
    }

    fn close(&self) -> Result<()> {
        match self {
            // As the real one; what was written by then is durable already.
            Self::Raw(_) => Ok(()),
            Self::Vhdx(image) => image.close().map_err(damaged),
        }
    }
}

/// The target of a host, as the engine reaches it.
#[derive(Debug)]
pub(crate) struct Access {
    world: World,
    format: Format,
    disk: FileDisk,
}

impl Access {
    pub(crate) fn of(world: &World, format: Format) -> Result<Self> {
        Ok(Self {
            world: world.clone(),
            format,
            disk: FileDisk::open(target_of(world)?, format)?,
        })
    }
}

impl TargetAccess for Access {
    fn source(&self) -> &dyn Source {
        &self.disk
    }

    fn identity(&self) -> Result<String> {
        // Stands for file id, length and time of last change.
        let file = self.world.number_of(crate::world::TARGET);
        Ok(self.world.mark_of(file.expect("a target")))
    }

    fn file_id(&self) -> Result<String> {
        // As its file mark.
        let file = self.world.number_of(crate::world::TARGET);
        Ok(format!("{}", file.expect("a target")))
    }

    fn room(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }

    fn open_for_writing(&self) -> Result<Arc<dyn Target>> {
        let disk = FileDisk::open_rw(target_of(&self.world)?, self.format)?;
        Ok(Arc::new(disk))
    }
}

/// The target's file.
pub(crate) fn target_of(world: &World) -> Result<Arc<WorldFile>> {
    let message = "test target: there is none";
    world
        .target()
        .ok_or_else(|| Error::new(ErrorKind::Io, message))
}

/// Finds the target again after a crash.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) world: World,
    pub(crate) format: Format,
}

impl Reopen for Again {
    fn access(&self, _begun: &Begun, _file_id: &str) -> Result<Box<dyn TargetAccess>> {
        Ok(Box::new(Access::of(&self.world, self.format)?))
    }

    fn target(&self, _begun: &Begun) -> Result<Arc<dyn Target>> {
        let disk = FileDisk::open_rw(target_of(&self.world)?, self.format)?;
        Ok(Arc::new(disk))
    }

    fn new_file(&self, _begun: &Begun) -> Result<Box<dyn NewFile>> {
        Ok(Box::new(Beside::of(&self.world, self.format, 0)))
    }

    fn layers(&self, _begun: &Begun) -> Result<(Box<dyn TargetAccess>, Box<dyn Layers>)> {
        let access = Access::of(&self.world, self.format)?;
        Ok((Box::new(access), Box::new(Stack(self.world.clone()))))
    }
}
