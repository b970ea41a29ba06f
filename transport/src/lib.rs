//! How two failback agents talk.
//!
//! ```text
//!            engine                                   engine
//!              |  Message                               ^  Message
//!        MessageSender                           MessageReceiver      counters, deadlines
//!              |                                        ^
//!           Encoder    frames with sums and numbers  Decoder          sans-IO codec
//!              |                                        ^
//!          LinkSender ------- loopback | unix | tcp --- LinkReceiver  two ordered byte streams,
//!                             slowed down by `shaped`
//! ```
//!
//! A [`Link`](link::Link) carries bytes, [`split`] puts messages on it, [`handshake`] agrees on a
//! version. The bytes are described in `docs/wire.md`; which message comes when is the engine's
//! business.
//!
//! The peer is hostile: every length meets a named limit before memory is asked for, each frame is
//! summed and numbered, and a frame that breaks a rule ends the session with
//! [`ErrorKind::Protocol`]. Sums are XXH3-64: they find accidents, not attacks. Plain TCP therefore
//! exists on loopback addresses only.
#![forbid(unsafe_code)]

mod buffer;
mod channel;
mod counters;
mod error;
mod hello;
pub mod link;
mod wire;

pub use channel::{COALESCE_LEN, FRAME_RATE_MIN, MessageReceiver, MessageSender, split, unsplit};
pub use counters::Counters;
pub use error::{Error, ErrorKind, Result};
pub use hello::{FEATURES, Negotiated, VERSION_MAX, VERSION_MIN, handshake, handshake_ahead};
pub use wire::{
    Access, Apply, BLOCK_COUNT_MAX, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, Base, BlockData,
    CONTROL_BLOCK_COUNT_MAX, CONTROL_DISK_COUNT_MAX, CONTROL_LIMIT_MS_MAX, CONTROL_NAME_LEN_MAX,
    CONTROL_SNAPSHOT_COUNT_MAX, Compress, Container, ControlAnswer, ControlAsk, ControlInfo,
    ControlPower, ControlRequest, ControlTask, DESCENT_DEPTH_MAX, DISK_SIZE_MAX, Decoder, Digest,
    DiskInfo, Encoder, Encoding, FRAME_MAGIC, Failure, HASH_COUNT_MAX, HEAD_LEN_MAX, HashKind,
    Hello, LinkGroup, MapState, MapWish, Message, NAME_LEN_MAX, NEW_DISK_BLOCK_SIZE_MAX,
    NODE_COUNT_MAX, NODE_INDEX_LEN, NewDisk, OpenRequest, PAYLOAD_LEN_MAX, PIECE_COUNT_MAX,
    PIECE_ID_LEN, PIECE_LEN, PIECE_SUMS_LEN, POSITION_LEN, PROBE_LEN_MAX, Positions, Probe,
    RUN_COUNT_MAX, Role, RunKind, SAMPLE_PIECE_COUNT_MAX, SAMPLE_SPAN_COUNT_MAX, SPAN_SUM_LEN,
    SUB_BLOCK_LEN, SUB_HASH_LEN, SampleWish, Sampled, SeenRates, SessionParams, SourceEnd, SubRun,
    SurveyWish, Surveyed, TEXT_LEN_MAX, TREE_LEVEL_MAX, TargetResult, Task, VerifiedFrom,
    VerifyLevel, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN,
};
