//! The machine in memory, and what its script can make it do.

use std::time::{Duration, Instant};

use failback_engine::machine::{Behaviour, Call, FakeMachine, Machine, Power};
use failback_engine::{CancelToken, ErrorKind, Silent, Step};

use super::{Rig, in_step, keeps_the_contract};

struct FakeRig {
    machine: FakeMachine,
    obeys: bool,
}

impl Rig for FakeRig {
    fn machine(&self) -> &dyn Machine {
        &self.machine
    }

    fn runs(&self) -> bool {
        self.machine.real_power() == Power::On
    }

    fn starts(&self) -> usize {
        let done = self.machine.done();
        done.iter().filter(|call| **call == Call::Start).count()
    }

    fn obeys(&self) -> bool {
        self.obeys
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }
}

#[test]
fn fake_keeps_the_contract() {
    let machine = FakeMachine::new(Power::Off);
    keeps_the_contract(&FakeRig {
        machine,
        obeys: true,
    });
}

#[test]
fn fake_that_ignores_acpi_keeps_the_contract() {
    let machine = FakeMachine::new(Power::Off);
    machine.always(Call::ShutDown, Behaviour::Ignores);
    keeps_the_contract(&FakeRig {
        machine,
        obeys: false,
    });
}

// Goal: a script is followed call by call, and what really happened is told apart from what was
// said. Method: one behaviour after the other.
#[test]
fn a_script_is_followed() {
    let machine = FakeMachine::new(Power::Off);
    let start = || in_step(|step| machine.start(step));
    machine.next(
        Call::Start,
        [
            Behaviour::Fails(ErrorKind::Io),
            Behaviour::Ignores,
            Behaviour::DoesAndFails(ErrorKind::Refused),
        ],
    );
    assert_eq!(start().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(machine.real_power(), Power::Off);
    start().unwrap();
    assert_eq!(
        machine.real_power(),
        Power::Off,
        "it said so, and did nothing"
    );
    assert_eq!(start().unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(
        machine.real_power(),
        Power::On,
        "it did it, and said nothing"
    );
    start().unwrap();
    assert_eq!(
        (machine.count(Call::Start), machine.done()),
        (4, vec![Call::Start])
    );

    machine.next(Call::Power, [Behaviour::Lies(Power::Off)]);
    let power = || in_step(|step| machine.power(step)).unwrap();
    assert_eq!((power(), power()), (Power::Off, Power::On));
    assert_eq!(machine.calls().last().unwrap().1, "conformance");
}

// Goal: a call that hangs is ended by the step. Method: another thread cancels it.
#[test]
fn a_hang_ends_with_the_step() {
    let machine = FakeMachine::new(Power::On);
    machine.always(Call::PowerOff, Behaviour::Hangs);
    let cancel = CancelToken::new();
    let step = Step {
        job: "j",
        name: "s",
        observer: &Silent,
        cancel: &cancel,
    };
    let from = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        machine.power_off(&step).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(from.elapsed() < Duration::from_secs(5));
    assert_eq!(machine.real_power(), Power::On);
}

// Goal: a guest that takes longer than its limit is on when the limit is over. Method: both sides
// of it.
#[test]
fn a_slow_guest_needs_its_time() {
    let machine = FakeMachine::new(Power::On);
    machine.takes(Duration::from_millis(300));
    let shut_down = |ms| in_step(|s| machine.shut_down(s, Duration::from_millis(ms))).unwrap();
    assert_eq!(shut_down(50), Power::On);
    assert_eq!(shut_down(2_000), Power::Off);
}
