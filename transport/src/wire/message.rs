//! Every message of the protocol, and how each becomes a head and a payload.

use bytes::{Bytes, BytesMut};

use super::block::{
    BlockData, check_block_end, check_blocks, check_descend, check_hashes, check_nodes,
    check_sub_hashes, check_want, put_block_data, take_block_data,
};
use super::control::{DiskInfo, Failure, Hello, OpenRequest, SessionParams, check_token};
use super::control_link::{ControlAnswer, ControlAsk, ControlInfo, ControlRequest};
use super::digest::Digest;
use super::field::{Fault, Field, HeadReader};
use super::frame::MessageType;
use super::outcome::{SourceEnd, TargetResult};
use super::survey::{Probe, SampleWish, Sampled, SurveyWish, Surveyed};

/// What one side says to the other. Block indices and ends are at most
/// [`BLOCK_COUNT_MAX`](super::BLOCK_COUNT_MAX); whether they fit the disk is the engine's to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Both sides, first: versions and features. [`handshake`](crate::handshake) sends it.
    Hello(Hello),
    /// Client to agent: asks for a disk.
    Open(OpenRequest),
    /// Agent to client: the disk is open.
    Opened(DiskInfo),
    /// Client to agent: begins the session.
    Start(SessionParams),
    /// Either side: ends the session, with the reason.
    Failure(Failure),
    /// Either side, at any time: the sender lives.
    KeepAlive,
    /// Either side: the orderly end.
    Bye,
    /// Client to agent, instead of `Open`: this connection belongs to the session of this token.
    Join {
        /// As in [`LinkGroup::token`](super::LinkGroup::token): 16 bytes.
        token: Digest,
    },
    /// Agent to client: it does now. What follows is no message of this connection alone.
    Joined,
    /// Client to agent, before `Start`: what is allocated?
    Survey(SurveyWish),
    /// Agent to client: the answer.
    Surveyed(Surveyed),
    /// Client to agent, before `Start`: what do these pieces hold?
    Sample(SampleWish),
    /// Agent to client: the answer.
    Sampled(Sampled),
    /// Client to agent, before `Start`, and back: measures the link.
    Probe(Probe),
    /// Target to source: hashes of consecutive blocks.
    Hashes {
        /// Block that the first hash is of.
        first_block: u64,
        /// Bytes of one hash: 32 or 16.
        hash_len: u8,
        /// The hashes, one after the other: 1 to [`HASH_COUNT_MAX`](super::HASH_COUNT_MAX).
        payload: Bytes,
    },
    /// Target to source: blocks that are zero.
    ZeroBlocks {
        /// First of them.
        first_block: u64,
        /// How many; at least 1.
        count: u64,
    },
    /// Target to source: the hash of every block was sent.
    ScanEnd {
        /// Blocks of the target.
        block_count: u64,
    },
    /// Target to source: the answer to `Want`.
    SubHashes {
        /// The block.
        block: u64,
        /// The pieces that may differ, one bit each, the first is the lowest; at least one.
        pieces: u64,
        /// [`SUB_HASH_LEN`](super::SUB_HASH_LEN) bytes for each sub-block of these pieces; at least
        /// one.
        payload: Bytes,
    },
    /// Target to source: a patched block did not get its hash; the whole block is needed.
    Resend {
        /// The block.
        block: u64,
    },
    /// Target to source: the answer to `Descend`, in the order of the questions.
    Nodes {
        /// Level of the nodes that were asked about.
        level: u8,
        /// The first of them.
        first: u64,
        /// Bytes of one hash: 32 or 16.
        hash_len: u8,
        /// The digests below each of them, from left to right, as many as the tree has:
        /// 1 to [`HASH_COUNT_MAX`](super::HASH_COUNT_MAX).
        payload: Bytes,
    },
    /// Target to source: every block below is known for good, in a session that compares trees.
    Settled {
        /// First block that is not.
        up_to_block: u64,
    },
    /// Target to source, last: what the target holds now.
    Result(TargetResult),
    /// Source to target: every block below is compared. Those neither asked for by `Want` nor sent
    /// by `Data` or `Zero` are equal.
    Compared {
        /// First block that is not compared yet.
        up_to_block: u64,
    },
    /// Source to target: a block differs.
    Want {
        /// The block.
        block: u64,
        /// Whether the hashes of its sub-blocks are needed; if not, all of it comes unasked.
        asks: bool,
        /// [`PIECE_ID_LEN`](super::PIECE_ID_LEN) bytes for each piece of it: names of what the
        /// source has, so that the target need not look at pieces that are equal; at most
        /// [`PIECE_COUNT_MAX`](super::PIECE_COUNT_MAX) pieces, none where nothing is asked.
        payload: Bytes,
    },
    /// Source to target: the new content of one block.
    Data(BlockData),
    /// Source to target: blocks that become zero.
    Zero {
        /// First of them.
        first_block: u64,
        /// How many; at least 1.
        count: u64,
    },
    /// Source to target: what is below these nodes of the target's tree?
    Descend {
        /// Level of the nodes, 0 for leaves; at most [`TREE_LEVEL_MAX`](super::TREE_LEVEL_MAX).
        level: u8,
        /// How many levels below them the answer lies: at most `level`, and at most
        /// [`DESCENT_DEPTH_MAX`](super::DESCENT_DEPTH_MAX).
        down: u8,
        /// Their indices, [`NODE_INDEX_LEN`](super::NODE_INDEX_LEN) bytes each, ascending: 1 to
        /// [`NODE_COUNT_MAX`](super::NODE_COUNT_MAX).
        payload: Bytes,
    },
    /// Source to target: from a block on it has another plan for blocks that differ. For whoever
    /// watches: what is done with each block, `Want` says.
    Replan {
        /// The block.
        first_block: u64,
        /// Whether they are sent whole, most of them; else all are asked about.
        sends_whole: bool,
    },
    /// Source to target: nothing more follows but what `Resend` asks for.
    End(SourceEnd),
    /// Client to agent, instead of `Open`: asks for the machine of a pair.
    Control(ControlRequest),
    /// Agent to client: it can be asked for.
    Controlled(ControlInfo),
    /// Client to agent: a question about it.
    Ask(ControlAsk),
    /// Agent to client: the answer.
    Told(ControlAnswer),
}

impl Message {
    /// Bytes that are sent beside the fields.
    pub(super) fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) => Some(&data.payload),
            Self::Hashes { payload, .. }
            | Self::SubHashes { payload, .. }
            | Self::Want { payload, .. }
            | Self::Nodes { payload, .. }
            | Self::Descend { payload, .. } => Some(payload),
            Self::Surveyed(found) => Some(&found.picks.payload),
            Self::Sample(wish) => Some(&wish.picks.payload),
            Self::Sampled(found) => Some(&found.payload),
            Self::Probe(probe) => Some(&probe.payload),
            _ => None,
        }
    }

    pub(super) fn message_type(&self) -> MessageType {
        match self {
            Self::Hello(_) => MessageType::Hello,
            Self::Open(_) => MessageType::Open,
            Self::Opened(_) => MessageType::Opened,
            Self::Start(_) => MessageType::Start,
            Self::Failure(_) => MessageType::Failure,
            Self::KeepAlive => MessageType::KeepAlive,
            Self::Bye => MessageType::Bye,
            Self::Join { .. } => MessageType::Join,
            Self::Joined => MessageType::Joined,
            Self::Survey(_) => MessageType::Survey,
            Self::Surveyed(_) => MessageType::Surveyed,
            Self::Sample(_) => MessageType::Sample,
            Self::Sampled(_) => MessageType::Sampled,
            Self::Probe(_) => MessageType::Probe,
            Self::Hashes { .. } => MessageType::Hashes,
            Self::ZeroBlocks { .. } => MessageType::ZeroBlocks,
            Self::ScanEnd { .. } => MessageType::ScanEnd,
            Self::SubHashes { .. } => MessageType::SubHashes,
            Self::Resend { .. } => MessageType::Resend,
            Self::Nodes { .. } => MessageType::Nodes,
            Self::Settled { .. } => MessageType::Settled,
            Self::Result(_) => MessageType::Result,
            Self::Compared { .. } => MessageType::Compared,
            Self::Want { .. } => MessageType::Want,
            Self::Data(_) => MessageType::Data,
            Self::Zero { .. } => MessageType::Zero,
            Self::Descend { .. } => MessageType::Descend,
            Self::Replan { .. } => MessageType::Replan,
            Self::End(_) => MessageType::End,
            Self::Control(_) => MessageType::Control,
            Self::Controlled(_) => MessageType::Controlled,
            Self::Ask(_) => MessageType::Ask,
            Self::Told(_) => MessageType::Told,
        }
    }

    /// The rules that each field must meet: held against what is sent and against what came.
    pub(super) fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Open(request) => request.check(),
            Self::Opened(info) => info.check(),
            Self::Start(params) => params.check(),
            Self::Failure(failure) => failure.check(),
            Self::KeepAlive | Self::Bye | Self::Joined | Self::Result(_) | Self::End(_) => Ok(()),
            Self::Join { token } => check_token(token),
            Self::Survey(_) => Ok(()),
            Self::Surveyed(found) => found.check(),
            Self::Sample(wish) => wish.check(),
            Self::Sampled(found) => found.check(),
            Self::Probe(probe) => probe.check(),
            Self::Hashes {
                first_block,
                hash_len,
                payload,
            } => check_hashes(*first_block, *hash_len, payload),
            Self::ZeroBlocks { first_block, count } | Self::Zero { first_block, count } => {
                check_blocks(*first_block, *count)
            }
            Self::ScanEnd { block_count: end }
            | Self::Settled { up_to_block: end }
            | Self::Compared { up_to_block: end } => check_block_end(*end),
            Self::SubHashes {
                block,
                pieces,
                payload,
            } => check_sub_hashes(*block, *pieces, payload),
            Self::Want {
                block,
                asks,
                payload,
            } => check_want(*block, *asks, payload),
            Self::Nodes {
                level,
                first,
                hash_len,
                payload,
            } => check_nodes(*level, *first, *hash_len, payload),
            Self::Descend {
                level,
                down,
                payload,
            } => check_descend(*level, *down, payload),
            Self::Resend { block }
            | Self::Replan {
                first_block: block, ..
            } => check_blocks(*block, 1),
            Self::Data(data) => data.check(),
            Self::Control(request) => request.check(),
            Self::Controlled(info) => info.check(),
            Self::Ask(ask) => ask.check(),
            Self::Told(answer) => answer.check(),
        }
    }

    /// Appends the fields that stand in the head. The message must have passed [`Self::check`].
    pub(super) fn put_head(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => hello.put(out),
            Self::Open(request) => request.put(out),
            Self::Opened(info) => info.put(out),
            Self::Start(params) => params.put(out),
            Self::Failure(failure) => failure.put(out),
            Self::KeepAlive | Self::Bye | Self::Joined => {}
            Self::Join { token } => token.put(out),
            Self::Survey(wish) => wish.put(out),
            Self::Surveyed(found) => found.put(out),
            Self::Sample(wish) => wish.put(out),
            Self::Sampled(found) => found.put(out),
            Self::Probe(probe) => probe.reply_len.put(out),
            Self::Hashes {
                first_block,
                hash_len,
                payload: _,
            } => {
                first_block.put(out);
                hash_len.put(out);
            }
            Self::ZeroBlocks { first_block, count } | Self::Zero { first_block, count } => {
                first_block.put(out);
                count.put(out);
            }
            Self::ScanEnd { block_count: end }
            | Self::Settled { up_to_block: end }
            | Self::Compared { up_to_block: end } => {
                end.put(out);
            }
            Self::SubHashes {
                block,
                pieces,
                payload: _,
            } => {
                block.put(out);
                pieces.put(out);
            }
            Self::Resend { block } => block.put(out),
            Self::Want {
                block,
                asks,
                payload: _,
            } => {
                block.put(out);
                asks.put(out);
            }
            Self::Replan {
                first_block,
                sends_whole,
            } => {
                first_block.put(out);
                sends_whole.put(out);
            }
            Self::Nodes {
                level,
                first,
                hash_len,
                payload: _,
            } => {
                level.put(out);
                first.put(out);
                hash_len.put(out);
            }
            Self::Descend {
                level,
                down,
                payload: _,
            } => {
                level.put(out);
                down.put(out);
            }
            Self::Result(result) => result.put(out),
            Self::Data(data) => put_block_data(data, out),
            Self::End(end) => end.put(out),
            Self::Control(request) => request.put(out),
            Self::Controlled(info) => info.put(out),
            Self::Ask(ask) => ask.put(out),
            Self::Told(answer) => answer.put(out),
        }
    }

    /// Reads the message back. Types without a payload have a limit of 0 bytes for it, which was
    /// checked with the header.
    pub(super) fn parse(
        message_type: MessageType,
        head: &[u8],
        payload: Bytes,
    ) -> Result<Self, Fault> {
        let mut input = HeadReader::new(head);
        let head = &mut input;
        let message = match message_type {
            MessageType::Hello => Self::Hello(Field::take(head)?),
            MessageType::Open => Self::Open(Field::take(head)?),
            MessageType::Opened => Self::Opened(Field::take(head)?),
            MessageType::Start => Self::Start(Field::take(head)?),
            MessageType::Failure => Self::Failure(Field::take(head)?),
            MessageType::KeepAlive => Self::KeepAlive,
            MessageType::Bye => Self::Bye,
            MessageType::Join => Self::Join {
                token: Field::take(head)?,
            },
            MessageType::Joined => Self::Joined,
            MessageType::Survey => Self::Survey(Field::take(head)?),
            MessageType::Surveyed => Self::Surveyed(Surveyed::take(head, payload)?),
            MessageType::Sample => Self::Sample(SampleWish::take(head, payload)?),
            MessageType::Sampled => Self::Sampled(Sampled::take(head, payload)?),
            MessageType::Probe => Self::Probe(Probe {
                reply_len: Field::take(head)?,
                payload,
            }),
            MessageType::Hashes => Self::Hashes {
                first_block: Field::take(head)?,
                hash_len: Field::take(head)?,
                payload,
            },
            MessageType::ZeroBlocks => Self::ZeroBlocks {
                first_block: Field::take(head)?,
                count: Field::take(head)?,
            },
            MessageType::ScanEnd => Self::ScanEnd {
                block_count: Field::take(head)?,
            },
            MessageType::SubHashes => Self::SubHashes {
                block: Field::take(head)?,
                pieces: Field::take(head)?,
                payload,
            },
            MessageType::Resend => Self::Resend {
                block: Field::take(head)?,
            },
            MessageType::Nodes => Self::Nodes {
                level: Field::take(head)?,
                first: Field::take(head)?,
                hash_len: Field::take(head)?,
                payload,
            },
            MessageType::Settled => Self::Settled {
                up_to_block: Field::take(head)?,
            },
            MessageType::Result => Self::Result(Field::take(head)?),
            MessageType::Compared => Self::Compared {
                up_to_block: Field::take(head)?,
            },
            MessageType::Want => Self::Want {
                block: Field::take(head)?,
                asks: Field::take(head)?,
                payload,
            },
            MessageType::Data => Self::Data(take_block_data(head, payload)?),
            MessageType::Zero => Self::Zero {
                first_block: Field::take(head)?,
                count: Field::take(head)?,
            },
            MessageType::Descend => Self::Descend {
                level: Field::take(head)?,
                down: Field::take(head)?,
                payload,
            },
            MessageType::Replan => Self::Replan {
                first_block: Field::take(head)?,
                sends_whole: Field::take(head)?,
            },
            MessageType::End => Self::End(Field::take(head)?),
            MessageType::Control => Self::Control(Field::take(head)?),
            MessageType::Controlled => Self::Controlled(Field::take(head)?),
            MessageType::Ask => Self::Ask(Field::take(head)?),
            MessageType::Told => Self::Told(Field::take(head)?),
        };
        input.finish()?;
        message.check()?;
        Ok(message)
    }
}
