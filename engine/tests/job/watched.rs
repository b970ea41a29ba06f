//! A machine in memory that somebody looks at after everything it was asked.

use std::sync::Arc;
use std::time::Duration;

use failback_engine::machine::{Call, FakeMachine, Machine, Power};
use failback_engine::{Result, Step};

/// Hears of each call when it is over, whether it went well or not.
pub(crate) type After = Arc<dyn Fn(Call) + Send + Sync>;

/// See the module's head.
pub(crate) struct Watched {
    inner: FakeMachine,
    after: After,
}

impl Watched {
    pub(crate) fn new(inner: &FakeMachine, after: impl Fn(Call) + Send + Sync + 'static) -> Self {
        Self {
            inner: inner.clone(),
            after: Arc::new(after),
        }
    }

    fn did<R>(&self, call: Call, result: R) -> R {
        (self.after)(call);
        result
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Machine for Watched {
    fn power(&self, step: &Step<'_>) -> Result<Power> {
        self.did(Call::Power, self.inner.power(step))
    }

    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power> {
        self.did(Call::ShutDown, self.inner.shut_down(step, limit))
    }

    fn power_off(&self, step: &Step<'_>) -> Result<()> {
        self.did(Call::PowerOff, self.inner.power_off(step))
    }

    fn start(&self, step: &Step<'_>) -> Result<()> {
        self.did(Call::Start, self.inner.start(step))
    }

    fn delete(&self, step: &Step<'_>) -> Result<()> {
        self.did(Call::Delete, self.inner.delete(step))
    }
}
