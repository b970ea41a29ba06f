//! Goal: two disks that are compared by their bytes end as two that are compared by their hashes
//! do. Method: random disks in memory, the same session beside each other and over a link; the
//! model is the source's content, and the root of a scan.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::sync::Arc;

use failback_engine::disk::MemoryDisk;
use failback_engine::hash::HashKind;
use failback_engine::sync::{
    Beside, Changes, InPlaceChanges, Peer, Session, SessionOptions, SideMap, Task, run_target,
};
use failback_engine::transport::{SourceEnd, TargetResult, VerifyLevel};
use failback_engine::units::BlockSize;
use failback_engine::{Abort, ErrorKind, Result};
use kit::{Fault, Faulty, PAGE, delta, run_session};
use proptest::prelude::*;

fn run_beside(
    source: &dyn failback_engine::disk::Source,
    target: &dyn failback_engine::disk::Target,
    options: SessionOptions,
) -> Result<(SourceEnd, TargetResult)> {
    let session = Session::new(options, source.info().virtual_size)?;
    let of_source = Session::new(options, source.info().virtual_size)?;
    let beside = Beside {
        source,
        session: &of_source,
    };
    assert!(beside.fits(&SideMap::default()));
    let changes = (options.task != Task::Compare)
        .then(|| Changes::InPlace(InPlaceChanges::new(target, false, Box::new(|_| Ok(None)))));
    let abort = Arc::new(Abort::new());
    run_target(&session, target, changes, Peer::Beside(beside), &abort)
}

/// A disk of pages, each filled with one byte.
fn disk_of(pages: &[u8], tail: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = pages.iter().flat_map(|page| [*page; PAGE]).collect();
    bytes.extend(vec![9; tail]);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn beside_ends_as_over_a_link(
        block_size in prop::sample::select(vec![64_u64 << 10, 128 << 10, 1 << 20]),
        hash in prop::sample::select(vec![HashKind::Blake3, HashKind::Xxh3]),
        verify in prop::sample::select(vec![VerifyLevel::Changed, VerifyLevel::Full]),
        is_compare in any::<bool>(),
        base in prop::collection::vec(prop_oneof![2 => Just(0_u8), 1 => any::<u8>()], 0..300),
        changes in prop::collection::vec((any::<usize>(), 1_usize..40, any::<u8>()), 0..8),
        tail in 0..PAGE,
    ) {
        let mut new_pages = base.clone();
        for (at, count, fill) in changes {
            let len = new_pages.len().max(1);
            new_pages.iter_mut().skip(at % len).take(count).for_each(|page| *page = fill / 2);
        }
        let (old, new) = (disk_of(&base, tail), disk_of(&new_pages, tail));
        let options = SessionOptions {
            task: if is_compare { Task::Compare } else { Task::Delta },
            hash,
            verify,
            block_size: BlockSize::new(block_size).unwrap(),
            ..delta()
        };
        let disks = || (MemoryDisk::new(new.clone()), MemoryDisk::new(old.clone()));
        let ((source, target), (far_source, far_target)) = (disks(), disks());

        let (end, result) = run_beside(&source, &target, options).unwrap();
        let (far_end, far_result) = run_session(&far_source, &far_target, options, false)
            .target
            .unwrap();

        prop_assert_eq!(target.content(), far_target.content());
        prop_assert_eq!(target.content() == new, result.equal);
        prop_assert_eq!(end.root, far_end.root);
        prop_assert_eq!(result.root, far_result.root);
        prop_assert_eq!(result.equal, far_result.equal);
        prop_assert_eq!(end.differing_blocks, far_end.differing_blocks);
        prop_assert_eq!(end.zeroed_blocks, far_end.zeroed_blocks);
        if !is_compare {
            prop_assert!(result.equal);
            prop_assert!(end.changed_bytes <= far_end.changed_bytes);
            prop_assert!(result.written <= far_result.written);
        }
    }
}

// Goal: where nobody wants a root there is none, and the target is equal all the same. Method: in
// place, unverified.
#[test]
fn without_a_proof_nothing_is_hashed() {
    let (old, new) = (disk_of(&[1; 64], 0), disk_of(&[2; 64], 0));
    let (source, target) = (MemoryDisk::new(new.clone()), MemoryDisk::new(old));
    let options = SessionOptions {
        verify: VerifyLevel::Off,
        ..delta()
    };
    let (end, result) = run_beside(&source, &target, options).unwrap();
    assert_eq!((end.root, result.root, result.equal), (None, None, true));
    assert_eq!(target.content(), new);
}

// Goal: no fault of either disk ends well. Method: one of each; the first error is what is told.
#[test]
fn faults_end_the_session() {
    let (old, new) = (disk_of(&[1; 512], 0), disk_of(&[2; 512], 0));
    let at = 1 << 20;
    let run = |source: Fault, target: Fault| {
        let source = Faulty::new(new.clone(), source);
        let target = Faulty::new(old.clone(), target);
        run_beside(&source, &target, delta()).map_err(|error| error.kind())
    };
    let none = Fault::ReadError(u64::MAX);
    assert!(run(none, none).is_ok());
    assert_eq!(run(Fault::ReadError(at), none).unwrap_err(), ErrorKind::Io);
    assert_eq!(run(none, Fault::ReadError(at)).unwrap_err(), ErrorKind::Io);
    assert_eq!(
        run(none, Fault::WriteFull(at)).unwrap_err(),
        ErrorKind::NoSpace
    );
    assert_eq!(run(none, Fault::FlushError).unwrap_err(), ErrorKind::Io);
    let lies = run(none, Fault::ReadBackLies(at));
    assert_eq!(lies.unwrap_err(), ErrorKind::VerifyFailed);
    // The source changes between the comparison and the second read of what differs.
    let changed = run(Fault::ChangesAfterRead(at), none);
    assert_eq!(changed.unwrap_err(), ErrorKind::VerifyFailed);
}
