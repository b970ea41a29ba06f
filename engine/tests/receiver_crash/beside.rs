//! A new file beside the target of a host whose power can be cut.

use std::sync::Arc;

use failback_engine::disk::{NewFile, Source, Standing, Target};
use failback_engine::state::{Container, FileMark, Folder};
use failback_engine::{Error, Result};
use failback_vhdx::{CreateOptions, FileAt, Image, Kind};

use crate::disk::{FileDisk, Format, target_of};
use crate::world::{BESIDE, TARGET, World};
use crate::wrapping::IMAGE_BLOCK;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Beside {
    world: World,
    format: Format,
    /// Bytes of a disk that is made.
    len: u64,
}

impl Beside {
    pub(crate) fn of(world: &World, format: Format, len: u64) -> Self {
        Self {
            world: world.clone(),
            format,
            len,
        }
    }

    fn mark(&self, name: &str) -> Option<FileMark> {
        self.world.number_of(name).map(|file| FileMark {
            id: file.to_string(),
            content: self.world.mark_of(file),
        })
    }
}

fn io(error: std::io::Error) -> Error {
    Error::io(error, "test file")
}

impl NewFile for Beside {
    fn make(&self, container: Container) -> Result<Arc<dyn Target>> {
        self.remove()?;
        let file = self.world.make(BESIDE).map_err(io)?;
        match (container, self.format) {
            (Container::Clone, _) => {
                let old = target_of(&self.world)?;
                file.set_len(old.len().map_err(io)?).map_err(io)?;
                let mut at = 0;
                while at < old.len().map_err(io)? {
                    let found = old.extent_at(at).map_err(io)?;
                    if !found.is_hole {
                        let mut bytes = vec![0; usize::try_from(found.end - at).unwrap()];
                        old.read_at(at, &mut bytes).map_err(io)?;
                        file.write_at(at, &bytes).map_err(io)?;
                    }
                    at = found.end;
                }
            }
            (_, Format::Raw) => file.set_len(self.len).map_err(io)?,
            (_, Format::Vhdx) => {
                let options = CreateOptions {
                    block_size: Some(u32::try_from(IMAGE_BLOCK).unwrap()),
                    ..CreateOptions::new(self.len, Kind::Dynamic)
                };
                drop(Image::create(file.clone(), &options).map_err(crate::disk::damaged)?);
            }
        }
        Ok(Arc::new(FileDisk::open_rw(file, self.format)?))
    }

    fn open(&self) -> Result<Option<Arc<dyn Target>>> {
        let Some(file) = self.world.number_of(BESIDE) else {
            return Ok(None);
        };
        let disk = FileDisk::open_rw(self.world.file(file), self.format)?;
        assert!(disk.info().virtual_size <= self.len.max(disk.info().virtual_size));
        Ok(Some(Arc::new(disk)))
    }

    fn standing(&self) -> Result<Standing> {
        Ok(Standing {
            target: self.mark(TARGET),
            beside: self.mark(BESIDE),
        })
    }

    fn swap(&self) -> Result<()> {
        self.world.swap(BESIDE, TARGET).map_err(io)
    }

    fn remove(&self) -> Result<()> {
        Folder::remove(&self.world, BESIDE).map_err(io)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.world.sync_beside()
    }
}
