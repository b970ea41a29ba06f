//! Without Unix sockets, or without the feature `qmp`, no monitor can be reached.

use std::path::Path;
use std::time::Duration;

use super::qmp::{Order, Status};
use crate::error::{Error, ErrorKind, Result};

pub(super) const ENDING_MAX: Duration = Duration::ZERO;

/// None is ever connected.
pub(super) enum Monitor {}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> Result<Option<Self>> {
        let message = "QMP over a Unix socket is not supported on this system, or by this build";
        Err(Error::new(ErrorKind::Unsupported, message).path(socket))
    }

    pub(super) fn status(&mut self) -> Result<Option<Status>> {
        match *self {}
    }

    pub(super) fn order(&mut self, _order: Order) -> Result<bool> {
        match *self {}
    }
}
