//! A byte stream from a peer: what messages are in it?

use bytes::Bytes;
use failback_transport::{Decoder, Encoder, FRAME_MAGIC, Message};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bits of the first byte: the link is one within a process; put the sums right.
const TRUSTED: u8 = 1;
const REPAIR: u8 = 2;

/// Bytes of a frame's header, and where its fields are: docs/wire.md.
const HEADER_LEN: usize = 40;
const SEQUENCE_AT: usize = 8;
const HEAD_LEN_AT: usize = 16;
const PAYLOAD_LEN_AT: usize = 20;
const PAYLOAD_SUM_AT: usize = 24;
const HEAD_SUM_AT: usize = 32;

/// Input: a byte of flags, a byte that says how the stream is cut, then the stream.
///
/// # Panics
///
/// When the stream decodes differently in pieces, or its messages do not survive being encoded
/// again.
pub fn wire_frames(data: &[u8]) {
    let Some(([flags, cut], stream)) = data.split_first_chunk() else {
        return;
    };
    let is_trusted = flags & TRUSTED != 0;
    let mut stream = stream.to_vec();
    if flags & REPAIR != 0 {
        repair(&mut stream);
    }
    let at_once = decode([&stream[..]], is_trusted);
    let pieces = stream.chunks(usize::from(*cut) + 1);
    let in_pieces = decode(pieces, is_trusted);
    assert_eq!(
        at_once.messages, in_pieces.messages,
        "cutting the stream changes the messages"
    );
    assert_eq!(
        at_once.is_sound, in_pieces.is_sound,
        "cutting the stream changes the verdict"
    );
    check_encoded(&at_once.messages, &stream, is_trusted);
}

struct Decoded {
    messages: Vec<Message>,
    /// Whether it ended for want of bytes, not by a fault.
    is_sound: bool,
}

fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, is_trusted: bool) -> Decoded {
    let mut decoder = Decoder::new(is_trusted);
    let mut messages = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => {
                    assert!(decoder.next().is_err(), "a decoder recovered from a fault");
                    return Decoded {
                        messages,
                        is_sound: false,
                    };
                }
            }
        }
    }
    Decoded {
        messages,
        is_sound: true,
    }
}

fn check_encoded(messages: &[Message], stream: &[u8], is_trusted: bool) {
    let mut encoder = Encoder::new(is_trusted);
    let mut parts = Vec::new();
    for message in messages {
        encoder
            .encode(message, &mut parts)
            .expect("what was decoded can be sent");
    }
    let encoded = parts.concat();
    let again = decode([&encoded[..]], is_trusted);
    assert!(again.is_sound);
    assert_eq!(
        again.messages, messages,
        "a message changed by being sent on"
    );
    // There is one way to say a thing; on a trusted link the payload's sum may be there or not.
    assert!(
        is_trusted || stream.starts_with(&encoded),
        "two streams say the same"
    );
}

/// Numbers the frames and puts their sums right, as far as the lengths lead.
fn repair(stream: &mut [u8]) {
    let mut rest = stream;
    let mut sequence = 0_u64;
    while rest.len() >= HEADER_LEN {
        let head_len = length_at(rest, HEAD_LEN_AT);
        let payload_len = length_at(rest, PAYLOAD_LEN_AT);
        let payload_at = HEADER_LEN.saturating_add(head_len);
        let frame_len = payload_at.saturating_add(payload_len);
        if frame_len > rest.len() {
            return;
        }
        let (frame, after) = rest.split_at_mut(frame_len);
        frame[..4].copy_from_slice(&FRAME_MAGIC);
        frame[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_le_bytes());
        let payload_sum = xxh3_64(&frame[payload_at..]);
        frame[PAYLOAD_SUM_AT..HEAD_SUM_AT].copy_from_slice(&payload_sum.to_le_bytes());
        let mut sum = Xxh3::new();
        sum.update(&frame[..HEAD_SUM_AT]);
        sum.update(&frame[HEADER_LEN..payload_at]);
        frame[HEAD_SUM_AT..HEADER_LEN].copy_from_slice(&sum.digest().to_le_bytes());
        rest = after;
        sequence += 1;
    }
}

fn length_at(bytes: &[u8], at: usize) -> usize {
    let field = bytes[at..at + 4]
        .try_into()
        .expect("four bytes of a header");
    usize::try_from(u32::from_le_bytes(field)).unwrap_or(usize::MAX)
}
