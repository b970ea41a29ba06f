//! Goal: old or new, never mixed without saying so, whenever the power fails: while a sync stages,
//! seals, commits, applies and proves, while one is undone or given up, and while any of these is
//! recovered from. And every barrier is needed for it.
//! Method: record each on a host in memory, make every state that a power cut can leave, and hold
//! it against the promises; then once more without each barrier, which has to be found out.
//! The long run: `cargo nextest run -p failback-engine --run-ignored all -E 'test(a_million)'`.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    clippy::redundant_closure_for_method_calls,
    reason = "test code; small values"
)]

mod disk;
mod promises;
mod scenario;
mod states;
mod world;

use std::collections::BTreeMap;

use failback_engine::CancelToken;
use failback_engine::commit::Unfinished;
use failback_engine::state::{Barrier, Barriers, Word};
use failback_engine::sync::Task;
use failback_engine::transport::{Apply, VerifyLevel};

use disk::Format;
use promises::check;
use scenario::{
    Disk, Record, WINDOW, after, at_word, content, finish, raw_disk, record_after_kill, record_end,
    record_resumed, record_sync, resumed_with, sync, vhdx_disk,
};
use states::{Effort, State, each};
use world::World;

const CI: Effort = Effort {
    subsets: 1000,
    torn: 1000,
    all_max: 4096,
};

const LONG: Effort = Effort {
    subsets: 16_000,
    torn: 16_000,
    all_max: 4096,
};

/// Of so many states that can be recovered from, the recovery of one is recorded and cut as well.
const NESTED_EVERY: usize = 700;

/// Enough to find what a missing barrier does.
const SMALL: Effort = Effort {
    subsets: 60,
    torn: 20,
    all_max: 128,
};

fn describe(record: &Record, state: &State, broken: &str) -> String {
    format!(
        "{broken}; the power failed after {} of {} changes, of those not durable {:?} are there",
        state.made,
        record.ops.len(),
        state.kept
    )
}

/// Holds every state against the promises; how many there were by word. `nested`: of states from
/// which something is brought to an end, also those of doing that, every so often.
fn check_all(record: &Record, effort: Effort, nested: bool) -> BTreeMap<&'static str, usize> {
    let mut words = BTreeMap::new();
    let mut unfinished = 0;
    each(&record.base, &record.ops, effort, 1, |state| {
        let word = check(record, &state);
        let word = word.unwrap_or_else(|broken| panic!("{}", describe(record, &state, &broken)));
        *words.entry(word.map_or("none", Word::name)).or_insert(0) += 1;
        let is_half_done = matches!(
            word,
            Some(Word::Staged | Word::Committing | Word::NewUnverified | Word::RollingBack)
        );
        unfinished += usize::from(is_half_done && nested);
        if is_half_done && nested && unfinished % NESTED_EVERY == 1 {
            let cancel = CancelToken::new();
            let recovery = record_end(
                &record.disk,
                &state.host,
                Barriers::new(),
                |job, journal| job.finish(journal, &cancel),
            );
            let inner = check_all(&recovery, SMALL, false);
            *words.entry("in a recovery").or_insert(0) += inner.values().sum::<usize>();
        }
        true
    });
    words
}

/// The first broken promise.
fn find_broken(record: &Record) -> Option<String> {
    let mut found = None;
    each(&record.base, &record.ops, SMALL, 11, |state| {
        found = check(record, &state).err();
        found.is_none()
    });
    found
}

/// Undoes, gives up and accepts, on a host of the disk where each can be done.
fn ends(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let kept = record_sync(disk, Barriers::new(), Task::Delta, Apply::StageKeepUndo);
    let done = after(&kept.base, &kept.ops);
    let sealed = at_word(&kept.base, &kept.ops, Word::Staged);
    let cancel = CancelToken::new();
    vec![
        record_end(disk, &done, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end(disk, &sealed, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }),
        record_end(disk, &sealed, barriers, |job, journal| {
            job.finish(journal, &cancel)
        }),
        record_end(disk, &done, barriers, |job: &Unfinished<'_>, journal| {
            job.accept(journal)
        }),
    ]
}

fn syncs(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let mut records = vec![
        record_sync(disk, barriers, Task::Delta, Apply::Stage),
        record_sync(disk, barriers, Task::Delta, Apply::StageKeepUndo),
        record_sync(disk, barriers, Task::Full, Apply::Stage),
        record_resumed(disk, barriers),
    ];
    // Says nothing about formats.
    if disk.format == Format::Raw {
        records.push(record_after_kill(disk, barriers));
    }
    records
}

/// What each test looks at in CI, at least; together at least 10^5 distinct states.
const FLOORS: [usize; 4] = [26_000, 52_000, 7_000, 18_000];
const _: () = assert!(FLOORS[0] + FLOORS[1] + FLOORS[2] + FLOORS[3] >= 100_000);

fn check_records(records: &[Record], effort: Effort, floor: usize) {
    let mut total = 0;
    for record in records {
        let words = check_all(record, effort, true);
        println!(
            "{:?}, {} changes: {words:?}",
            record.disk.format,
            record.ops.len()
        );
        total += words.values().sum::<usize>();
    }
    println!("{total} states");
    assert!(total >= floor, "only {total} states");
}

#[test]
fn syncs_of_a_raw_disk_survive_power_cuts() {
    check_records(&syncs(&raw_disk(), Barriers::new()), CI, FLOORS[0]);
}

#[test]
fn syncs_of_a_vhdx_survive_power_cuts() {
    check_records(&syncs(&vhdx_disk(), Barriers::new()), CI, FLOORS[1]);
}

#[test]
fn ends_of_a_raw_disk_survive_power_cuts() {
    check_records(&ends(&raw_disk(), Barriers::new()), CI, FLOORS[2]);
}

#[test]
fn ends_of_a_vhdx_survive_power_cuts() {
    check_records(&ends(&vhdx_disk(), Barriers::new()), CI, FLOORS[3]);
}

#[test]
#[ignore = "the long run: some minutes"]
fn a_million_states() {
    let all = [raw_disk(), vhdx_disk()].map(|disk| {
        let mut records = syncs(&disk, Barriers::new());
        records.extend(ends(&disk, Barriers::new()));
        records
    });
    let all: Vec<Record> = all.into_iter().flatten().collect();
    check_records(&all, LONG, 1_000_000);
}

// Goal: a flush or a write that fails ends the job, with the target old, new, or marked; and once
// the medium is well, the same sync ends equal. Method: fail each change of a sync in turn; look
// at what is there, and at what a power cut would leave.
fn check_faults(disk: &Disk) {
    let barriers = Barriers::new();
    let whole = record_sync(disk, barriers, Task::Delta, Apply::Stage);
    let mut failed = 0;
    for number in 0..whole.ops.len() {
        let world = World::failing(&disk.host, number);
        let window = barriers.with_window(WINDOW);
        let outcome = sync(&world, disk, window, Task::Delta, Apply::Stage);
        let has_failed = world.mend();
        failed += usize::from(has_failed && outcome.is_err());
        for host in world.now_and_durable() {
            let state = State {
                host,
                made: 0,
                kept: vec![number],
            };
            let word = check(&whole, &state);
            let word = word.unwrap_or_else(|broken| panic!("change {number} failed: {broken}"));
            let world = World::like(&state.host);
            if word.is_some_and(|word| !word.is_final()) {
                finish(&world, disk.format).unwrap();
            }
            sync(&world, disk, window, Task::Delta, Apply::Stage).unwrap();
            assert_eq!(content(&world, disk.format).unwrap(), disk.new);
        }
    }
    println!("{failed} of {} failures ended the job", whole.ops.len());
    // Removing a stage, and making room in a target, may fail without a loss.
    assert!(failed + 8 >= whole.ops.len());
}

#[test]
fn each_failed_change_of_a_raw_disk_is_survived() {
    check_faults(&raw_disk());
}

#[test]
fn each_failed_change_of_a_vhdx_is_survived() {
    check_faults(&vhdx_disk());
}

// A recovery proves what the journal says was asked for: a stage of another level is made anew.
#[test]
fn another_verify_level_takes_no_stage_up() {
    let disk = raw_disk();
    let whole = record_sync(&disk, Barriers::new(), Task::Delta, Apply::Stage);
    let staged = at_word(&whole.base, &whole.ops, Word::Staged);
    let resumed = |verify| resumed_with(&World::like(&staged), &disk, verify).unwrap();
    assert!(resumed(VerifyLevel::Changed) > 0);
    assert_eq!(resumed(VerifyLevel::Full), 0);
    assert_eq!(resumed(VerifyLevel::Off), 0);
}

// Goal: every barrier is needed. Method: leave out one after the other; a promise has to break.
#[test]
fn each_barrier_left_out_is_found() {
    let (raw, vhdx) = (raw_disk(), vhdx_disk());
    let mut missed = Vec::new();
    for barrier in Barrier::ALL {
        let without = Barriers::without(barrier);
        let found = [&raw, &vhdx].into_iter().find_map(|disk| {
            let records = syncs(disk, without).into_iter().chain(ends(disk, without));
            records.into_iter().find_map(|record| find_broken(&record))
        });
        println!("without {barrier:?}: {found:?}");
        missed.extend(found.is_none().then_some(barrier));
    }
    assert_eq!(missed, Vec::new());
}
