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
mod changed;
mod compaction;
mod cut_later;
mod disk;
mod elsewhere;
mod killed;
mod layered;
mod marked;
mod panics;
mod promises;
mod replaced;
mod scenario;
mod states;
mod world;
mod wrapping;

use std::collections::BTreeMap;

use failback_engine::commit::Unfinished;
use failback_engine::state::{Barrier, Barriers, Container, Word};
use failback_engine::sync::Task;
use failback_engine::transport::{Apply, VerifyLevel};
use failback_engine::{CancelToken, Result};

use compaction::record_compacted;
use cut_later::{Then, killed};
use disk::Format;
use elsewhere::{check_marker, records_elsewhere};
use killed::records_killed;
use layered::{children, children_elsewhere, record_child, sync_child};
use marked::{check_all_marked, records_marked};
use promises::check;
use replaced::{missing, record_replacing, record_replacing_resumed};
use scenario::{
    Disk, Record, WINDOW, after, at_word, content, finish, raw_disk, record_after_kill, record_end,
    record_resumed, record_sync, resumed_with, sync,
};
use states::{Effort, State, each};
use world::World;
use wrapping::{Features, vhdx_disk};

/// Every state is a copy of some files: the system's allocator gives each back and takes it anew,
/// page by page, which is a third of all time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CI: Effort = Effort {
    subsets: 300,
    torn: 300,
    all_max: 4096,
};

/// Most of these states are of a file that nobody has seen yet.
const CI_OF_REPLACEMENTS: Effort = Effort {
    subsets: 100,
    torn: 100,
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
const NESTED_EVERY: usize = 500;

/// Enough to find what a missing barrier does.
const SMALL: Effort = Effort {
    subsets: 60,
    torn: 20,
    all_max: 128,
};

/// Three syncs follow on each of these.
const CI_OF_MARKED: Effort = Effort {
    subsets: 60,
    torn: 40,
    all_max: 256,
};

/// Of each of many records.
const FEW: Effort = Effort {
    subsets: 16,
    torn: 8,
    all_max: 64,
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

/// The states of jobs whose state is kept elsewhere; how many there were, or the first broken
/// promise.
fn check_all_elsewhere(records: &[Record], effort: Effort) -> std::result::Result<usize, String> {
    let mut count = 0;
    for record in records {
        let mut found = None;
        count += each(&record.base, &record.ops, effort, 5, |state| {
            let word = check(record, &state);
            let world = World::like(&state.host);
            let broken = word.and_then(|word| check_marker(&world, word)).err();
            found = broken.map(|broken| describe(record, &state, &broken));
            found.is_none()
        });
        if let Some(found) = found {
            return Err(found);
        }
    }
    Ok(count)
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

/// Distinct states that each test looks at in CI, at least; `a_million_states` looks at more.
const FLOORS: [usize; 4] = [13_000, 27_000, 3_100, 8_800];
/// Beyond those: of a raw disk and a VHDX that a new file takes the place of, ...
const REPLACEMENT_FLOORS: [usize; 2] = [6_500, 11_500];
/// ... and of what each other test looks at.
const WITHOUT_UNDO_FLOOR: usize = 3_500;
const COMPACTION_FLOOR: usize = 4_000;
const ELSEWHERE_FLOOR: usize = 3_500;
const KILLED_FLOOR: usize = 4_400;
const _: () = {
    let [a, b, c, d] = FLOORS;
    let [e, f] = REPLACEMENT_FLOORS;
    let beyond = WITHOUT_UNDO_FLOOR + COMPACTION_FLOOR + ELSEWHERE_FLOOR + KILLED_FLOOR;
    assert!(a + b + c + d + e + f + beyond >= 80_000);
};

fn check_records(records: &[Record], effort: Effort, floor: usize) -> Counts {
    let mut counts = Counts::default();
    for record in records {
        let words = check_all(record, effort, true);
        let features = Features::of(record);
        println!(
            "{:?}, {} changes ({features}): {words:?}",
            record.disk.format,
            record.ops.len()
        );
        counts.add(features, words.values().sum());
    }
    let Counts { all, hardest } = counts;
    println!("{all} states, {hardest} of them of records with all three features");
    assert!(all >= floor, "only {all} states");
    counts
}

/// States, and those of records in which the BAT grew, space was recycled and the log wrapped.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    all: usize,
    hardest: usize,
}

impl Counts {
    fn add(&mut self, features: Features, count: usize) {
        self.all += count;
        self.hardest += if features.has_all() { count } else { 0 };
    }
}

/// Each test is a process of its own: that a third of all states are of the hardest records follows
/// from what each has at least, and at most.
const HARDEST_FLOORS: [usize; 2] = [26_500, 4_500];
const CEILINGS: [usize; 7] = [16_000, 31_500, 3_700, 10_400, 5_000, 5_500, 5_500];
const _: () = {
    let [a, b, c, d, e, f, g] = CEILINGS;
    assert!(3 * (HARDEST_FLOORS[0] + HARDEST_FLOORS[1]) >= a + b + c + d + e + f + g);
};

#[test]
fn syncs_of_a_raw_disk_survive_power_cuts() {
    let counts = check_records(&syncs(&raw_disk(), Barriers::new()), CI, FLOORS[0]);
    assert!(counts.all <= CEILINGS[0]);
}

#[test]
fn compactions_of_a_stage_survive_power_cuts() {
    let record = record_compacted(Barriers::new());
    let effort = Effort {
        subsets: 300,
        torn: 300,
        ..CI
    };
    let counts = check_records(&[record], effort, COMPACTION_FLOOR);
    assert!(counts.all <= CEILINGS[4]);
}

#[test]
fn a_power_cut_after_a_kill_is_survived() {
    let mut records = records_killed(&raw_disk(), Barriers::new());
    records.extend(records_killed(&vhdx_disk(), Barriers::new()));
    let effort = Effort {
        subsets: 60,
        torn: 40,
        all_max: 256,
    };
    let counts = check_records(&records, effort, KILLED_FLOOR);
    assert!(counts.all <= CEILINGS[6]);
}

#[test]
fn a_state_kept_elsewhere_is_found_after_a_power_cut() {
    let effort = Effort {
        subsets: 250,
        torn: 250,
        all_max: 512,
    };
    let count = check_all_elsewhere(&records_elsewhere(Barriers::new()), effort).unwrap();
    println!("{count} states");
    assert!(count >= ELSEWHERE_FLOOR, "only {count} states");
    assert!(count <= CEILINGS[5]);
}

#[test]
fn syncs_of_a_vhdx_survive_power_cuts() {
    let counts = check_records(&syncs(&vhdx_disk(), Barriers::new()), CI, FLOORS[1]);
    assert!(counts.all <= CEILINGS[1]);
    assert!(counts.hardest >= HARDEST_FLOORS[0]);
}

#[test]
fn ends_of_a_raw_disk_survive_power_cuts() {
    let counts = check_records(&ends(&raw_disk(), Barriers::new()), CI, FLOORS[2]);
    assert!(counts.all <= CEILINGS[2]);
}

#[test]
fn ends_of_a_vhdx_survive_power_cuts() {
    let counts = check_records(&ends(&vhdx_disk(), Barriers::new()), CI, FLOORS[3]);
    assert!(counts.all <= CEILINGS[3]);
    assert!(counts.hardest >= HARDEST_FLOORS[1]);
}

// Goal: what a killed process left in memory alone is not acted upon. Method: kill before each
// flush, go on with what a reader sees, and cut the power then.
#[test]
fn power_cuts_after_a_kill_are_survived() {
    let raw = killed(
        &raw_disk(),
        Barriers::new(),
        &[Then::Recover, Then::RollBack, Then::Sync],
    );
    let vhdx = killed(&vhdx_disk(), Barriers::new(), &[Then::Sync]);
    let mut total = 0;
    for killed in raw.iter().chain(vhdx.iter().step_by(4)) {
        let (count, broken) = killed.find_broken(FEW);
        assert_eq!(broken, None);
        total += count;
    }
    println!("{total} states");
    assert!(total >= 3_000, "only {total} states");
}

// Goal: nothing is written over a disk that somebody else changed meanwhile. Method: one byte of it
// is another one; what tells one state of the file from another is the same.
#[test]
fn a_target_that_changed_is_found_by_its_bytes() {
    changed::check_resume(&raw_disk());
    changed::check_touched(&raw_disk());
    changed::check_roll_back(&raw_disk());
    changed::check_apply(&raw_disk());
    changed::check_apply_without_undo(&raw_disk());
}

#[test]
fn a_rotted_half_of_a_record_leaves_the_other_way_out() {
    changed::check_rotted_half(&raw_disk());
}

// Goal: COMMIT rests on what the medium has of the stage. Method: it has another byte than memory.
#[test]
fn a_stage_is_read_from_the_medium_before_seal() {
    changed::check_rotted_medium(&raw_disk());
}

#[test]
fn replacements_of_a_raw_disk_survive_power_cuts() {
    let records = replacements(&raw_disk(), Barriers::new());
    check_records(&records, CI_OF_REPLACEMENTS, REPLACEMENT_FLOORS[0]);
}

#[test]
fn replacements_of_a_vhdx_survive_power_cuts() {
    let records = replacements(&vhdx_disk(), Barriers::new());
    check_records(&records, CI_OF_REPLACEMENTS, REPLACEMENT_FLOORS[1]);
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

// Goal: a disk that is written in place, and one on which that was cut off, is called mixed until
// it is the new one, and the same sync makes it that. Method: record both kinds, cut the power.
fn check_marked_disk(disk: &Disk, effort: Effort, floor: usize) {
    let records = records_marked(disk, Barriers::new());
    let count = check_all_marked(&records, effort).unwrap();
    println!("{count} states");
    assert!(count >= floor, "only {count} states");
}

// Goal: what a sync without an undo checks before it goes on refuses nothing of its own. Method:
// record one, cut the power.
#[test]
fn syncs_without_undo_survive_power_cuts() {
    let records = [raw_disk(), vhdx_disk()]
        .map(|disk| record_sync(&disk, Barriers::new(), Task::Delta, Apply::StageNoUndo));
    check_records(&records, CI_OF_REPLACEMENTS, WITHOUT_UNDO_FLOOR);
}

#[test]
fn a_raw_disk_written_in_place_is_marked() {
    check_marked_disk(&raw_disk(), CI_OF_MARKED, 700);
}

#[test]
fn a_vhdx_written_in_place_is_marked() {
    check_marked_disk(&vhdx_disk(), FEW, 400);
}

#[test]
fn a_child_kept_elsewhere_is_found_after_a_power_cut() {
    let records = children_elsewhere(&vhdx_disk(), Barriers::new());
    let count = check_all_elsewhere(&records, CI_OF_CHILDREN).unwrap();
    println!("{count} states");
    assert!(count >= 500, "only {count} states");
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
    let counts = check_records(&all, LONG, 1_000_000);
    assert!(3 * counts.hardest >= counts.all);
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
        let of = |disk: &Disk| {
            let records = syncs(disk, without)
                .into_iter()
                .chain(ends(disk, without))
                .chain(replacements(disk, without));
            records
                .into_iter()
                .find_map(|record| find_broken(&record))
                .or_else(|| {
                    let killed = killed(disk, without, &[Then::Recover, Then::Sync]);
                    killed.iter().find_map(|one| one.find_broken(FEW).1)
                })
        };
        let compacted = || find_broken(&record_compacted(without));
        let elsewhere = || check_all_elsewhere(&records_elsewhere(without), SMALL).err();
        // Where one of few is sure to be missed is looked at first, what takes longest last.
        let first = match barrier {
            Barrier::Compacted | Barrier::CompactedName => compacted(),
            Barrier::Marker | Barrier::MarkerName => elsewhere(),
            _ => None,
        };
        let found = first
            .or_else(|| of(&raw))
            .or_else(|| children(&vhdx, without).iter().find_map(find_broken))
            .or_else(compacted)
            .or_else(|| check_all_marked(&records_marked(&raw, without), FEW).err())
            .or_else(elsewhere)
            .or_else(|| records_killed(&raw, without).iter().find_map(find_broken))
            .or_else(|| of(&vhdx));
        println!("without {barrier:?}: {found:?}");
        missed.extend(found.is_none().then_some(barrier));
    }
    assert_eq!(missed, Vec::new());
}
