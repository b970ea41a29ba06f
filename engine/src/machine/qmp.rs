//! A machine that is a QEMU process, by its monitor.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::monitor::{ENDING_MAX, Monitor};
use super::{Machine, Power, refuse_to_delete, without_hook};
use crate::error::{Error, ErrorKind, Result};
use crate::hook::Hook;
use crate::schedule::now;
use crate::step::Step;

/// A machine that is a QEMU process with a monitor: `-qmp unix:SOCKET,server=on,wait=off`.
///
/// It is on as long as somebody listens at the socket, also when the guest has shut down and the
/// process was told to stay (`-action shutdown=pause`): the images are still locked then. QEMU
/// closes its images before its monitor, so that whoever is refused at the socket finds them free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QmpMachine {
    /// The monitor's socket. No file there, or one that nobody listens at: the machine is off. The
    /// directory has to be there always; without it nothing is known.
    pub socket: PathBuf,
    /// Starts the process, and ends.
    pub start: Hook,
    /// Deletes what there is besides the process; ends well when it is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<Hook>,
}

/// What a machine with a monitor does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(all(unix, feature = "qmp")),
    allow(dead_code, reason = "no monitor is there to tell")
)]
pub(super) enum Status {
    Running,
    /// Stands still, and goes on when it is told to.
    Waiting,
    /// Will stand still or run in a moment.
    Busy,
    /// The guest has shut down, the process is there.
    ShutDown,
    /// Stands still for this reason.
    Stuck(String),
}

/// What a monitor can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    PowerDown,
    Go,
    Quit,
}

impl QmpMachine {
    /// A machine that is started by `start`.
    pub fn new(socket: impl Into<PathBuf>, start: Hook) -> Self {
        Self {
            socket: socket.into(),
            start,
            delete: None,
        }
    }

    /// `None` when it is off. A process that hangs up ends, as a rule: a moment later it is known.
    fn status(&self, step: &Step<'_>) -> Result<Option<Status>> {
        let from = now();
        loop {
            step.check()?;
            let Some(mut monitor) = Monitor::connect(&self.socket)? else {
                return Ok(None);
            };
            let said = monitor.status().map_err(|e| e.path(&self.socket))?;
            if said.is_some() {
                return Ok(said);
            }
            if now().saturating_duration_since(from) > ENDING_MAX {
                let message = "the monitor hangs up instead of answering, and is still there";
                return Err(Error::new(ErrorKind::Io, message).path(&self.socket));
            }
            step.wait(POLL)?;
        }
    }

    /// Whether somebody was there and was told.
    fn tell(&self, order: Order) -> Result<bool> {
        let Some(mut monitor) = Monitor::connect(&self.socket)? else {
            return Ok(false);
        };
        monitor.order(order).map_err(|e| e.path(&self.socket))
    }

    /// Ends the process and waits until it is gone.
    fn quit(&self, step: &Step<'_>) -> Result<()> {
        let from = now();
        let mut last = None;
        loop {
            // Told again it does the same; one that is ending may not answer any more.
            match self.tell(Order::Quit) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => last = Some(error),
            }
            if now().saturating_duration_since(from) > QUIT_MAX {
                let message = "the process was told to quit, and is still there";
                let error = Error::new(ErrorKind::Io, message).path(&self.socket);
                return Err(match last {
                    Some(last) => error.caused_by(last),
                    None => error,
                });
            }
            step.wait(POLL)?;
        }
    }
}

impl Machine for QmpMachine {
    fn power(&self, step: &Step<'_>) -> Result<Power> {
        Ok(match self.status(step)? {
            None => Power::Off,
            Some(_) => Power::On,
        })
    }

    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power> {
        let from = now();
        let mut asked_at = None;
        loop {
            match self.status(step)? {
                None => return Ok(Power::Off),
                Some(Status::ShutDown) => {
                    self.quit(step)?;
                    return Ok(Power::Off);
                }
                Some(_) => {}
            }
            let moment = now();
            if moment.saturating_duration_since(from) >= limit {
                return Ok(Power::On);
            }
            // A guest that boots, or sleeps, misses the first one.
            let is_due =
                asked_at.is_none_or(|at| moment.saturating_duration_since(at) >= ASK_AGAIN);
            // One that hangs up on this has just ended, or is asked again.
            if is_due && self.tell(Order::PowerDown)? {
                asked_at = Some(moment);
            }
            step.wait(POLL)?;
        }
    }

    fn power_off(&self, step: &Step<'_>) -> Result<()> {
        step.check()?;
        self.quit(step)
    }

    fn start(&self, step: &Step<'_>) -> Result<()> {
        match self.status(step)? {
            Some(Status::Running) => return Ok(()),
            // Of the machine nothing runs: what is left has to make room for the new process.
            Some(Status::ShutDown) => self.quit(step)?,
            _ => {}
        }
        if self.status(step)?.is_none() {
            self.start.run_as("start", step, &[])?;
        }
        let from = now();
        loop {
            let found = self.status(step)?;
            match &found {
                Some(Status::Running) => return Ok(()),
                Some(Status::Waiting) => drop(self.tell(Order::Go)?),
                Some(Status::Stuck(why)) => {
                    let message = format!("the machine does not run: {why}");
                    return Err(Error::new(ErrorKind::Refused, message).path(&self.socket));
                }
                Some(Status::Busy | Status::ShutDown) | None => {}
            }
            if now().saturating_duration_since(from) >= self.start.timeout {
                let found = match found {
                    None => "nobody listens at its monitor",
                    Some(Status::ShutDown) => "the guest has shut down",
                    Some(_) => "it stands still",
                };
                let message =
                    format!("hook start ended well, yet the machine does not run: {found}");
                return Err(Error::new(ErrorKind::Refused, message).path(&self.socket));
            }
            step.wait(POLL)?;
        }
    }

    fn delete(&self, step: &Step<'_>) -> Result<()> {
        let hook = self.delete.as_ref();
        let hook = hook.ok_or_else(|| without_hook("delete"))?;
        match self.power(step)? {
            Power::On => Err(refuse_to_delete()),
            Power::Off => hook.run_as("delete", step, &[]).map(drop),
        }
    }

    fn lacks(&self) -> Vec<&'static str> {
        let missing = self.delete.is_none().then_some("delete");
        missing.into_iter().collect()
    }

    fn faults(&self) -> Vec<String> {
        let delete = self.delete.as_ref().and_then(|hook| hook.fault("delete"));
        self.start
            .fault("start")
            .into_iter()
            .chain(delete)
            .collect()
    }
}

const POLL: Duration = Duration::from_millis(100);
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long QEMU may take to write what it has in memory and close its images.
const QUIT_MAX: Duration = Duration::from_secs(30);
