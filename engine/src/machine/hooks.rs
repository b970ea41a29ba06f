//! A machine by the operator's own commands.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Machine, Power, await_power, refuse_to_delete, without_hook};
use crate::error::{Error, ErrorKind, Result};
use crate::hook::{Hook, Tells};
use crate::schedule::now;
use crate::step::Step;

/// A machine by the operator's own commands.
///
/// What a hook says it did is not believed: `power` is asked afterwards. A hook that is not there
/// is missed, with its name, when it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookMachine {
    /// Prints `on` or `off`. Off only when nothing of the machine runs and its disks are let go; of
    /// a machine that was deleted that is true.
    pub power: Hook,
    /// Asks the guest to shut down; need not wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut_down: Option<Hook>,
    /// Takes the power away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off: Option<Hook>,
    /// Starts it. Its limit is also how long `power` may say `off` afterwards.
    pub start: Hook,
    /// Deletes the machine, not its disks; ends well when it is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<Hook>,
}

impl HookMachine {
    /// A machine of which only this is known.
    #[must_use]
    pub fn new(power: Hook, start: Hook) -> Self {
        Self {
            power,
            shut_down: None,
            power_off: None,
            start,
            delete: None,
        }
    }

    /// Hooks that may be left out.
    fn optional(&self) -> [(&'static str, &Option<Hook>); 3] {
        [
            ("shut_down", &self.shut_down),
            ("power_off", &self.power_off),
            ("delete", &self.delete),
        ]
    }

    /// The same question as [`Machine::power`], without an event while it is answered.
    fn look(&self, step: &Step<'_>) -> Result<Power> {
        read_power(self.power.ask("power", step)?.line("power")?)
    }
}

impl Machine for HookMachine {
    fn power(&self, step: &Step<'_>) -> Result<Power> {
        read_power(self.power.run_as("power", step, &[])?.line("power")?)
    }

    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power> {
        let hook = self.shut_down.as_ref();
        let hook = hook.ok_or_else(|| without_hook("shut_down"))?;
        if self.power(step)? == Power::Off {
            return Ok(Power::Off);
        }
        let from = now();
        let ran = hook.run_within("shut_down", step, &[], limit, Tells::All);
        let rest = limit.saturating_sub(now().saturating_duration_since(from));
        // A hook that waits for the guest ends with the limit: the guest did not shut down.
        let is_out_of_time = rest.is_zero() && hook.timeout >= limit;
        match ran {
            Err(error) if error.kind() == ErrorKind::Cancelled || !is_out_of_time => {
                return Err(error);
            }
            _ => {}
        }
        await_power(step, rest, Power::Off, || self.look(step))
    }

    fn power_off(&self, step: &Step<'_>) -> Result<()> {
        let hook = self.power_off.as_ref();
        let hook = hook.ok_or_else(|| without_hook("power_off"))?;
        if self.power(step)? == Power::Off {
            return Ok(());
        }
        hook.run_as("power_off", step, &[])?;
        match await_power(step, hook.timeout, Power::Off, || self.look(step))? {
            Power::Off => Ok(()),
            Power::On => Err(not_so("power_off", Power::On)),
        }
    }

    fn start(&self, step: &Step<'_>) -> Result<()> {
        if self.power(step)? == Power::On {
            return Ok(());
        }
        self.start.run_as("start", step, &[])?;
        match await_power(step, self.start.timeout, Power::On, || self.look(step))? {
            Power::On => Ok(()),
            Power::Off => Err(not_so("start", Power::Off)),
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
        let missing = self
            .optional()
            .into_iter()
            .filter(|(_, hook)| hook.is_none());
        missing.map(|(name, _)| name).collect()
    }

    fn faults(&self) -> Vec<String> {
        let there = self
            .optional()
            .into_iter()
            .filter_map(|(name, hook)| Some((name, hook.as_ref()?)));
        [("power", &self.power), ("start", &self.start)]
            .into_iter()
            .chain(there)
            .filter_map(|(name, hook)| hook.fault(name))
            .collect()
    }
}

fn read_power(said: &str) -> Result<Power> {
    match said {
        "on" => Ok(Power::On),
        "off" => Ok(Power::Off),
        other => {
            let message = format!("hook power has to print `on` or `off`, and printed {other:?}");
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

fn not_so(hook: &str, found: Power) -> Error {
    let message = format!("hook {hook} ended well, yet the machine is {found}");
    Error::new(ErrorKind::Refused, message)
}
