//! Honest bytes: what goes in comes out, however it was split.

use bytes::Bytes;
use failback_transport::{Decoder, Encoder, ErrorKind, Message};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::kit::{decode, encode, numbered, raw_block, samples};
use crate::strategy::message;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    // Goal: decoding undoes encoding. Method: any sequence of valid messages.
    #[test]
    fn messages_survive_the_wire(messages in vec(message(), 0..6)) {
        prop_assert_eq!(decode(&encode(&messages)).unwrap(), (messages, true));
    }

    // Goal: splits do not matter. Method: feed pieces of any length, the decoder at once as oracle.
    #[test]
    fn splits_do_not_matter(
        messages in vec(message(), 1..4),
        lens in vec(prop_oneof![1..100_usize, 1..50_000_usize], 1..40),
    ) {
        let bytes = Bytes::from(encode(&messages));
        let mut decoder = Decoder::new(false);
        let mut decoded = Vec::new();
        let (mut rest, mut lens) = (bytes, lens.into_iter().cycle());
        while !rest.is_empty() {
            decoder.push(rest.split_to(lens.next().unwrap().min(rest.len())));
            decoded.extend(std::iter::from_fn(|| decoder.next().unwrap()));
        }
        prop_assert_eq!(decoded, messages);
        prop_assert!(decoder.is_between_frames());
    }
}

// Goal: the narrowest split works for each message, header and head included.
#[test]
fn single_bytes_are_enough() {
    let mut decoder = Decoder::new(false);
    let mut decoded = Vec::new();
    for byte in encode(&samples()) {
        decoder.push(Bytes::from(vec![byte]));
        decoded.extend(std::iter::from_fn(|| decoder.next().unwrap()));
    }
    assert_eq!(decoded, samples());
}

// Goal: the largest messages fit their frames, and one more does not.
#[test]
fn largest_messages_fit() {
    let hashes = |count: usize| Message::Hashes {
        first_block: 0,
        hash_len: 32,
        payload: numbered(count * 32),
    };
    let largest = vec![raw_block(3, numbered(4 << 20)), hashes(2048)];
    assert_eq!(decode(&encode(&largest)).unwrap(), (largest, true));
    let refused = Encoder::new(false)
        .encode(&hashes(2049), &mut Vec::new())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

// Goal: a payload is neither copied by the encoder nor, in process, by the decoder.
#[test]
fn payload_is_handed_over() {
    let payload = numbered(1 << 20);
    let mut parts = Vec::new();
    Encoder::new(true)
        .encode(&raw_block(0, payload.clone()), &mut parts)
        .unwrap();
    let mut decoder = Decoder::new(true);
    parts.into_iter().for_each(|part| decoder.push(part));
    let Some(Message::Data(data)) = decoder.next().unwrap() else {
        panic!("not Data")
    };
    assert_eq!(data.payload.as_ptr(), payload.as_ptr());
}

// Goal: a long payload within a larger chunk is a slice of it.
#[test]
fn payload_within_a_chunk_is_a_slice() {
    let chunk = Bytes::from(encode(&[raw_block(0, numbered(64 << 10)), Message::Bye]));
    let mut decoder = Decoder::new(false);
    decoder.push(chunk.clone());
    let Some(Message::Data(data)) = decoder.next().unwrap() else {
        panic!("not Data")
    };
    assert!(chunk.as_ptr_range().contains(&data.payload.as_ptr()));
}

// Goal: a refused message leaves no trace: the next one has its number and its bytes.
#[test]
fn refused_message_leaves_no_trace() {
    let mut encoder = Encoder::new(false);
    let mut parts = Vec::new();
    encoder
        .encode(
            &Message::Zero {
                first_block: 0,
                count: 0,
            },
            &mut parts,
        )
        .unwrap_err();
    encoder.encode(&Message::Bye, &mut parts).unwrap();
    assert_eq!(decode(&parts.concat()).unwrap(), (vec![Message::Bye], true));
}
