//! The sans-IO codec: bytes in, messages out. The format is drawn in `docs/wire.md`.

mod block;
mod control;
mod control_link;
mod decoder;
mod digest;
mod encoder;
mod field;
mod frame;
mod limit;
mod message;
mod outcome;
mod survey;

pub use block::{Base, BlockData, Encoding, RunKind, SubRun};
pub use control::{
    Access, Apply, Compress, Container, DiskInfo, Failure, HashKind, Hello, LinkGroup, MapState,
    MapWish, NewDisk, OpenRequest, Role, SessionParams, Task, VerifyLevel,
};
pub use control_link::{
    ControlAnswer, ControlAsk, ControlInfo, ControlPower, ControlRequest, ControlTask,
};
pub use decoder::Decoder;
pub use digest::Digest;
pub use encoder::Encoder;
pub use frame::FRAME_MAGIC;
pub use limit::{
    BLOCK_COUNT_MAX, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, CONTROL_BLOCK_COUNT_MAX,
    CONTROL_DISK_COUNT_MAX, CONTROL_LIMIT_MS_MAX, CONTROL_NAME_LEN_MAX, CONTROL_SNAPSHOT_COUNT_MAX,
    DESCENT_DEPTH_MAX, DISK_SIZE_MAX, HASH_COUNT_MAX, HEAD_LEN_MAX, NAME_LEN_MAX,
    NEW_DISK_BLOCK_SIZE_MAX, NODE_COUNT_MAX, NODE_INDEX_LEN, PAYLOAD_LEN_MAX, PIECE_COUNT_MAX,
    PIECE_ID_LEN, PIECE_LEN, PIECE_SUMS_LEN, POSITION_LEN, PROBE_LEN_MAX, RUN_COUNT_MAX,
    SAMPLE_PIECE_COUNT_MAX, SAMPLE_SPAN_COUNT_MAX, SPAN_SUM_LEN, SUB_BLOCK_LEN, SUB_HASH_LEN,
    TEXT_LEN_MAX, TREE_LEVEL_MAX, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN,
};
pub use message::Message;
pub use outcome::{SourceEnd, TargetResult, VerifiedFrom};
pub use survey::{Positions, Probe, SampleWish, Sampled, SeenRates, SurveyWish, Surveyed};
