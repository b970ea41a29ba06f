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

mod beside;
mod disk;
mod layered;
mod promises;
mod replaced;
mod scenario;
mod states;
mod world;

use std::collections::BTreeMap;

use failback_engine::commit::Unfinished;
use failback_engine::state::{Barrier, Barriers, Container, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;
use failback_engine::{CancelToken, Result};

use disk::Format;
use layered::{children, record_child, sync_child};
use promises::check;
use replaced::{missing, record_replacing, record_replacing_resumed};
use scenario::{
    Disk, Record, WINDOW, after, at_word, content, finish, raw_disk, record_end, record_resumed,
    record_sync, sync, vhdx_disk,
};
use states::{Effort, State, each};
use world::World;

const CI: Effort = Effort {
    subsets: 1000,
    torn: 1000,
    all_max: 4096,
};

/// Most of these states are of a file that nobody has seen yet.
const CI_OF_REPLACEMENTS: Effort = Effort {
    subsets: 300,
    torn: 300,
    all_max: 1024,
};

/// These take longer: three images each.
const CI_OF_CHILDREN: Effort = Effort {
    subsets: 8,
    torn: 8,
    all_max: 32,
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
    vec![
        record_sync(disk, barriers, Task::Delta, Apply::Stage),
        record_sync(disk, barriers, Task::Delta, Apply::StageKeepUndo),
        record_sync(disk, barriers, Task::Full, Apply::Stage),
        record_resumed(disk, barriers),
    ]
}

/// Syncs and ends of targets whose place a new file takes.
fn replacements(disk: &Disk, barriers: Barriers) -> Vec<Record> {
    let none = missing(disk);
    let cancel = CancelToken::new();
    let mut records = vec![
        record_replacing(disk, barriers, Container::File, Apply::Stage),
        record_replacing(disk, barriers, Container::Clone, Apply::Stage),
        record_replacing(&none, barriers, Container::File, Apply::Stage),
        record_replacing_resumed(disk, barriers),
        record_replacing_resumed(&none, barriers),
    ];
    for disk in [disk, &none] {
        let kept = record_replacing(disk, Barriers::new(), Container::File, Apply::StageKeepUndo);
        let done = after(&kept.base, &kept.ops);
        let sealed = at_word(&kept.base, &kept.ops, Word::Staged);
        records.push(record_end(disk, &done, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }));
        records.push(record_end(disk, &sealed, barriers, |job, journal| {
            job.finish(journal, &cancel)
        }));
        records.push(record_end(disk, &sealed, barriers, |job, journal| {
            job.roll_back(journal, &cancel)
        }));
        records.push(record_end(
            disk,
            &done,
            barriers,
            |job: &Unfinished<'_>, journal| job.accept(journal),
        ));
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
fn replacements_of_a_raw_disk_survive_power_cuts() {
    let records = replacements(&raw_disk(), Barriers::new());
    check_records(&records, CI_OF_REPLACEMENTS, 10_000);
}

#[test]
fn replacements_of_a_vhdx_survive_power_cuts() {
    let records = replacements(&vhdx_disk(), Barriers::new());
    check_records(&records, CI_OF_REPLACEMENTS, 20_000);
}

#[test]
fn children_of_a_vhdx_survive_power_cuts() {
    let records = children(&vhdx_disk(), Barriers::new());
    let mut total = 0;
    for (record, number) in records.iter().zip(0..) {
        // Recoveries of a sync that is cut, and of a roll-back; the others are much the same.
        let words = check_all(record, CI_OF_CHILDREN, matches!(number, 0 | 3));
        println!("{} changes: {words:?}", record.ops.len());
        total += words.values().sum::<usize>();
    }
    assert!(total >= 3_500, "only {total} states");
}

#[test]
#[ignore = "the long run: some minutes"]
fn a_million_states() {
    let all = [raw_disk(), vhdx_disk()].map(|disk| {
        let mut records = syncs(&disk, Barriers::new());
        records.extend(ends(&disk, Barriers::new()));
        records.extend(replacements(&disk, Barriers::new()));
        if disk.format == Format::Vhdx {
            records.extend(children(&disk, Barriers::new()));
        }
        records
    });
    let all: Vec<Record> = all.into_iter().flatten().collect();
    check_records(&all, LONG, 1_000_000);
}

// Goal: a flush or a write that fails ends the job, with the target old, new, or marked; and once
// the medium is well, the same sync ends equal. Method: fail each change of a sync in turn; look
// at what is there, and at what a power cut would leave.
fn check_faults(disk: &Disk) {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    check_faults_of(&whole, |world, disk, window| {
        sync(world, disk, window, Task::Delta, Apply::Stage)
    });
}

fn check_faults_of(whole: &Record, sync: impl Fn(&World, &Disk, Barriers) -> Result<()>) {
    let (disk, barriers) = (&whole.disk, Barriers::new());
    let mut failed = 0;
    for number in 0..whole.ops.len() {
        let world = World::failing(&disk.host, number);
        let window = barriers.with_window(WINDOW);
        let outcome = sync(&world, disk, window);
        let has_failed = world.mend();
        failed += usize::from(has_failed && outcome.is_err());
        for host in world.now_and_durable() {
            let state = State {
                host,
                made: 0,
                kept: vec![number],
            };
            let word = check(whole, &state);
            let word = word.unwrap_or_else(|broken| panic!("change {number} failed: {broken}"));
            let world = World::like(&state.host);
            if word.is_some_and(|word| !word.is_final()) {
                finish(&world, disk.format).unwrap();
            }
            sync(&world, disk, window).unwrap();
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

#[test]
fn each_failed_change_of_a_child_is_survived() {
    let whole = record_child(&vhdx_disk(), Barriers::new(), Apply::Stage);
    check_faults_of(&whole, |world, disk, window| {
        sync_child(world, disk, window, Apply::Stage)
    });
}

// Goal: every barrier is needed. Method: leave out one after the other; a promise has to break.
#[test]
fn each_barrier_left_out_is_found() {
    let (raw, vhdx) = (raw_disk(), vhdx_disk());
    let mut missed = Vec::new();
    for barrier in Barrier::ALL {
        let without = Barriers::without(barrier);
        let found = [&raw, &vhdx].into_iter().find_map(|disk| {
            let records = syncs(disk, without)
                .into_iter()
                .chain(ends(disk, without))
                .chain(replacements(disk, without));
            records.into_iter().find_map(|record| find_broken(&record))
        });
        let found = found.or_else(|| {
            let records = children(&vhdx, without);
            records.into_iter().find_map(|record| find_broken(&record))
        });
        println!("without {barrier:?}: {found:?}");
        missed.extend(found.is_none().then_some(barrier));
    }
    assert_eq!(missed, Vec::new());
}
