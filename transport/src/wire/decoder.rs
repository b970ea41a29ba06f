//! Bytes in, messages out.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use zerocopy::FromBytes;

use super::frame::{FrameHeader, HEADER_LEN, MessageType};
use super::message::Message;
use crate::error::{Error, ErrorKind, Result};

/// Turns the bytes of one direction of one link into messages, however the bytes were split.
///
/// Takes no memory for a frame before its lengths met their limits. Keeps what was pushed and not
/// yet returned: ask [`Decoder::next`] until it has nothing before pushing more.
#[derive(Debug)]
pub struct Decoder {
    trusted_memory: bool,
    sequence: u64,
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    len: usize,
    frame: Frame,
}

/// How far the frame at the front is known.
#[derive(Debug)]
enum Frame {
    /// Its header is not complete.
    Begun,
    /// Its header met the limits.
    Headed(MessageType, FrameHeader),
    /// Its head has its sum; the payload is missing.
    Summed(MessageType, FrameHeader, Bytes),
    /// The frame was bad: there is no way back into the stream.
    Failed,
}

/// A payload up to this length is copied out of the larger chunk it came in: else a few bytes that
/// are kept for long would keep the whole receive buffer.
const PAYLOAD_COPY_MAX: usize = 32 << 10;

impl Decoder {
    /// The decoder of a new link. `trusted_memory`: the bytes come from this process, and payloads
    /// may lack their sum.
    #[must_use]
    pub fn new(trusted_memory: bool) -> Self {
        let chunks = VecDeque::new();
        Self {
            trusted_memory,
            sequence: 0,
            chunks,
            len: 0,
            frame: Frame::Begun,
        }
    }

    /// Takes the next bytes of the stream. A payload that lies within one chunk becomes a slice of
    /// it, except where it is so short that it is copied.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next message, or `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] when the bytes are no frame, not the next frame, damaged, or break a
    /// limit. Each later call fails, too.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would end, a decoder waits"
    )]
    pub fn next(&mut self) -> Result<Option<Message>> {
        let frame = std::mem::replace(&mut self.frame, Frame::Failed);
        let (message, frame) = self.advance(frame)?;
        self.frame = frame;
        Ok(message)
    }

    /// Whether the bytes so far end between two frames.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.len == 0 && matches!(self.frame, Frame::Begun)
    }

    /// When only a payload is missing: its whole length and how much of that is there, in bytes.
    pub(crate) fn begun_payload(&self) -> Option<(usize, usize)> {
        match &self.frame {
            Frame::Summed(_, header, _) => Some((header.payload_len.get() as usize, self.len)),
            Frame::Begun | Frame::Headed(..) | Frame::Failed => None,
        }
    }

    /// Moves all bytes not yet decoded to the start of `buf`, which must have room for them. Who
    /// completes them there gives them back by [`Decoder::push`].
    pub(crate) fn take_rest(&mut self, buf: &mut [u8]) {
        self.fill(&mut buf[..self.len]);
    }

    fn advance(&mut self, mut frame: Frame) -> Result<(Option<Message>, Frame)> {
        loop {
            frame = match frame {
                Frame::Begun if self.len < HEADER_LEN => return Ok((None, frame)),
                Frame::Begun => self.read_header()?,
                Frame::Headed(message_type, header) => {
                    let Some(head) = self.take(header.head_len.get() as usize) else {
                        return Ok((None, frame));
                    };
                    if header.sum_with(&head) != header.head_sum.get() {
                        return Err(self.fault(message_type.name(), "head does not have its sum"));
                    }
                    Frame::Summed(message_type, header, head)
                }
                Frame::Summed(message_type, ref header, ref head) => {
                    let Some(payload) = self.take(header.payload_len.get() as usize) else {
                        return Ok((None, frame));
                    };
                    let message = header
                        .check_payload(&payload)
                        .and_then(|()| Message::parse(message_type, head, payload))
                        .map_err(|fault| self.fault(message_type.name(), fault))?;
                    self.sequence += 1;
                    return Ok((Some(message), Frame::Begun));
                }
                Frame::Failed => return Err(self.fault("frame", "an earlier frame was bad")),
            };
        }
    }

    fn read_header(&mut self) -> Result<Frame> {
        let mut bytes = [0; HEADER_LEN];
        self.fill(&mut bytes);
        let header = FrameHeader::read_from_bytes(&bytes)
            .map_err(|_| self.fault("frame", "header has the wrong length"))?;
        let message_type = header
            .check(self.sequence, self.trusted_memory)
            .map_err(|fault| self.fault("frame", fault))?;
        Ok(Frame::Headed(message_type, header))
    }

    /// The next `len` bytes in one piece, once they are there. `len` met its limit.
    fn take(&mut self, len: usize) -> Option<Bytes> {
        if len > self.len {
            return None;
        }
        let Some(front) = self.chunks.front_mut().filter(|_| len > 0) else {
            return Some(Bytes::new());
        };
        if front.len() == len {
            self.len -= len;
            return self.chunks.pop_front();
        }
        if front.len() > len && len > PAYLOAD_COPY_MAX {
            self.len -= len;
            return Some(front.split_to(len));
        }
        let mut joined = BytesMut::zeroed(len);
        self.fill(&mut joined);
        Some(joined.freeze())
    }

    /// Moves the next bytes into `buf`; as many must be there.
    fn fill(&mut self, buf: &mut [u8]) {
        let mut filled = 0;
        while filled < buf.len() {
            let front = self
                .chunks
                .front_mut()
                .expect("the length was compared with `self.len`");
            let len = front.len().min(buf.len() - filled);
            front.copy_to_slice(&mut buf[filled..filled + len]);
            filled += len;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.len -= filled;
    }

    fn fault(&self, what: &str, fault: &str) -> Error {
        let sequence = self.sequence;
        Error::new(
            ErrorKind::Protocol,
            format!("peer sent {what} {sequence}: {fault}"),
        )
    }
}
