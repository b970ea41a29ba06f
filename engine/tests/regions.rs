//! Goal: whatever is sent whole, and wherever the plan changes, the target becomes the source, and
//! no more travels than the plan accounts for. Method: both roles over the loopback, disks in
//! memory of some regions that differ in ways of their own; the same session without such plans is
//! the twin.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::sync::Arc;

use failback_engine::Abort;
use failback_engine::disk::MemoryDisk;
use failback_engine::hash::HashKind;
use failback_engine::plan::{BlockPlan, DiskRates};
use failback_engine::sync::{RegionPolicy, Replanned, Session, SessionOptions};
use failback_engine::transport::link::loopback;
use kit::{BLOCK, Ended, PAGE, delta, run_sessions};
use proptest::prelude::*;

/// Blocks of a region here.
const REGION: usize = 16;
/// Bytes of one.
const REGION_LEN: usize = REGION * BLOCK;
/// Regions with twice as many blocks as may wait for an answer.
const MANY: usize = 64;
/// Bytes of these.
const MANY_LEN: u64 = (MANY * REGION_LEN) as u64;
/// A link, and a disk, that cost nothing.
const FAST: f64 = 1e12;

/// How a region differs.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Equal,
    /// One page of one block.
    OnePage,
    /// Every page of every block.
    All,
    /// All but one page of every block.
    Nearly,
    /// Some pages of every other block.
    Some,
    /// It becomes zero.
    Zeroed,
    /// It was zero.
    Filled,
    /// It is a hole on both sides.
    Hole,
}

const KINDS: [Kind; 8] = [
    Kind::Equal,
    Kind::OnePage,
    Kind::All,
    Kind::Nearly,
    Kind::Some,
    Kind::Zeroed,
    Kind::Filled,
    Kind::Hole,
];

/// What the target and the source have there. Each block has bytes of its own.
fn region(kind: Kind, number: usize) -> (Vec<u8>, Vec<u8>) {
    let of = |place: usize| u8::try_from((number * REGION + place / BLOCK) % 120).unwrap() + 1;
    let mut old: Vec<u8> = (0..REGION_LEN).map(of).collect();
    let mut new = old.clone();
    for (index, page) in new.chunks_mut(PAGE).enumerate() {
        let (block, within) = (index * PAGE / BLOCK, index % (BLOCK / PAGE));
        let changes = match kind {
            Kind::Equal | Kind::Hole => false,
            Kind::OnePage => index == 5,
            Kind::All | Kind::Zeroed | Kind::Filled => true,
            Kind::Nearly => within != 3,
            Kind::Some => block % 2 == 0 && within < 5,
        };
        if changes {
            page.fill(page[0] + 120);
        }
    }
    match kind {
        Kind::Zeroed => new.fill(0),
        Kind::Filled => old.fill(0),
        Kind::Hole => {
            old.fill(0);
            new.fill(0);
        }
        _ => {}
    }
    (old, new)
}

fn disks(kinds: &[Kind]) -> (Vec<u8>, Vec<u8>) {
    let regions = kinds.iter().enumerate();
    let (old, new): (Vec<_>, Vec<_>) = regions.map(|(number, kind)| region(*kind, number)).unzip();
    (old.concat(), new.concat())
}

struct Ran {
    ended: Ended,
    target: MemoryDisk,
    /// As the source and the target tell of them.
    replans: [Vec<Replanned>; 2],
}

fn run(kinds: &[Kind], options: SessionOptions) -> Ran {
    let (old, new) = disks(kinds);
    let (source, target) = (MemoryDisk::new(new), MemoryDisk::new(old));
    let session = || {
        let mut session = Session::new(options, (kinds.len() * REGION_LEN) as u64).unwrap();
        session.regions = RegionPolicy {
            len: REGION_LEN as u64,
            assumed_link: Some(FAST),
            disk: DiskRates {
                log: FAST,
                write: FAST,
                scattered_write: FAST,
                read_back: FAST,
            },
            ..RegionPolicy::default()
        };
        session
    };
    let sessions = [session(), session()];
    let told = sessions.each_ref().map(|session| session.progress.clone());
    let [from, to] = sessions;
    let abort = Arc::new(Abort::new());
    let ended = run_sessions(
        loopback::pair(),
        (&source, from),
        (&target, to),
        false,
        &abort,
    );
    let replans = told.map(|progress| std::iter::from_fn(|| progress.take_replan()).collect());
    Ran {
        ended,
        target,
        replans,
    }
}

fn options(hash: HashKind, may_send_whole: bool) -> SessionOptions {
    SessionOptions {
        hash,
        may_send_whole,
        ..delta()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_mix_of_regions_becomes_equal_in_bounded_bytes(
        kinds in prop::collection::vec(prop::sample::select(KINDS.to_vec()), 1..14),
        hash in prop::sample::select(vec![HashKind::Blake3, HashKind::Xxh3]),
    ) {
        let (_, new) = disks(&kinds);
        let plain = run(&kinds, options(hash, false));
        let planned = run(&kinds, options(hash, true));

        for ran in [&plain, &planned] {
            let (end, result) = ran.ended.target.as_ref().unwrap();
            prop_assert!(result.equal);
            prop_assert_eq!(end.root, result.root);
            prop_assert!(end.root.is_some());
            prop_assert!(ran.target.content() == new, "other bytes");
            prop_assert_eq!(&ran.replans[0], &ran.replans[1]);
            prop_assert_eq!(end.replans, ran.replans[0].len() as u64);
            let mut plan = BlockPlan::Differences;
            for replan in &ran.replans[0] {
                prop_assert!(replan.plan != plan, "a change to the same: {:?}", ran.replans);
                plan = replan.plan;
            }
        }
        let end_of = |ran: &Ran| ran.ended.target.as_ref().unwrap().0.clone();
        let (plain_end, end) = (end_of(&plain), end_of(&planned));
        prop_assert_eq!((plain_end.replans, plain_end.whole_bytes), (0, 0));
        // Blocks that are equal never travel, and of those that differ no more than is said.
        prop_assert_eq!(end.root, plain_end.root);
        prop_assert_eq!(end.differing_blocks, plain_end.differing_blocks);
        prop_assert!(end.sent_bytes <= plain_end.sent_bytes + end.whole_bytes);
        let to_target = planned.ended.wire_in;
        // A message for each change of plan; messages of blocks are the same, and names fewer.
        let replans = 64 * end.replans;
        prop_assert!(to_target <= plain.ended.wire_in + end.whole_bytes + replans, "{to_target}");
    }
}

// Goal: regions all of which differs are sent whole, and what comes after is compared again.
// Method: so many such regions that the source has to wait for answers, then equal ones.
#[test]
fn a_change_there_and_back() {
    let kinds = [vec![Kind::All; MANY], vec![Kind::Equal; 6]].concat();
    let ran = run(&kinds, options(HashKind::Blake3, true));
    let (end, result) = ran.ended.target.unwrap();
    assert!(result.equal);
    let plans: Vec<_> = ran.replans[0].iter().map(|replan| replan.plan).collect();
    assert_eq!(plans, [BlockPlan::Whole, BlockPlan::Differences]);
    assert!(end.whole_regions > 0, "{end:?}");
    // One in eight of them is asked about.
    assert!(end.whole_bytes <= MANY_LEN * 7 / 8, "{end:?}");
    assert_eq!(end.sent_bytes, MANY_LEN);
}

// Goal: nobody is asked about what is sent whole. Method: the target's bytes on the link, which are
// hashes and answers; each answer has a sum for each page.
#[test]
fn nobody_is_asked_about_what_is_sent_whole() {
    let kinds = vec![Kind::All; MANY];
    let told = |may_send_whole| {
        let ran = run(&kinds, options(HashKind::Xxh3, may_send_whole));
        let (end, _) = ran.ended.target.unwrap();
        (ran.ended.wire_out, end.whole_bytes)
    };
    let ((asked, none), (planned, whole)) = (told(false), told(true));
    assert_eq!(none, 0);
    assert!(whole > 0);
    let sums = whole / PAGE as u64 * 8;
    assert!(planned + sums < asked, "{planned} and {sums}, {asked}");
}

// Goal: few pages of few blocks never change the plan. Method: such regions only.
#[test]
fn scattered_changes_are_no_reason() {
    let ran = run(&[Kind::OnePage; 12], options(HashKind::Blake3, true));
    assert_eq!(ran.replans[0], []);
    assert_eq!(ran.ended.target.unwrap().0.whole_bytes, 0);
}
