//! Makes the first inputs of the corpora: `cargo run -p failback-fuzz --example seeds`, at the
//! root.
//!
//! Images are written by the crate itself, so their GUIDs differ from run to run: run it when a
//! format changes, not before each commit. What fuzzing finds is added by hand beside them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use failback_transport::{
    Access, Apply, Base, BlockData, Compress, Container, ControlAnswer, ControlAsk, ControlInfo,
    ControlPower, ControlRequest, ControlTask, Digest, DiskInfo, Encoder, Encoding, Failure,
    HashKind, Hello, MapState, MapWish, Message, NewDisk, OpenRequest, Role, RunKind,
    SessionParams, SourceEnd, SubRun, TargetResult, Task, VerifiedFrom, VerifyLevel,
};
use failback_vhdx::{CreateOptions, Image, Kind, MemoryFile};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
const PAGE_LEN: usize = 4096;
/// Where the first header says how long the log is and where it stands.
const LOG_AT: usize = (64 << 10) + 68;

fn main() -> Result<()> {
    let dynamic = |size, block: u32, sector| {
        let mut options = CreateOptions::new(size, Kind::Dynamic);
        options.block_size = Some(block);
        options.logical_sector_size = sector;
        options
    };
    let small = dynamic(4 * MIB, 1 << 20, 512);
    let closed = image(&small, true)?;
    let open = image(&small, false)?;
    let images = [
        ("small", closed.clone()),
        ("log_to_replay", open.clone()),
        (
            "sectors_of_4096",
            image(&dynamic(8 * MIB, 2 << 20, 4096), true)?,
        ),
        (
            "block_larger_than_disk",
            image(&dynamic(MIB, 32 << 20, 512), true)?,
        ),
        ("two_chunks", image(&dynamic(9 << 30, 2 << 20, 512), true)?),
        (
            "fixed",
            image(&CreateOptions::new(3 * MIB, Kind::Fixed), true)?,
        ),
    ];
    for (name, bytes) in &images {
        save(
            "vhdx_open",
            name,
            &[&[1], &failback_fuzz::pack(bytes)[..]].concat(),
        )?;
    }
    save(
        "vhdx_open",
        "wrong_sum",
        &[&[0], &failback_fuzz::pack(&scribbled(closed))[..]].concat(),
    )?;
    save(
        "vhdx_log_replay",
        "one_block_allocated",
        &log_records(&open),
    )?;
    save("vhdx_log_replay", "empty", &[])?;
    save_frames()
}

fn image(options: &CreateOptions, close: bool) -> Result<Vec<u8>> {
    let file = Arc::new(MemoryFile::new());
    let image = Image::create(file.clone(), options)?;
    image.write_at(0, &text(PAGE_LEN))?;
    image.flush()?;
    let last = options.virtual_size - PAGE_LEN as u64;
    image.write_at(last, &text(PAGE_LEN))?;
    image.flush()?;
    if close {
        image.close()?;
    }
    drop(image);
    Ok(file.to_bytes())
}

/// Short in the sparse form: one word, then zeros.
fn text(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..8].copy_from_slice(b"failback");
    bytes
}

fn scribbled(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[LOG_AT] ^= 1;
    bytes
}

/// The log of an image as the target for logs takes it.
fn log_records(image: &[u8]) -> Vec<u8> {
    let field = |at: usize, len: usize| {
        let bytes = image[at..at + len].iter().rev();
        bytes.fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (len, at) = (field(LOG_AT, 4), field(LOG_AT + 4, 8));
    let mut records = Vec::new();
    for (sector, page) in (0_u16..).zip(image[at..at + len].chunks(PAGE_LEN)) {
        let used = page
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        if used > 0 {
            records.extend(sector.to_le_bytes());
            records.extend(u16::try_from(used).unwrap_or(0).to_le_bytes());
            records.extend(&page[..used]);
        }
    }
    records
}

fn save_frames() -> Result<()> {
    let messages = messages();
    save("wire_frames", "all", &stream(&messages)?)?;
    for (number, message) in messages.iter().enumerate() {
        save(
            "wire_frames",
            &format!("message_{number:02}"),
            &stream([message])?,
        )?;
    }
    Ok(())
}

fn stream<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Result<Vec<u8>> {
    let mut encoder = Encoder::new(false);
    let mut parts = vec![Bytes::from_static(&[2, 6])];
    for message in messages {
        encoder.encode(message, &mut parts)?;
    }
    Ok(parts.concat())
}

fn messages() -> Vec<Message> {
    opening()
        .into_iter()
        .chain(comparing())
        .chain(ending())
        .chain(controlling())
        .collect()
}

fn opening() -> [Message; 4] {
    [
        Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            features: 0,
            software: "failback".into(),
        }),
        Message::Open(OpenRequest {
            name: "disk".into(),
            access: Access::Write,
            create: Some(NewDisk {
                size: 1 << 30,
                logical_sector_size: 512,
                block_size_hint: 0,
            }),
            map: Some(MapWish {
                hash: HashKind::Blake3,
                block_size: 1 << 20,
                trust: true,
                full_audit: false,
            }),
            links: None,
        }),
        Message::Opened(DiskInfo {
            format: "vhdx".into(),
            virtual_size: 1 << 30,
            logical_sector_size: 512,
            identity: "id".into(),
            is_new: false,
            is_partial: false,
            allocated_bytes: 1 << 20,
            map: MapState::default(),
        }),
        Message::Start(SessionParams {
            task: Task::Compare,
            hash: HashKind::Blake3,
            block_size: 1 << 20,
            verify: VerifyLevel::Changed,
            compress: Compress::Zstd(1),
            sub_hash_seed: 1,
            peer_role: Role::Target,
            apply: Apply::Stage,
            container: Some(Container::File),
            goes_on: false,
            source_mark: 1,
            target_root: Some(Digest::from([7; 32])),
            may_send_whole: true,
        }),
    ]
}

fn comparing() -> [Message; 13] {
    let payload = |len| Bytes::from(vec![7; len]);
    let runs = vec![
        SubRun {
            first: 0,
            count: 1,
            kind: RunKind::Zero,
        },
        SubRun {
            first: 2,
            count: 1,
            kind: RunKind::Data,
        },
    ];
    [
        Message::Hashes {
            first_block: 0,
            hash_len: 16,
            payload: payload(32),
        },
        Message::Hashes {
            first_block: 2,
            hash_len: 32,
            payload: payload(32),
        },
        Message::ZeroBlocks {
            first_block: 3,
            count: 4,
        },
        Message::ScanEnd { block_count: 7 },
        Message::Want {
            block: 1,
            asks: true,
            payload: payload(16),
        },
        Message::SubHashes {
            block: 1,
            pieces: 1,
            payload: payload(16),
        },
        Message::Data(BlockData {
            block: 1,
            base: Base::Zero,
            new_hash: Digest::from([7; 16]),
            encoding: Encoding::Zstd,
            raw_len: 4096,
            runs,
            payload: payload(8),
        }),
        Message::Zero {
            first_block: 2,
            count: 1,
        },
        Message::Compared { up_to_block: 7 },
        Message::Descend {
            level: 3,
            down: 3,
            payload: vec![0, 0, 0, 0, 1, 0, 0, 0].into(),
        },
        Message::Nodes {
            level: 3,
            first: 0,
            hash_len: 16,
            payload: payload(48),
        },
        Message::Settled { up_to_block: 7 },
        Message::Replan {
            first_block: 7,
            sends_whole: true,
        },
    ]
}

fn ending() -> [Message; 6] {
    [
        Message::End(SourceEnd {
            root: Some(Digest::from([7; 32])),
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
        Message::Resend { block: 1 },
        Message::Result(TargetResult {
            root: None,
            equal: true,
            target_read: 1,
            written: 2,
            verified: 3,
            zeroed_blocks: 4,
            hashed_blocks: 5,
            skipped_blocks: 6,
            differing_blocks: 7,
            verified_from: VerifiedFrom::Medium,
            verify_micros: 8,
            resumed_blocks: 9,
            resume_notes: 1,
            container: Some(Container::Log),
            vouched_bytes: 10,
        }),
        Message::Failure(Failure {
            kind: 6,
            message: "no space".into(),
            path: "a.vhdx".into(),
            offset: Some(1),
        }),
        Message::KeepAlive,
        Message::Bye,
    ]
}

fn controlling() -> [Message; 10] {
    let ask = |what| {
        Message::Ask(ControlAsk {
            step: "final".into(),
            what,
        })
    };
    [
        Message::Control(ControlRequest {
            name: "web".into(),
            job: "job".into(),
            epoch: 1,
            token: Digest::from([7; 16]),
        }),
        Message::Controlled(ControlInfo {
            side: "recovery".into(),
            epoch: 1,
            authority: Some("recovery".into()),
            is_tracked: true,
            disks: vec!["os".into(), "data".into()],
        }),
        ask(ControlTask::ShutDown { limit_ms: 1 }),
        ask(ControlTask::Snapshot {
            disk: "os".into(),
            snapshot: "pass-1".into(),
        }),
        ask(ControlTask::Advance {
            epoch: 2,
            authority: None,
        }),
        ask(ControlTask::Hint {
            disk: "os".into(),
            since: "pass-1".into(),
            now: None,
            root: Digest::from([8; 32]),
        }),
        ask(ControlTask::HoldAgainst {
            disk: "os".into(),
            root: Digest::from([8; 32]),
        }),
        Message::Told(ControlAnswer::Held {
            read: 1,
            is_equal: false,
            differing: 2,
            first: vec![0, 1],
        }),
        Message::Told(ControlAnswer::Power(ControlPower::Off)),
        Message::Told(ControlAnswer::Snapshots {
            names: vec!["pass-1".into()],
        }),
    ]
}

fn save(target: &str, name: &str, input: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), input)?)
}
