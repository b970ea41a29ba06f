//! Instances of each message, and shortcuts from messages to bytes and back.

use bytes::Bytes;
use failback_transport::*;

/// One instance of each message; every field has a value of its own.
pub(crate) fn samples() -> Vec<Message> {
    let mut all = samples_of_opening();
    all.extend(samples_of_planning());
    all.extend(samples_of_comparison());
    all.extend(samples_of_copy());
    all.extend(samples_of_control());
    all
}

fn samples_of_opening() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            version_min: 1,
            version_max: 2,
            features: 0x0102_0304_0506_0708,
            software: "failback 0.1.0".to_owned(),
        }),
        Message::Open(OpenRequest {
            name: "web".to_owned(),
            access: Access::Write,
            create: Some(NewDisk {
                size: 1 << 36,
                logical_sector_size: 512,
                block_size_hint: 2 << 20,
            }),
            map: Some(MapWish {
                hash: HashKind::Xxh3,
                block_size: 1 << 16,
                trust: true,
                full_audit: false,
            }),
            links: Some(LinkGroup {
                count: 4,
                token: Digest::from([0xcd; 16]),
            }),
        }),
        Message::Opened(DiskInfo {
            format: "vhdx".to_owned(),
            virtual_size: 1 << 36,
            logical_sector_size: 4096,
            identity: "6f1c".to_owned(),
            is_new: true,
            is_partial: true,
            allocated_bytes: 3 << 30,
            map: MapState {
                root: Some(Digest::from([0xef; 32])),
                refusal: Some(3),
                audited_blocks: 459,
                data_blocks: 1 << 16,
                is_settled: true,
            },
        }),
        Message::Start(SessionParams {
            task: Task::Compare,
            hash: HashKind::Xxh3,
            block_size: 1 << 20,
            verify: VerifyLevel::Changed,
            compress: Compress::Zstd(-3),
            sub_hash_seed: 0x1122_3344_5566_7788,
            peer_role: Role::Target,
            apply: Apply::StageKeepUndo,
            container: Some(Container::Clone),
            goes_on: true,
            source_mark: 0x0102_0304_0506_0708,
            target_root: Some(Digest::from([0x9a; 32])),
            may_send_whole: true,
        }),
        Message::Start(SessionParams {
            task: Task::Full,
            hash: HashKind::Blake3,
            block_size: 1 << 16,
            verify: VerifyLevel::Off,
            compress: Compress::Auto,
            sub_hash_seed: 0,
            peer_role: Role::Source,
            apply: Apply::InPlace,
            container: None,
            goes_on: false,
            source_mark: 0,
            target_root: None,
            may_send_whole: false,
        }),
        Message::Failure(Failure {
            kind: 6,
            message: "no space".to_owned(),
            path: "web.vhdx".to_owned(),
            offset: Some(0x30_0010),
        }),
        Message::KeepAlive,
        Message::Bye,
        Message::Join {
            token: Digest::from([0xcd; 16]),
        },
        Message::Joined,
    ]
}

fn samples_of_planning() -> Vec<Message> {
    let picks = || Positions {
        piece_count: 2,
        span_count: 1,
        payload: numbered(3 * POSITION_LEN),
    };
    vec![
        Message::Survey(SurveyWish { seed: 77 }),
        Message::Surveyed(Surveyed {
            allocated_bytes: 5 << 30,
            is_whole: true,
            delta_container: Some(Container::Log),
            full_container: None,
            seen: SeenRates {
                log: 1,
                write: 2,
                scattered_write: 3,
                read_back: 4,
            },
            picks: picks(),
        }),
        Message::Sample(SampleWish {
            hash: HashKind::Blake3,
            zstd_level: Some(-1),
            picks: picks(),
        }),
        Message::Sampled(Sampled {
            scanned_bytes: 1,
            scan_micros: 2,
            pack_raw_bytes: 3,
            packed_bytes: 4,
            pack_micros: 5,
            piece_count: 1,
            span_count: 2,
            payload: numbered(PIECE_SUMS_LEN + 2 * SPAN_SUM_LEN),
        }),
        Message::Probe(Probe {
            reply_len: 6,
            payload: numbered(5),
        }),
    ]
}

fn samples_of_comparison() -> Vec<Message> {
    vec![
        Message::Hashes {
            first_block: 7,
            hash_len: 16,
            payload: numbered(32),
        },
        Message::ZeroBlocks {
            first_block: 9,
            count: 10,
        },
        Message::ScanEnd { block_count: 19 },
        Message::SubHashes {
            block: 11,
            pieces: 4,
            payload: numbered(16),
        },
        Message::Resend { block: 12 },
        Message::Nodes {
            level: 8,
            first: 20,
            hash_len: 16,
            payload: numbered(32),
        },
        Message::Settled { up_to_block: 21 },
        Message::Result(TargetResult {
            root: Some(Digest::from([0xab; 32])),
            equal: true,
            target_read: 1,
            written: 2,
            verified: 3,
            zeroed_blocks: 4,
            hashed_blocks: 5,
            skipped_blocks: 6,
            differing_blocks: 7,
            verified_from: VerifiedFrom::Cache,
            verify_micros: 8,
            resumed_blocks: 9,
            resume_notes: 3,
            container: Some(Container::File),
            vouched_bytes: 10,
        }),
    ]
}

fn samples_of_copy() -> Vec<Message> {
    vec![
        Message::Compared { up_to_block: 13 },
        Message::Want {
            block: 14,
            asks: true,
            payload: numbered(8),
        },
        Message::Data(BlockData {
            block: 15,
            base: Base::Zero,
            new_hash: Digest::from([0xcd; 16]),
            encoding: Encoding::Zstd,
            raw_len: 2 * SUB_BLOCK_LEN - 1,
            runs: vec![
                SubRun {
                    first: 0,
                    count: 3,
                    kind: RunKind::Zero,
                },
                SubRun {
                    first: 5,
                    count: 2,
                    kind: RunKind::Data,
                },
            ],
            payload: numbered(24),
        }),
        Message::Zero {
            first_block: 16,
            count: 17,
        },
        Message::Descend {
            level: 9,
            down: 4,
            payload: vec![22, 0, 0, 0, 23, 1, 0, 0].into(),
        },
        Message::Replan {
            first_block: 18,
            sends_whole: true,
        },
        Message::End(SourceEnd {
            root: None,
            source_read: 1,
            hashed_blocks: 2,
            skipped_blocks: 3,
            differing_blocks: 4,
            zeroed_blocks: 5,
            changed_bytes: 6,
            raw_bytes: 7,
            sent_bytes: 8,
            vouched_bytes: 9,
            replans: 10,
            whole_regions: 11,
            whole_bytes: 12,
        }),
    ]
}

fn samples_of_control() -> Vec<Message> {
    let ask = |what| {
        Message::Ask(ControlAsk {
            step: "final".to_owned(),
            what,
        })
    };
    let (disk, snapshot) = (|| "os".to_owned(), || "pass-1".to_owned());
    let asks = [
        ControlTask::Power,
        ControlTask::ShutDown { limit_ms: 300_000 },
        ControlTask::PowerOff,
        ControlTask::Start { epoch: 24 },
        ControlTask::Delete,
        ControlTask::Snapshot {
            disk: disk(),
            snapshot: snapshot(),
        },
        ControlTask::Release {
            disk: disk(),
            snapshot: snapshot(),
        },
        ControlTask::List { disk: disk() },
        ControlTask::ProveQuiet { disk: disk() },
        ControlTask::Advance {
            epoch: 25,
            authority: Some("primary".to_owned()),
        },
        ControlTask::Hint {
            disk: disk(),
            since: snapshot(),
            now: Some("pass-2".to_owned()),
            root: Digest::from([0xce; 32]),
        },
        ControlTask::HoldAgainst {
            disk: disk(),
            root: Digest::from([0xcf; 32]),
        },
        ControlTask::ForgetMaps { disk: disk() },
        ControlTask::DeleteDisk { disk: disk() },
        ControlTask::KeepMap {
            disk: disk(),
            root: Digest::from([0xd1; 32]),
            identity: "file 1".to_owned(),
        },
    ];
    let answers = [
        ControlAnswer::Done,
        ControlAnswer::Power(ControlPower::Off),
        ControlAnswer::Granted {
            name: "web/os@job.pass-1".to_owned(),
        },
        ControlAnswer::Snapshots {
            names: vec![snapshot(), "pass-2".to_owned()],
        },
        ControlAnswer::Identity {
            text: "6f1c".to_owned(),
        },
        ControlAnswer::Hinted {
            root: Digest::from([0xd0; 32]),
            read: 28,
        },
        ControlAnswer::Unhinted {
            why: "no_tracker".to_owned(),
        },
        ControlAnswer::Held {
            read: 29,
            is_equal: false,
            differing: 30,
            first: vec![31, 32],
        },
    ];
    let opening = [
        Message::Control(ControlRequest {
            name: "web".to_owned(),
            job: "job".to_owned(),
            epoch: 26,
            token: Digest::from([0xcd; 16]),
        }),
        Message::Controlled(ControlInfo {
            side: "recovery".to_owned(),
            epoch: 27,
            authority: None,
            is_tracked: true,
            disks: vec!["os".to_owned(), "data".to_owned()],
        }),
    ];
    let asks = asks.into_iter().map(ask);
    let answers = answers.into_iter().map(Message::Told);
    opening.into_iter().chain(asks).chain(answers).collect()
}

/// The name of a message. A new variant must be added here, to the samples, and to docs/wire.md.
pub(crate) fn name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::Open(_) => "Open",
        Message::Opened(_) => "Opened",
        Message::Start(_) => "Start",
        Message::Failure(_) => "Failure",
        Message::KeepAlive => "KeepAlive",
        Message::Bye => "Bye",
        Message::Survey(_) => "Survey",
        Message::Surveyed(_) => "Surveyed",
        Message::Sample(_) => "Sample",
        Message::Sampled(_) => "Sampled",
        Message::Probe(_) => "Probe",
        Message::Join { .. } => "Join",
        Message::Joined => "Joined",
        Message::Hashes { .. } => "Hashes",
        Message::ZeroBlocks { .. } => "ZeroBlocks",
        Message::ScanEnd { .. } => "ScanEnd",
        Message::SubHashes { .. } => "SubHashes",
        Message::Resend { .. } => "Resend",
        Message::Nodes { .. } => "Nodes",
        Message::Settled { .. } => "Settled",
        Message::Result(_) => "Result",
        Message::Compared { .. } => "Compared",
        Message::Want { .. } => "Want",
        Message::Data(_) => "Data",
        Message::Zero { .. } => "Zero",
        Message::Descend { .. } => "Descend",
        Message::Replan { .. } => "Replan",
        Message::End(_) => "End",
        Message::Control(_) => "Control",
        Message::Controlled(_) => "Controlled",
        Message::Ask(_) => "Ask",
        Message::Told(_) => "Told",
    }
}

/// A whole block, unpacked.
pub(crate) fn raw_block(block: u64, payload: Bytes) -> Message {
    let sub_blocks = payload.len().div_ceil(SUB_BLOCK_LEN as usize) as u16;
    Message::Data(BlockData {
        block,
        base: Base::Old,
        new_hash: Digest::from([block as u8; 32]),
        encoding: Encoding::Raw,
        raw_len: payload.len() as u32,
        runs: vec![SubRun {
            first: 0,
            count: sub_blocks,
            kind: RunKind::Data,
        }],
        payload,
    })
}

/// `len` bytes that tell their place.
pub(crate) fn numbered(len: usize) -> Bytes {
    (0..len).map(|index| (index % 251) as u8).collect()
}

/// The frames of `messages` on a new untrusted link.
pub(crate) fn encode(messages: &[Message]) -> Vec<u8> {
    let mut encoder = Encoder::new(false);
    let mut parts = Vec::new();
    messages
        .iter()
        .for_each(|message| encoder.encode(message, &mut parts).unwrap());
    parts.concat()
}

/// What a new untrusted decoder makes of one chunk, and whether the chunk ends between frames.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Vec<Message>, bool)> {
    let mut decoder = Decoder::new(false);
    decoder.push(Bytes::copy_from_slice(bytes));
    let mut messages = Vec::new();
    while let Some(message) = decoder.next()? {
        messages.push(message);
    }
    Ok((messages, decoder.is_between_frames()))
}
