//! Goal: a peer that breaks the rules ends the session with a protocol error, quickly, and changes
//! nothing it may not. Method: a scripted peer on one end of the loopback, a real role on the
//! other; each rule broken once.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use failback_engine::disk::{MemoryDisk, Source, Target};
use failback_engine::hash::HashKind;
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionOptions, Task, run_source, run_target,
};
use failback_engine::transport::link::loopback;
use failback_engine::transport::{
    Base, BlockData, Digest, Encoding, Message, RunKind, SourceEnd, SubRun, TargetResult,
};
use failback_engine::{Abort, Error, ErrorKind, Result};
use kit::{BLOCK, Endless, delta, session_link};

const BLOCKS: usize = 8;

fn content() -> Vec<u8> {
    (0..BLOCKS * BLOCK)
        .map(|at| u8::try_from(at % 253).unwrap() + 1)
        .collect()
}

/// A target under test against a source that says `script` and waits.
fn target_against(options: SessionOptions, script: &[Message]) -> (Error, Vec<u8>) {
    let disk = MemoryDisk::new(content());
    let target: &dyn Target = &disk;
    let result = against(script, |link| {
        let session = Session::new(options, (BLOCKS * BLOCK) as u64).unwrap();
        let changes = Changes::InPlace(InPlaceChanges::new(target, false, Box::new(|_| Ok(None))));
        run_target(
            &session,
            &disk,
            Some(changes),
            link,
            &Arc::new(Abort::new()),
        )
    });
    (result.unwrap_err(), disk.content())
}

/// A source under test against a target that says `script` and waits.
fn source_against(options: SessionOptions, script: &[Message]) -> Error {
    let disk = MemoryDisk::new(content());
    against(script, |link| {
        let session = Session::new(options, (BLOCKS * BLOCK) as u64).unwrap();
        run_source(&session, &disk, link, &Arc::new(Abort::new()))
    })
    .unwrap_err()
}

fn against(
    script: &[Message],
    role: impl FnOnce(failback_engine::sync::SessionLink) -> Result<(SourceEnd, TargetResult)>,
) -> Result<(SourceEnd, TargetResult)> {
    let started = Instant::now();
    let (near, far) = loopback::pair();
    let (mut peer, near) = (session_link(far), session_link(near));
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            // The role may hang up in the middle: that is what is wanted.
            for message in script {
                if peer
                    .sender
                    .send(message)
                    .and_then(|()| peer.sender.flush())
                    .is_err()
                {
                    return;
                }
            }
            while !matches!(peer.receiver.recv(), Err(_) | Ok(Message::Failure(_))) {}
        });
        role(near)
    });
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "a bad peer is not waited for"
    );
    result
}

fn whole_block(block: u64, byte: u8) -> Message {
    Message::Data(BlockData {
        block,
        base: Base::Zero,
        new_hash: Digest::from([9; 32]),
        encoding: Encoding::Raw,
        raw_len: u32::try_from(BLOCK).unwrap(),
        runs: vec![SubRun {
            first: 0,
            count: 16,
            kind: RunKind::Data,
        }],
        payload: vec![byte; BLOCK].into(),
    })
}

fn want(block: u64) -> Message {
    Message::Want {
        block,
        asks: true,
        payload: vec![0; 8].into(),
    }
}

/// Sums of `len` bytes for one piece of block 0.
fn sums(pieces: u64, len: usize) -> Message {
    Message::SubHashes {
        block: 0,
        pieces,
        payload: vec![0; len].into(),
    }
}

fn refused_by_target(script: &[Message]) {
    let (error, after) = target_against(delta(), script);
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
    assert!(after == content(), "the target was changed");
}

#[test]
fn data_that_was_not_announced() {
    refused_by_target(&[whole_block(1, 5)]);
}

#[test]
fn data_past_the_end() {
    refused_by_target(&[want(99)]);
}

#[test]
fn zeros_past_the_end() {
    refused_by_target(&[Message::Zero {
        first_block: 7,
        count: 1 << 20,
    }]);
}

#[test]
fn a_plan_for_a_block_past_the_end() {
    refused_by_target(&[Message::Replan {
        first_block: 99,
        sends_whole: true,
    }]);
}

// Announced as whole, and never sent.
#[test]
fn a_block_that_does_not_come() {
    let announced = Message::Want {
        block: 1,
        asks: false,
        payload: Vec::new().into(),
    };
    refused_by_target(&[announced, Message::End(SourceEnd::default())]);
}

#[test]
fn a_comparison_that_is_ahead_of_the_hashes() {
    refused_by_target(&[Message::Compared {
        up_to_block: 1 << 20,
    }]);
}

#[test]
fn an_end_before_everything_is_settled() {
    refused_by_target(&[Message::End(SourceEnd::default())]);
}

// The scan of a large disk waits for room that only the comparison gives: it must not wait for
// ever.
#[test]
fn an_end_before_the_comparison_of_a_large_disk() {
    let disk = Endless {
        blocks: 40_000,
        is_zero: |_| false,
    };
    let ended = against(&[Message::End(SourceEnd::default())], |link| {
        let options = SessionOptions {
            hash: HashKind::Xxh3,
            ..delta()
        };
        let session = Session::new(options, disk.info().virtual_size).unwrap();
        let changes = Changes::InPlace(InPlaceChanges::new(&disk, false, Box::new(|_| Ok(None))));
        run_target(
            &session,
            &disk,
            Some(changes),
            link,
            &Arc::new(Abort::new()),
        )
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn a_message_of_the_other_role() {
    refused_by_target(&[Message::Resend { block: 0 }]);
}

#[test]
fn a_block_that_does_not_have_its_hash() {
    let options = SessionOptions {
        task: Task::Full,
        ..delta()
    };
    let (error, after) = target_against(options, &[whole_block(1, 5)]);
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(after == content(), "the target was changed");
}

#[test]
fn a_hash_of_another_kind() {
    let Message::Data(data) = whole_block(1, 5) else {
        unreachable!("it is data")
    };
    let short = Message::Data(BlockData {
        new_hash: Digest::from([9; 16]),
        ..data
    });
    refused_by_target(&[want(1), short]);
}

#[test]
fn a_source_that_reports_a_failure() {
    let failure = failback_engine::transport::Failure {
        kind: 10,
        message: "bad\nsector".into(),
        path: String::new(),
        offset: Some(4096),
    };
    let (error, _) = target_against(delta(), &[Message::Failure(failure)]);
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(4096)));
    assert!(error.is_from_peer() && !error.chain().contains('\n'));
}

#[test]
fn hashes_with_a_gap() {
    let script = [Message::ZeroBlocks {
        first_block: 1,
        count: 1,
    }];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn hashes_of_another_kind() {
    let script = [Message::Hashes {
        first_block: 0,
        hash_len: 16,
        payload: vec![0; 16].into(),
    }];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn sums_that_nobody_asked_for() {
    let script = [sums(1, 128)];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn a_resend_past_the_end() {
    let script = [Message::Resend { block: 1 << 20 }];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn too_few_sums() {
    let hashes = Message::Hashes {
        first_block: 0,
        hash_len: 32,
        payload: vec![1; 32].into(),
    };
    // Sums before the question are refused too; whichever comes first, it is a protocol error.
    let script = [hashes, sums(1, 8)];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn sums_of_a_piece_past_the_end_of_a_block() {
    let hashes = Message::Hashes {
        first_block: 0,
        hash_len: 32,
        payload: vec![1; 32].into(),
    };
    let script = [hashes, sums(2, 128)];
    assert_eq!(source_against(delta(), &script).kind(), ErrorKind::Protocol);
}

#[test]
fn a_result_before_the_end_is_no_success() {
    let script = [Message::Result(TargetResult {
        equal: true,
        ..TargetResult::default()
    })];
    let error = source_against(delta(), &script);
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
}

#[test]
fn a_peer_that_hangs_up() {
    let (near, far) = loopback::pair();
    drop(far);
    let session = Session::new(delta(), (BLOCKS * BLOCK) as u64).unwrap();
    let disk = MemoryDisk::new(content());
    let ended = run_source(&session, &disk, session_link(near), &Arc::new(Abort::new()));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::PeerGone);
}
