//! Machines that use the disks: whether they run, and how they are stopped and started.
//!
//! ```text
//! HookMachine   commands of the operator: any hypervisor, any cloud
//! QmpMachine    a QEMU process, by its monitor
//! FakeMachine   in memory, for tests: does what its script says
//! ```

mod fake;
mod hooks;
#[cfg(all(unix, feature = "qmp"))]
mod monitor;
#[cfg(not(all(unix, feature = "qmp")))]
#[path = "monitor_absent.rs"]
mod monitor;
mod qmp;

use std::fmt::{self, Debug};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fake::{Behaviour, Call, FakeMachine};
pub use hooks::HookMachine;
pub use qmp::QmpMachine;

use crate::error::{Error, ErrorKind, Result};
use crate::schedule::now;
use crate::step::Step;

/// Whether a machine has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Something of it runs, or holds its disks.
    On,
    /// Nothing of it runs, and it has let go of its disks.
    Off,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// A machine.
///
/// Every method may block, for as long as it is told to or the implementation's own limits say, and
/// ends early with `Cancelled` when its step is cancelled. Methods may be called on any thread; the
/// caller calls one at a time. Each can be repeated: what is so already is left as it is.
pub trait Machine: Send + Sync + Debug {
    /// Whether it has power. `Off` must be true: nothing of it runs any more and it has let go of
    /// its disks. What cannot be found out is an error, never `Off`.
    ///
    /// # Errors
    /// `Io`, `Refused` when it cannot be found out.
    fn power(&self, step: &Step<'_>) -> Result<Power>;

    /// Asks the guest to shut down and waits until the machine is off, `limit` at most; `On`: the
    /// guest did not.
    ///
    /// # Errors
    /// `Io`, `Refused` when it cannot be asked; as [`Machine::power`].
    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power>;

    /// Takes the power away. The machine is off when this returns.
    ///
    /// # Errors
    /// `Io`, `Refused` when it is not.
    fn power_off(&self, step: &Step<'_>) -> Result<()>;

    /// Starts it and returns when it runs; one that runs is left alone.
    ///
    /// # Errors
    /// `Io`, `Refused` when it does not run.
    fn start(&self, step: &Step<'_>) -> Result<()>;

    /// Deletes the machine (not its disks); one that is gone is deleted already. Refused while it
    /// is on.
    ///
    /// # Errors
    /// `Refused`; `Unsupported` where nothing says how; `Io`.
    fn delete(&self, step: &Step<'_>) -> Result<()>;

    /// Which of `shut_down`, `power_off` and `delete` cannot be done at all, as nothing says how.
    /// Asks nobody; one that is not named may fail all the same.
    fn lacks(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// What it needs of this host and is not there, a line each. Asks no machine.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Asks for the power, more and more seldom, until it is `wanted` or `limit` has passed; what it
/// was in the end.
pub(crate) fn await_power(
    step: &Step<'_>,
    limit: Duration,
    wanted: Power,
    mut ask: impl FnMut() -> Result<Power>,
) -> Result<Power> {
    let from = now();
    let mut pause = FIRST_PAUSE;
    loop {
        let found = ask()?;
        let rest = limit.saturating_sub(now().saturating_duration_since(from));
        if found == wanted || rest.is_zero() {
            return Ok(found);
        }
        step.wait(pause.min(rest))?;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A machine that runs is not deleted.
fn refuse_to_delete() -> Error {
    Error::new(ErrorKind::Refused, "the machine is on: it is not deleted")
}

/// Nothing says how something is done.
fn without_hook(name: &str) -> Error {
    let message = format!("the machine has no `{name}` hook: nothing says how that is done");
    Error::new(ErrorKind::Unsupported, message)
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Commands of clouds take a second and more, and are paid for by call.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
