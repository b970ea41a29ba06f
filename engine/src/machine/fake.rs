//! A machine in memory, for tests of jobs: does what its script says, and remembers what was asked.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Machine, Power, refuse_to_delete};
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Mutex, MutexGuard, now};
use crate::step::Step;

/// What a machine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Machine::power`]
    Power,
    /// [`Machine::shut_down`]
    ShutDown,
    /// [`Machine::power_off`]
    PowerOff,
    /// [`Machine::start`]
    Start,
    /// [`Machine::delete`]
    Delete,
}

/// How a machine answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Obeys,
    /// Does nothing, and says that it failed so.
    Fails(ErrorKind),
    /// Does it, and says that it failed so: the answer was lost.
    DoesAndFails(ErrorKind),
    /// Does nothing until it is cancelled, or for [`FakeMachine::HANG`].
    Hangs,
    /// Does nothing, and says that it did. Of `ShutDown`: the guest ignores it, which is told.
    Ignores,
    /// Does it, and says that the power is this.
    Lies(Power),
}

/// A machine in memory. Clones are the same machine, so that a test keeps one to look at.
#[derive(Clone, Debug)]
pub struct FakeMachine {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    power: Power,
    is_deleted: bool,
    /// What comes next, per call; then `always`.
    script: Vec<(Call, VecDeque<Behaviour>)>,
    always: Vec<(Call, Behaviour)>,
    calls: Vec<(Call, String)>,
    done: Vec<Call>,
    boot: Duration,
}

impl FakeMachine {
    /// How long a call hangs that nobody cancels: longer than any limit of a test.
    pub const HANG: Duration = Duration::from_secs(600);

    /// A machine that obeys, with or without power.
    #[must_use]
    pub fn new(power: Power) -> Self {
        let state = State {
            power,
            is_deleted: false,
            script: Vec::new(),
            always: Vec::new(),
            calls: Vec::new(),
            done: Vec::new(),
            boot: Duration::ZERO,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The next calls of this kind, one after the other, behave so; those after them as before.
    pub fn next(&self, call: Call, behaviours: impl IntoIterator<Item = Behaviour>) {
        let mut state = self.state();
        match state.script.iter_mut().find(|(of, _)| *of == call) {
            Some((_, queue)) => queue.extend(behaviours),
            None => state.script.push((call, behaviours.into_iter().collect())),
        }
    }

    /// All calls of this kind behave so from now on.
    pub fn always(&self, call: Call, behaviour: Behaviour) {
        let mut state = self.state();
        state.always.retain(|(of, _)| *of != call);
        state.always.push((call, behaviour));
    }

    /// Starting and shutting down take so long.
    pub fn takes(&self, time: Duration) {
        self.state().boot = time;
    }

    /// Somebody else gives or takes the power.
    pub fn set_power(&self, power: Power) {
        self.state().power = power;
    }

    /// Whether it really has power.
    #[must_use]
    pub fn real_power(&self) -> Power {
        self.state().power
    }

    /// Whether it was deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.state().is_deleted
    }

    /// What it was asked, each with the name of the step, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<(Call, String)> {
        self.state().calls.clone()
    }

    /// How often it was asked for that.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.state()
            .calls
            .iter()
            .filter(|(of, _)| *of == call)
            .count()
    }

    /// What it really did that it had not done before, in order: one `Start` for each time that it
    /// began to run.
    #[must_use]
    pub fn done(&self) -> Vec<Call> {
        self.state().done.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self, call: Call, step: &Step<'_>) -> Result<Behaviour> {
        step.check()?;
        let mut state = self.state();
        state.calls.push((call, step.name.to_owned()));
        let next = state.script.iter_mut().find(|(of, _)| *of == call);
        let next = next.and_then(|(_, queue)| queue.pop_front());
        let always = state.always.iter().find(|(of, _)| *of == call);
        let always = always.map(|(_, behaviour)| *behaviour);
        Ok(next.or(always).unwrap_or(Behaviour::Obeys))
    }

    /// Sets the power as `call` does, after the time that it takes.
    fn change(&self, call: Call, power: Power, step: &Step<'_>) -> Result<()> {
        let boot = self.state().boot;
        if call != Call::PowerOff {
            step.wait(boot)?;
        }
        let mut state = self.state();
        if call == Call::Start && state.is_deleted {
            return Err(Error::new(ErrorKind::Refused, "the machine was deleted"));
        }
        if state.power != power {
            state.power = power;
            state.done.push(call);
        }
        Ok(())
    }

    fn obey(&self, call: Call, power: Power, step: &Step<'_>) -> Result<()> {
        match self.asked(call, step)? {
            Behaviour::Obeys | Behaviour::Lies(_) => self.change(call, power, step),
            Behaviour::Ignores => Ok(()),
            Behaviour::Fails(kind) => Err(failed(kind)),
            Behaviour::DoesAndFails(kind) => {
                self.change(call, power, step)?;
                Err(failed(kind))
            }
            Behaviour::Hangs => hang(step),
        }
    }
}

impl Machine for FakeMachine {
    fn power(&self, step: &Step<'_>) -> Result<Power> {
        match self.asked(Call::Power, step)? {
            Behaviour::Obeys | Behaviour::Ignores => Ok(self.real_power()),
            Behaviour::Lies(power) => Ok(power),
            Behaviour::Fails(kind) | Behaviour::DoesAndFails(kind) => Err(failed(kind)),
            Behaviour::Hangs => hang(step),
        }
    }

    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power> {
        let behaviour = self.asked(Call::ShutDown, step)?;
        let ignores = || {
            step.wait(limit)?;
            Ok(self.real_power())
        };
        let obeys = || {
            let boot = self.state().boot;
            match boot > limit {
                true => Ok(false),
                false => self.change(Call::ShutDown, Power::Off, step).map(|()| true),
            }
        };
        match behaviour {
            _ if self.real_power() == Power::Off => Ok(Power::Off),
            Behaviour::Ignores => ignores(),
            Behaviour::Hangs => hang(step),
            Behaviour::Fails(kind) => Err(failed(kind)),
            Behaviour::Obeys => match obeys()? {
                true => Ok(Power::Off),
                false => ignores(),
            },
            Behaviour::Lies(power) => obeys().map(|_| power),
            Behaviour::DoesAndFails(kind) => obeys().and(Err(failed(kind))),
        }
    }

    fn power_off(&self, step: &Step<'_>) -> Result<()> {
        self.obey(Call::PowerOff, Power::Off, step)
    }

    fn start(&self, step: &Step<'_>) -> Result<()> {
        self.obey(Call::Start, Power::On, step)
    }

    fn delete(&self, step: &Step<'_>) -> Result<()> {
        let behaviour = self.asked(Call::Delete, step)?;
        let delete = || {
            let mut state = self.state();
            if state.power == Power::On {
                return Err(refuse_to_delete());
            }
            if !state.is_deleted {
                state.is_deleted = true;
                state.done.push(Call::Delete);
            }
            Ok(())
        };
        match behaviour {
            Behaviour::Obeys | Behaviour::Lies(_) => delete(),
            Behaviour::Ignores => Ok(()),
            Behaviour::Fails(kind) => Err(failed(kind)),
            Behaviour::DoesAndFails(kind) => delete().and(Err(failed(kind))),
            Behaviour::Hangs => hang(step),
        }
    }
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "the machine of this test fails here")
}

fn hang<T>(step: &Step<'_>) -> Result<T> {
    let from = now();
    step.wait(FakeMachine::HANG)?;
    let waited = now().saturating_duration_since(from);
    let message = format!("the machine of this test did not answer for {waited:?}");
    Err(Error::new(ErrorKind::Io, message))
}
