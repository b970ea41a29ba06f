//! Stands for a hypervisor of which a program knows its own interface: the machine that runs from
//! an image has power, or not, by what the file `IMAGE.power` says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use failback_engine::machine::{Machine, Power};
use failback_engine::{Error, ErrorKind, Result, Step};

/// The machine that runs from an image.
#[derive(Debug)]
pub(crate) struct ImageMachine(PathBuf);

impl ImageMachine {
    pub(crate) fn of(image: &Path) -> Self {
        Self(image.with_added_extension("power"))
    }

    fn set(&self, power: Power) -> Result<()> {
        std::fs::write(&self.0, power.to_string()).map_err(|e| Error::io(e, "change the power"))
    }
}

impl Machine for ImageMachine {
    fn power(&self, _step: &Step<'_>) -> Result<Power> {
        let found = std::fs::read_to_string(&self.0);
        match found.map_err(|e| Error::io(e, "ask for the power"))?.trim() {
            "on" => Ok(Power::On),
            "off" => Ok(Power::Off),
            // Never `Off` for what is not known.
            _ => Err(Error::new(ErrorKind::Io, "neither on nor off")),
        }
    }

    fn shut_down(&self, _step: &Step<'_>, _limit: Duration) -> Result<Power> {
        self.set(Power::Off).map(|()| Power::Off)
    }

    fn power_off(&self, _step: &Step<'_>) -> Result<()> {
        self.set(Power::Off)
    }

    fn start(&self, _step: &Step<'_>) -> Result<()> {
        self.set(Power::On)
    }

    fn delete(&self, _step: &Step<'_>) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "it stays"))
    }
}
