//! Goal: a thread that panics ends its job as `Internal`, with all threads joined and the target
//! old, new, or marked; the same sync then ends equal. Method: let each call of the source's disk,
//! and of the target's host, panic in turn.

use std::panic;

use failback_engine::schedule::simulate;

use crate::fault::{Faults, HostFaults, PLANTED};
use crate::history::live_with_panic;
use crate::runner::{hang, stay_on_one_core};

/// Histories, which differ in formats and manners.
const SEEDS: u64 = 8;

/// How many panics ended a sync.
fn panic_at_each_call(faults: impl Fn(u64) -> Faults) -> u64 {
    panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or_default();
        if text != PLANTED {
            eprintln!("{info}");
        }
    }));
    stay_on_one_core(0);
    let mut panics = 0;
    for seed in 1..=SEEDS {
        let mut call = 0;
        loop {
            let faults = faults(call);
            let (ended, _) = simulate(seed, hang, || live_with_panic(seed, &faults));
            let has_panicked =
                ended.unwrap_or_else(|broken| panic!("seed {seed}, call {call}: {broken}"));
            if !has_panicked {
                break;
            }
            panics += 1;
            call += 1;
        }
    }
    panics
}

#[test]
fn a_panic_in_each_read_of_the_source_ends_the_job() {
    let panics = panic_at_each_call(|call| Faults {
        source_panics_in: Some(call),
        ..Faults::default()
    });
    println!("{panics} panics");
    assert!(panics > SEEDS);
}

#[test]
fn a_panic_in_each_call_of_the_targets_host_ends_the_job() {
    let panics = panic_at_each_call(|call| Faults {
        host: HostFaults {
            panics_in: Some(call),
            ..HostFaults::default()
        },
        ..Faults::default()
    });
    println!("{panics} panics");
    assert!(panics > 20 * SEEDS);
}
