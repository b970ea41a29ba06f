//! Goal: the simulator bites. Method: break something on purpose; some seed has to find it.

use failback_engine::state::Barrier;

use crate::history::Planted;
use crate::runner::{run, stay_on_one_core};

/// The first seed that finds it, and what it finds.
fn find(planted: Planted, seeds: u64) -> Option<(u64, String)> {
    stay_on_one_core(1);
    (1..=seeds).find_map(|seed| run(seed, planted).0.err().map(|broken| (seed, broken)))
}

/// Those that chance meets soon; `receiver_crash` finds each of them by looking everywhere.
const BARRIERS: [Barrier; 6] = [
    Barrier::Begun,
    Barrier::Names,
    Barrier::Stage,
    Barrier::Payload,
    Barrier::Done,
    Barrier::Aborted,
];

#[test]
fn barriers_that_are_left_out_are_found() {
    let mut missed = Vec::new();
    for barrier in BARRIERS {
        let found = find(Planted::Barrier(barrier), 1000);
        println!("without {barrier:?}: {found:?}");
        missed.extend(found.is_none().then_some(barrier));
    }
    assert_eq!(missed, Vec::new());
}

#[test]
fn a_disk_that_reads_back_what_it_wrote_is_found() {
    let found = find(Planted::GullibleReadBack, 1000);
    println!("{found:?}");
    let (_, broken) = found.expect("a seed that finds it");
    assert!(broken.starts_with("ok on a different image"), "{broken}");
}
