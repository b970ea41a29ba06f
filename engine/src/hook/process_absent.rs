//! Where process groups are not known: a hook that cannot be ended is not begun.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::abort::CancelToken;

#[allow(dead_code, reason = "the twin on Unix makes all of them")]
pub(super) enum Ending {
    Exit(i32),
    Signal(i32),
    Timeout,
    Cancelled,
}

#[allow(dead_code, reason = "the twin on Unix makes it")]
pub(super) struct Ended {
    pub(super) ending: Ending,
    pub(super) stdout: Vec<u8>,
    pub(super) is_cut: bool,
    pub(super) tail: Vec<u8>,
}

impl Ended {
    pub(super) fn is_success(&self) -> bool {
        matches!(self.ending, Ending::Exit(0))
    }
}

pub(super) fn run(_: &mut Command, _: Duration, _: &CancelToken) -> io::Result<Ended> {
    Err(io::ErrorKind::Unsupported.into())
}
