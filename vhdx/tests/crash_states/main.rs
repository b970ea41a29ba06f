//! Goal: a power cut at any moment of writing leaves an image that opens and is sound, in which
//! each sector is old or new and everything flushed is there; and every flush of the writer is
//! needed for that. Method: record all changes of sessions, look at every state that `states`
//! finds, then leave out the flushes of one place in the writer after the other and look for a
//! broken promise. All is deterministic; a failure names its session's seed and the state.
//!
//! The tests of each session look at 10^5 states together. The million is looked at by
//! `cargo nextest run -p failback-vhdx -E 'test(a_million)' --run-ignored all --no-capture`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "tests state and say what they find"
)]

mod history;
mod others;
mod promises;
mod record;
mod sessions;
mod sites;
mod states;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use failback_vhdx::{Image, Kind, MemoryFile};
use others::{Creation, Merging};
use promises::{Promise, assert_all, search};
use record::Op;
use sessions::{Disk, IN_BLOCK, Session, Step, random_steps};
use sites::{SITES, Site};
use states::{Effort, Look};
use support::MIB;

/// A record, and what must hold of its states.
struct Case {
    name: &'static str,
    base: Vec<MemoryFile>,
    ops: Vec<Op>,
    promise: Box<dyn Promise>,
    is_creation: bool,
    seed: u64,
}

impl Case {
    fn session(name: &'static str, session: Session, seed: u64) -> Self {
        Self {
            name,
            base: vec![session.base.clone()],
            ops: session.ops.clone(),
            promise: Box::new(session),
            is_creation: false,
            seed,
        }
    }

    fn all(&self, effort: Effort) -> Look {
        let points = 0..=self.ops.len();
        Look {
            effort,
            points,
            seed: self.seed,
        }
    }

    /// Whether a promise breaks without all of these flushes, and how.
    fn broken_without(&self, flushes: &[usize]) -> Option<String> {
        let ops = sites::without(&self.ops, |at| flushes.contains(&at));
        search(&*self.promise, &self.base, &ops, &self.all(MUTANT)).1
    }

    /// Whether one breaks without this one flush: before the next flush of the same file.
    fn is_broken_without(&self, flush: usize) -> bool {
        let ops = sites::without(&self.ops, |at| at == flush);
        let is_next = |op: &Op| op.is_sync() && op.file == ops[flush].file;
        let next = ops[flush..].iter().position(is_next);
        let points = flush + 1..=next.map_or(ops.len(), |next| flush + next);
        let look = Look {
            points,
            ..self.all(MUTANT)
        };
        search(&*self.promise, &self.base, &ops, &look).1.is_some()
    }

    /// Looks at all states; says how many there were.
    fn look(&self, effort: Effort) -> usize {
        let started = Instant::now();
        let count = assert_all(&*self.promise, &self.base, &self.ops, &self.all(effort));
        let syncs = self.ops.iter().filter(|op| op.is_sync()).count();
        eprintln!(
            "{}: {} changes, {syncs} syncs, {count} states, {:.1} s",
            self.name,
            self.ops.len(),
            started.elapsed().as_secs_f64()
        );
        count
    }
}

fn dynamic(seed: u64) -> Case {
    let steps = random_steps(seed, 4 * IN_BLOCK, 1, 48);
    let disk = Disk::new(Kind::Dynamic, 4 * MIB, 512);
    Case::session("dynamic", disk.record(&steps), seed)
}

fn fixed(seed: u64) -> Case {
    let steps = random_steps(seed, 4 * IN_BLOCK, 1, 48);
    let disk = Disk::new(Kind::Fixed, 4 * MIB, 512);
    Case::session("fixed", disk.record(&steps), seed)
}

/// A parent with content in three of four blocks, and a child that has some sectors.
fn chain(sector: u32) -> Disk {
    let below = [Step::Write(0..3 * IN_BLOCK, 222), Step::Close];
    let above = [
        Step::Write(8..24, 223),
        Step::Write(IN_BLOCK..2 * IN_BLOCK, 224),
        Step::Close,
    ];
    let parent = Disk::new(Kind::Dynamic, 4 * MIB, sector).after(&below);
    parent.child().after(&above)
}

fn child(seed: u64) -> Case {
    let steps = random_steps(seed, 4 * IN_BLOCK, 1, 48);
    Case::session("child", chain(512).record(&steps), seed)
}

fn sectors_of_4096(seed: u64) -> Case {
    let steps = random_steps(seed, 4 * IN_BLOCK, 8, 48);
    Case::session("sectors of 4096", chain(4096).record(&steps), seed)
}

/// Blocks lose their place again and again, and parts of others are written into it.
fn reuse(seed: u64) -> Case {
    let block = |block: u64| block * IN_BLOCK..(block + 1) * IN_BLOCK;
    let full: Vec<Step> = (0..4).map(|at| Step::Write(block(at), 99)).collect();
    let mut disk = Disk::new(Kind::Dynamic, 8 * MIB, 512).after(&full);
    disk = disk.after(&[Step::Write(0..1, 99), Step::Close]);
    let mut steps = Vec::new();
    for round in 0..6 {
        let lost = (round + seed) % 4;
        let (first, second) = (block(lost), block(4 + round % 4));
        let byte = u8::try_from(round + 1).unwrap();
        steps.extend([
            Step::Zero(first.clone()),
            Step::Write(second.start + 8..second.start + 17, byte),
            Step::Flush,
            Step::Write(first.start..first.start + 1, byte + 50),
            Step::Zero(second.start..second.start + IN_BLOCK),
            Step::Write(first.end - 2..first.end, byte + 100),
            Step::Flush,
        ]);
    }
    steps.push(Step::Close);
    Case::session("reuse", disk.record(&steps), seed)
}

/// An image whose last flush was cut: the log is replayed in the file, then written anew.
fn dirty(seed: u64) -> Case {
    let mut before = random_steps(seed + 1, 4 * IN_BLOCK, 1, 24);
    before.pop();
    before.extend([
        Step::Zero(IN_BLOCK..2 * IN_BLOCK),
        Step::Write(2047..2050, 199),
        Step::Flush,
    ]);
    let steps = random_steps(seed, 4 * IN_BLOCK, 1, 16);
    Case::session("dirty", chain(512).cut_after(&before).record(&steps), seed)
}

/// Blocks lose their place, and the file does not grow.
fn zeroing(seed: u64) -> Case {
    let full = [Step::Write(0..4 * IN_BLOCK, 99), Step::Close];
    let disk = Disk::new(Kind::Dynamic, 4 * MIB, 512).after(&full);
    let steps = [
        Step::Zero(0..IN_BLOCK),
        Step::Zero(IN_BLOCK + 5..IN_BLOCK + 9),
        Step::Flush,
        Step::Write(7..9, 1),
        Step::Zero(2 * IN_BLOCK..3 * IN_BLOCK),
        Step::Close,
    ];
    Case::session("zeroing", disk.record(&steps), seed)
}

/// A part of a block is written to a child whose file has gaps for it and for its bitmap, so that
/// the close follows the flush at once: nothing has to be cut off.
fn gaps(seed: u64) -> Case {
    let two = 0..2 * IN_BLOCK;
    let parent = Disk::new(Kind::Dynamic, 4 * MIB, 512);
    let disk = parent
        .child()
        .after(&[Step::Write(two.clone(), 99), Step::Close]);
    let disk = disk.after(&[Step::Zero(two), Step::Close]);
    let steps = [
        Step::Write(2 * IN_BLOCK + 5..2 * IN_BLOCK + 9, 1),
        Step::Close,
    ];
    Case::session("gaps", disk.record(&steps), seed)
}

/// One block in each of many pages of the BAT: more than one log entry.
fn wide(seed: u64) -> Case {
    let page = 512 * IN_BLOCK;
    let writes = (0..WIDE_PAGES).map(|at| Step::Write(at * page..at * page + 1, 7));
    let mut steps: Vec<Step> = writes.collect();
    steps.push(Step::Close);
    let disk = Disk::new(Kind::Dynamic, WIDE_PAGES * 512 * MIB, 512);
    Case::session("wide", disk.record(&steps), seed)
}

/// The same with a parent: pages of bitmaps and of the BAT over several log entries.
fn wide_child(seed: u64) -> Case {
    let page = 512 * IN_BLOCK;
    let writes = (0..WIDE_PAGES / 2).map(|at| Step::Write(at * page + 5..at * page + 7, 7));
    let mut steps: Vec<Step> = writes.collect();
    steps.push(Step::Close);
    let below = [Step::Write(0..64, 222), Step::Close];
    let parent = Disk::new(Kind::Dynamic, WIDE_PAGES / 2 * 512 * MIB, 512).after(&below);
    Case::session("wide child", parent.child().record(&steps), seed)
}

fn creation(kind: Kind, seed: u64) -> Case {
    let creation = Creation::new(kind);
    Case {
        name: "creation",
        base: vec![MemoryFile::new()],
        ops: creation.ops.clone(),
        promise: Box::new(creation),
        is_creation: true,
        seed,
    }
}

fn merge(seed: u64) -> Case {
    let below = [Step::Write(0..6 * IN_BLOCK, 222), Step::Close];
    let parent = Disk::new(Kind::Dynamic, 8 * MIB, 512).after(&below);
    let changes = |child: &Image| {
        child.write_at(4096 + 512, &[77; 1024]).unwrap();
        child.write_at(2 * MIB - 512, &[78; 1024]).unwrap();
        child.zero(3 * MIB..4 * MIB).unwrap();
        child.write_at(6 * MIB, &vec![79; 1 << 20]).unwrap();
        child.zero(4 * MIB + 4096..4 * MIB + 5120).unwrap();
    };
    let merging = Merging::new(parent, &changes);
    Case {
        name: "merge",
        base: merging.base.to_vec(),
        ops: merging.ops.clone(),
        promise: Box::new(merging),
        is_creation: false,
        seed,
    }
}

/// Looks at the sessions of a sort, and at as many states as promised.
fn look_at(sort: &Sort) {
    let count: usize = (1..=sort.seed_count)
        .map(|seed| (sort.case)(seed).look(CI))
        .sum();
    let expected = sort.states_min;
    assert!(count >= expected, "{count} states, not {expected}");
}

#[test]
fn cut_sessions_on_dynamic_images_leave_old_or_new() {
    look_at(&DYNAMIC);
}

#[test]
fn cut_sessions_on_fixed_images_leave_old_or_new() {
    look_at(&FIXED);
}

#[test]
fn cut_sessions_on_children_leave_old_or_new() {
    look_at(&CHILD);
}

#[test]
fn cut_sessions_with_large_sectors_leave_old_or_new() {
    look_at(&SECTORS_OF_4096);
}

#[test]
fn cut_sessions_that_use_space_again_leave_old_or_new() {
    look_at(&REUSE);
}

#[test]
fn cut_recoveries_of_cut_sessions_leave_old_or_new() {
    look_at(&DIRTY);
}

#[test]
fn cut_sessions_that_only_zero_leave_old_or_new() {
    look_at(&ZEROING);
}

#[test]
fn cut_sessions_that_fill_gaps_leave_old_or_new() {
    look_at(&GAPS);
}

#[test]
fn cut_flushes_of_many_log_entries_leave_old_or_new() {
    look_at(&WIDE);
}

#[test]
fn cut_flushes_of_many_bitmaps_leave_old_or_new() {
    look_at(&WIDE_CHILD);
}

#[test]
fn cut_creations_leave_nothing_or_an_empty_image() {
    for kind in [Kind::Dynamic, Kind::Fixed, Kind::Differencing] {
        creation(kind, 1).look(CI);
    }
}

#[test]
fn cut_merges_leave_the_chain() {
    look_at(&MERGE);
}

#[test]
fn without_the_flushes_of_any_one_place_a_promise_is_broken() {
    let cases = [
        creation(Kind::Fixed, 1),
        creation(Kind::Differencing, 1),
        dynamic(1),
        child(2),
        dirty(1),
        reuse(1),
        zeroing(1),
        gaps(1),
        merge(1),
    ];
    let alive: Vec<Site> = SITES
        .into_iter()
        .filter(|site| !is_needed(*site, &cases))
        .collect();
    assert_eq!(alive, []);
}

/// Whether a promise breaks in some case when all flushes of this place are left out. Says how
/// many of them break one when they alone are left out.
fn is_needed(site: Site, cases: &[Case]) -> bool {
    let started = Instant::now();
    let mut found = None;
    let (mut killed, mut all) = (0, 0);
    for case in cases {
        let sites = sites::find(&case.ops, case.is_creation);
        let here: Vec<usize> = sites
            .iter()
            .filter(|(_, s)| *s == site)
            .map(|(at, _)| *at)
            .collect();
        if here.is_empty() {
            continue;
        }
        if found.is_none() {
            let how = case.broken_without(&here);
            found = how.map(|how| format!("{}: {how}", case.name));
        }
        all += here.len();
        killed += here
            .into_iter()
            .filter(|one| case.is_broken_without(*one))
            .count();
    }
    eprintln!(
        "{site:?}: {killed} of {all} needed alone, {:.1} s; all left out: {found:?}",
        started.elapsed().as_secs_f64()
    );
    found.is_some()
}

#[test]
#[ignore = "ten minutes"]
fn a_million_states_of_power_cuts_break_no_promise() {
    let started = Instant::now();
    let sorts = [dynamic, fixed, child, sectors_of_4096, reuse, dirty];
    let mut count = 0;
    for case in [wide, wide_child, merge] {
        count += case(100).look(CI);
    }
    for seed in 100.. {
        if count >= 1_000_000 {
            break;
        }
        count += sorts.map(|case| case(seed).look(CI)).iter().sum::<usize>();
    }
    eprintln!("{count} states, {:.0} s", started.elapsed().as_secs_f64());
}

/// Before each sync: subsets where not all are taken, and torn states.
const CI: Effort = Effort {
    subsets: 4096,
    torn: 256,
};
/// The same in the search for a broken promise, which is done for each flush.
const MUTANT: Effort = Effort {
    subsets: 256,
    torn: 64,
};
/// Pages of the BAT: two log entries of at most 126.
const WIDE_PAGES: u64 = 140;

/// Sessions of one sort, looked at by one test.
struct Sort {
    case: fn(u64) -> Case,
    seed_count: u64,
    /// States that these have at least, together: each test is a process of its own, so only the
    /// sum of the promises is known to all. 159,520 states were counted when they were made.
    states_min: usize,
}

impl Sort {
    const fn new(case: fn(u64) -> Case, seed_count: u64, states_min: usize) -> Self {
        Self {
            case,
            seed_count,
            states_min,
        }
    }
}

const DYNAMIC: Sort = Sort::new(dynamic, 2, 15_000);
const FIXED: Sort = Sort::new(fixed, 2, 12_000);
const CHILD: Sort = Sort::new(child, 2, 16_000);
const SECTORS_OF_4096: Sort = Sort::new(sectors_of_4096, 2, 16_000);
const REUSE: Sort = Sort::new(reuse, 2, 10_000);
const DIRTY: Sort = Sort::new(dirty, 3, 10_000);
const ZEROING: Sort = Sort::new(zeroing, 1, 1_000);
const GAPS: Sort = Sort::new(gaps, 1, 1_000);
const WIDE: Sort = Sort::new(wide, 1, 10_000);
const WIDE_CHILD: Sort = Sort::new(wide_child, 1, 10_000);
const MERGE: Sort = Sort::new(merge, 1, 3_000);
const SORTS: [Sort; 11] = [
    DYNAMIC,
    FIXED,
    CHILD,
    SECTORS_OF_4096,
    REUSE,
    DIRTY,
    ZEROING,
    GAPS,
    WIDE,
    WIDE_CHILD,
    MERGE,
];
const _: () = {
    let (mut states, mut at) = (0, 0);
    while at < SORTS.len() {
        states += SORTS[at].states_min;
        at += 1;
    }
    assert!(states >= 100_000);
};
