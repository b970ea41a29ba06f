//! Messages in, bytes out.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

use super::frame::{FLAG_UNSUMMED, FRAME_MAGIC, FrameHeader, HEADER_LEN};
use super::message::Message;
use crate::error::{Error, ErrorKind, Result};

/// Turns messages into the frames of one direction of one link.
#[derive(Debug)]
pub struct Encoder {
    sequence: u64,
    trusted_memory: bool,
    /// Room for headers and heads; many small frames share one allocation.
    scratch: BytesMut,
}

/// Bytes taken from the allocator at a time for headers and heads.
const SCRATCH_LEN: usize = 16 << 10;

impl Encoder {
    /// The encoder of a new link. `trusted_memory`: the bytes stay in this process, so payloads are
    /// not summed; the decoder on the other side must have been told the same.
    #[must_use]
    pub fn new(trusted_memory: bool) -> Self {
        Self {
            sequence: 0,
            trusted_memory,
            scratch: BytesMut::new(),
        }
    }

    /// Appends the frame of `message` to `parts`: header and head, then the payload, if any, which
    /// is shared and not copied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] when the message breaks a limit; nothing was appended then.
    pub fn encode(&mut self, message: &Message, parts: &mut Vec<Bytes>) -> Result<()> {
        let message_type = message.message_type();
        let invalid = |fault| {
            let name = message_type.name();
            Error::new(ErrorKind::Invalid, format!("cannot send {name}: {fault}"))
        };
        message.check().map_err(invalid)?;
        self.scratch
            .reserve(SCRATCH_LEN.min(HEADER_LEN + message_type.head_len_max() as usize));
        let start = self.scratch.len();
        self.scratch.put_bytes(0, HEADER_LEN);
        message.put_head(&mut self.scratch);
        let (room, head) = self.scratch[start..].split_at_mut(HEADER_LEN);
        let payload = message.payload().map_or(&[][..], |payload| payload);
        let lens = (u32::try_from(head.len()), u32::try_from(payload.len()));
        let (Ok(head_len), Ok(payload_len)) = lens else {
            self.scratch.truncate(start);
            return Err(invalid("message is too long"));
        };
        let mut header = FrameHeader {
            magic: FRAME_MAGIC,
            message_type: message_type.number().into(),
            flags: if self.trusted_memory {
                FLAG_UNSUMMED
            } else {
                0
            }
            .into(),
            sequence: self.sequence.into(),
            head_len: head_len.into(),
            payload_len: payload_len.into(),
            payload_sum: if self.trusted_memory {
                0
            } else {
                xxh3_64(payload)
            }
            .into(),
            head_sum: 0.into(),
        };
        header.head_sum = header.sum_with(head).into();
        debug_assert!(header.check(self.sequence, self.trusted_memory).is_ok());
        room.copy_from_slice(header.as_bytes());
        self.sequence += 1;
        parts.push(self.scratch.split().freeze());
        parts.extend(
            message
                .payload()
                .filter(|payload| !payload.is_empty())
                .cloned(),
        );
        Ok(())
    }
}
