//! Goal: what an agent answers to a client that plans is held against what was asked, and a lie in
//! it changes an estimate at most. Method: a scripted agent on loopback TCP that has the source;
//! one answer at a time is wrong.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use failback_engine::endpoint::Endpoint;
use failback_engine::operation::{SyncRequest, plan};
use failback_engine::report::Report;
use failback_engine::transport::link::tcp;
use failback_engine::transport::{
    DiskInfo, MapState, Message, PIECE_SUMS_LEN, POSITION_LEN, Positions, Probe, Sampled, Surveyed,
    handshake, split,
};
use failback_engine::{ErrorKind, Silent};

const DISK_LEN: u64 = 256 << 20;
const PIECES: u16 = 2;

/// What the agent says to a question.
type Answer = fn(&Message) -> Message;

fn honest(question: &Message) -> Message {
    match question {
        Message::Survey(_) => Message::Surveyed(surveyed(DISK_LEN, PIECES)),
        Message::Probe(probe) => Message::Probe(Probe {
            reply_len: 0,
            payload: vec![1; probe.reply_len as usize].into(),
        }),
        Message::Sample(_) => Message::Sampled(sampled(PIECES)),
        _ => Message::Bye,
    }
}

fn surveyed(allocated_bytes: u64, piece_count: u16) -> Surveyed {
    Surveyed {
        allocated_bytes,
        is_whole: true,
        picks: Positions {
            piece_count,
            span_count: 0,
            payload: vec![0; usize::from(piece_count) * POSITION_LEN].into(),
        },
        ..Surveyed::default()
    }
}

fn sampled(piece_count: u16) -> Sampled {
    Sampled {
        scanned_bytes: 1 << 20,
        scan_micros: 1000,
        piece_count,
        payload: vec![7; usize::from(piece_count) * PIECE_SUMS_LEN].into(),
        ..Sampled::default()
    }
}

/// A plan whose source is behind an agent that answers so; the target is a raw disk of holes.
fn planned_with(answer: Answer) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target.raw");
    std::fs::File::create(&target)
        .unwrap()
        .set_len(DISK_LEN)
        .unwrap();
    let listener = tcp::listen("127.0.0.1:0").unwrap();
    let source = format!("{}/disk", listener.local_addr());
    let source: Endpoint = source.parse().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut sender, mut receiver, _, _) = split(listener.accept().unwrap().unwrap());
            handshake(&mut sender, &mut receiver, "liar").unwrap();
            // The client may hang up in the middle: that is what is wanted.
            while let Ok(question) = receiver.recv() {
                let said = match question {
                    Message::Open(_) => opened(),
                    question => answer(&question),
                };
                if sender.send(&said).and_then(|()| sender.flush()).is_err() {
                    return;
                }
            }
        });
        plan(
            &SyncRequest::new(source, Endpoint::Path(target.clone())),
            &Silent,
        )
    })
}

fn opened() -> Message {
    Message::Opened(DiskInfo {
        format: "raw".to_owned(),
        virtual_size: DISK_LEN,
        logical_sector_size: 0,
        identity: "disk".to_owned(),
        is_new: false,
        is_partial: false,
        allocated_bytes: 0,
        map: MapState::default(),
    })
}

// The others fail for the lie alone: this is the same without one.
#[test]
fn an_honest_agent_is_planned_with() {
    let report = planned_with(honest);
    assert_eq!(report.error_kind(), None, "{:?}", report.error);
    let sample = report.plan.unwrap().sample.unwrap();
    assert_eq!((sample.pieces, sample.differing), (2, 2));
}

fn assert_protocol(answer: Answer) {
    let report = planned_with(answer);
    let kind = report.error_kind();
    assert_eq!(kind, Some(ErrorKind::Protocol), "{:?}", report.error);
}

#[test]
fn more_pieces_than_were_asked_for() {
    assert_protocol(|question| match question {
        Message::Sample(_) => Message::Sampled(sampled(PIECES + 1)),
        question => honest(question),
    });
}

#[test]
fn a_probe_of_another_length() {
    assert_protocol(|question| match question {
        Message::Probe(probe) => Message::Probe(Probe {
            reply_len: 0,
            payload: vec![1; probe.reply_len as usize + 1].into(),
        }),
        question => honest(question),
    });
}

#[test]
fn an_answer_to_another_question() {
    assert_protocol(|question| match question {
        Message::Survey(_) => Message::Sampled(sampled(0)),
        question => honest(question),
    });
}

// Rates and counts are foreign numbers: whatever they are, the costs stay numbers.
#[test]
fn absurd_rates_are_bounded() {
    let report = planned_with(|question| match question {
        Message::Survey(_) => Message::Surveyed(surveyed(64 << 40, PIECES)),
        Message::Sample(_) => Message::Sampled(Sampled {
            scanned_bytes: u64::MAX,
            scan_micros: 1,
            pack_raw_bytes: 1,
            packed_bytes: u64::MAX,
            pack_micros: u64::MAX,
            ..sampled(0)
        }),
        question => honest(question),
    });
    assert_eq!(report.error_kind(), None, "{:?}", report.error);
    let plan = report.plan.unwrap();
    for cost in [plan.delta.unwrap(), plan.full.unwrap()] {
        assert!(cost.seconds.is_finite() && cost.seconds > 0.0);
    }
}
