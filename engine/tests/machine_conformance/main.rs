//! Goal: every machine keeps the contract of `Machine`. Method: one suite, run by the fake, by
//! hooks around a process, and by real QEMU processes; what really runs is looked up apart from it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod fake;
mod hooks;
mod qemu;

use std::time::{Duration, Instant};

use failback_engine::machine::{Machine, Power};
use failback_engine::{CancelToken, ErrorKind, Result, Silent, Step};

/// A machine under test, and what is known of it without asking it.
pub(crate) trait Rig {
    fn machine(&self) -> &dyn Machine;
    /// Whether something of it runs.
    fn runs(&self) -> bool;
    /// How often it was started.
    fn starts(&self) -> usize;
    /// Whether the guest shuts down when it is asked to.
    fn obeys(&self) -> bool;
    /// How long that may take.
    fn patience(&self) -> Duration;
}

pub(crate) fn in_step<T>(ask: impl FnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
    let cancel = CancelToken::new();
    ask(&Step {
        job: "job-1",
        name: "conformance",
        observer: &Silent,
        cancel: &cancel,
    })
}

/// The whole contract; the machine is off at first.
pub(crate) fn keeps_the_contract(rig: &dyn Rig) {
    let machine = rig.machine();
    let power = || in_step(|step| machine.power(step)).unwrap();
    assert_eq!(power(), Power::Off);
    let shut_down = |limit| in_step(|step| machine.shut_down(step, limit));
    assert_eq!(
        shut_down(rig.patience()).unwrap(),
        Power::Off,
        "it is off already"
    );

    in_step(|step| machine.start(step)).unwrap();
    assert_eq!((power(), rig.runs(), rig.starts()), (Power::On, true, 1));
    in_step(|step| machine.start(step)).unwrap();
    assert_eq!(
        (power(), rig.starts()),
        (Power::On, 1),
        "one that runs is left alone"
    );
    let refused = in_step(|step| machine.delete(step)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(rig.runs(), "and lives on");

    match rig.obeys() {
        true => {
            assert_eq!(shut_down(rig.patience()).unwrap(), Power::Off);
        }
        false => {
            let (from, limit) = (Instant::now(), Duration::from_millis(700));
            assert_eq!(shut_down(limit).unwrap(), Power::On);
            assert!(from.elapsed() >= limit, "{:?}", from.elapsed());
            assert!(from.elapsed() < limit * 10, "{:?}", from.elapsed());
            assert_eq!((power(), rig.runs()), (Power::On, true));
            in_step(|step| machine.power_off(step)).unwrap();
        }
    }
    assert_eq!((power(), rig.runs()), (Power::Off, false));
    in_step(|step| machine.power_off(step)).unwrap();

    in_step(|step| machine.start(step)).unwrap();
    assert_eq!((power(), rig.runs(), rig.starts()), (Power::On, true, 2));
    in_step(|step| machine.power_off(step)).unwrap();
    assert_eq!((power(), rig.runs()), (Power::Off, false));
    in_step(|step| machine.delete(step)).unwrap();
    in_step(|step| machine.delete(step)).unwrap();
    ends_when_cancelled(machine);
}

/// No call begins for a step that is cancelled.
fn ends_when_cancelled(machine: &dyn Machine) {
    let cancel = CancelToken::new();
    cancel.cancel();
    let step = Step {
        job: "job-1",
        name: "conformance",
        observer: &Silent,
        cancel: &cancel,
    };
    let kinds = [
        machine.power(&step).map(drop),
        machine.shut_down(&step, Duration::from_secs(9)).map(drop),
        machine.power_off(&step),
        machine.start(&step),
        machine.delete(&step),
    ];
    for result in kinds {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
