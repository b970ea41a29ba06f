//! Damaged and hostile bytes: an error, no panic, and no memory before the limits are met.

use bytes::Bytes;
use failback_transport::{
    BlockData, DISK_SIZE_MAX, Decoder, Encoder, Encoding, ErrorKind, FRAME_MAGIC, HashKind,
    Message, PIECE_SUMS_LEN, POSITION_LEN, PROBE_LEN_MAX, Positions, Probe, RunKind, SPAN_SUM_LEN,
    SampleWish, Sampled, SubRun, Surveyed,
};
use proptest::collection::vec;
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::kit::{decode, encode, numbered, samples};
use crate::strategy::message;

const HEADER_LEN: usize = 40;
const WANT: u16 = 33;
const DATA: u16 = 34;

/// What rule is broken, and how.
type Break = (&'static str, fn(&mut BlockData));

/// A frame with right sums around anything.
fn forge(message_type: u16, flags: u16, sequence: u64, head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = FRAME_MAGIC.to_vec();
    frame.extend(message_type.to_le_bytes());
    frame.extend(flags.to_le_bytes());
    frame.extend(sequence.to_le_bytes());
    frame.extend((head.len() as u32).to_le_bytes());
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(if flags == 0 { xxh3_64(payload) } else { 0 }.to_le_bytes());
    let summed = [&frame[..], head].concat();
    frame.extend(xxh3_64(&summed).to_le_bytes());
    [&frame[..], head, payload].concat()
}

fn refusal(bytes: &[u8]) -> String {
    let error = decode(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    error.to_string()
}

// Goal: no damaged bit goes unnoticed. Method: flip each bit of a stream of all messages; the
// decoder must fail, or wait for bytes that the flipped length asks for.
#[test]
fn every_bit_flip_is_noticed() {
    let mut bytes = encode(&samples());
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let noticed = decode(&bytes).map_or(true, |(_, complete)| !complete);
        assert!(noticed, "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

// Goal: a cut stream is never taken for a complete one. Method: cut at each byte between frames.
#[test]
fn every_truncation_is_noticed() {
    for sample in samples() {
        let bytes = encode(&[sample]);
        (1..bytes.len())
            .for_each(|len| assert_eq!(decode(&bytes[..len]).unwrap(), (vec![], false)));
    }
}

// Goal: lengths meet their limits before memory is asked for. Method: 40 bytes of header alone are
// refused, for every message type, with each length at its worst.
#[test]
fn huge_lengths_are_refused_at_the_header() {
    for sample in samples() {
        for field in [16, 20] {
            let mut header = encode(std::slice::from_ref(&sample))[..HEADER_LEN].to_vec();
            header[field..field + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(refusal(&header).ends_with("is too long"));
        }
    }
}

// Goal: a payload is waited for only once its length is proved by the head's sum.
#[test]
fn head_is_checked_before_the_payload_comes() {
    let Some(data) = samples()
        .into_iter()
        .find(|sample| matches!(sample, Message::Data(_)))
    else {
        panic!("no sample of Data")
    };
    let mut bytes = encode(&[data]);
    let head_len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    bytes[20..24].copy_from_slice(&(4_u32 << 20).to_le_bytes());
    assert!(refusal(&bytes[..HEADER_LEN + head_len]).contains("head does not have its sum"));
}

// Goal: lengths within a head are held against limits and against the head.
#[test]
fn huge_counts_in_a_head_are_refused() {
    let text = [
        &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &u16::MAX.to_le_bytes(),
    ]
    .concat();
    assert!(refusal(&forge(1, 0, 0, &text, &[])).contains("too long"));
    let cut = [
        &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &4000_u16.to_le_bytes(),
    ]
    .concat();
    assert!(refusal(&forge(1, 0, 0, &cut, &[])).contains("head ends"));
    let fixed = [&[0; 8][..], &[0, 16], &[0; 16], &[0], &0_u32.to_le_bytes()].concat();
    let runs = |count: u16| [&fixed[..], &count.to_le_bytes()].concat();
    assert!(refusal(&forge(DATA, 0, 0, &runs(u16::MAX), &[])).contains("too many runs"));
    assert!(refusal(&forge(DATA, 0, 0, &runs(1024), &[])).contains("head ends"));
}

// Goal: a right sum around wrong content helps nobody.
#[test]
fn forged_frames_are_refused() {
    assert!(refusal(&forge(99, 0, 0, &[], &[])).contains("unknown message type"));
    assert!(refusal(&forge(7, 2, 0, &[], &[])).contains("unknown frame flags"));
    assert!(refusal(&forge(7, 0, 0, &[0], &[])).contains("bytes after its last field"));
    assert!(refusal(&forge(7, 0, 0, &[], &[0])).contains("payload is too long"));
    assert!(refusal(&forge(WANT, 0, 0, &[0; 7], &[])).contains("head ends"));
    let past_the_end = [&u64::MAX.to_le_bytes()[..], &[1]].concat();
    assert!(refusal(&forge(WANT, 0, 0, &past_the_end, &[])).contains("largest disk"));
    let overflow = [u64::MAX.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    assert!(refusal(&forge(35, 0, 0, &overflow, &[])).contains("largest disk"));
    assert!(refusal(b"GET / HTTP/1.1\r\nHost: failback.example\r\n\r\n").contains("magic"));
}

// Goal: dropped, repeated and swapped frames are refused, and so is all that follows.
#[test]
fn sequence_must_be_gapless() {
    let frame = |sequence| forge(7, 0, sequence, &[], &[]);
    for sequences in [&[1_u64][..], &[0, 0], &[0, 2], &[0, 1, 3, 2]] {
        let bytes: Vec<u8> = sequences
            .iter()
            .flat_map(|sequence| frame(*sequence))
            .collect();
        assert!(
            refusal(&bytes).contains("not the next one"),
            "{sequences:?}"
        );
    }
    let mut decoder = Decoder::new(false);
    decoder.push(Bytes::from(frame(1)));
    decoder.next().unwrap_err();
    decoder.push(Bytes::from(frame(0)));
    assert_eq!(decoder.next().unwrap_err().kind(), ErrorKind::Protocol);
}

// Goal: payloads without a sum are taken in process only, and the flag cannot be set on the way.
#[test]
fn unsummed_payload_needs_a_trusted_link() {
    let mut parts = Vec::new();
    let hashes = Message::SubHashes {
        block: 1,
        pieces: 1,
        payload: Bytes::from_static(&[7; 8]),
    };
    Encoder::new(true).encode(&hashes, &mut parts).unwrap();
    assert!(refusal(&parts.concat()).contains("without a sum"));
    let mut decoder = Decoder::new(true);
    decoder.push(Bytes::from(parts.concat()));
    assert_eq!(decoder.next().unwrap(), Some(hashes));
}

// Goal: samples are as large as they say, and no larger than agreed. Method: break one rule at a
// time, at the encoder, which holds the same rules as the decoder.
#[test]
fn sample_rules_are_enforced() {
    let picks = |piece_count, span_count, count: usize| Positions {
        piece_count,
        span_count,
        payload: Bytes::from(vec![0; count * POSITION_LEN]),
    };
    let sample = |picks, zstd_level| {
        Message::Sample(SampleWish {
            hash: HashKind::Blake3,
            zstd_level,
            picks,
        })
    };
    let surveyed = |allocated_bytes, picks| {
        Message::Surveyed(Surveyed {
            allocated_bytes,
            picks,
            ..Surveyed::default()
        })
    };
    let sampled = |piece_count, span_count, len| {
        Message::Sampled(Sampled {
            piece_count,
            span_count,
            payload: Bytes::from(vec![0; len]),
            ..Sampled::default()
        })
    };
    let probe = |reply_len, len| {
        Message::Probe(Probe {
            reply_len,
            payload: Bytes::from(vec![0; len]),
        })
    };
    let sums = 1000 * PIECE_SUMS_LEN + 256 * SPAN_SUM_LEN;
    let mut encoder = Encoder::new(false);
    let mut is_sent = |message: Message| encoder.encode(&message, &mut Vec::new()).is_ok();
    assert!(is_sent(sample(picks(1000, 256, 1256), Some(19))));
    assert!(!is_sent(sample(picks(1001, 0, 1001), None)));
    assert!(!is_sent(sample(picks(0, 257, 257), None)));
    assert!(!is_sent(sample(picks(2, 1, 2), None)));
    assert!(!is_sent(sample(picks(0, 0, 0), Some(20))));
    assert!(is_sent(surveyed(DISK_SIZE_MAX, picks(1, 1, 2))));
    assert!(!is_sent(surveyed(DISK_SIZE_MAX + 1, picks(1, 1, 2))));
    assert!(!is_sent(surveyed(0, picks(1, 1, 3))));
    assert!(is_sent(sampled(1000, 256, sums)));
    assert!(!is_sent(sampled(1000, 256, sums - 1)));
    assert!(!is_sent(sampled(1001, 0, 1001 * PIECE_SUMS_LEN)));
    assert!(is_sent(probe(PROBE_LEN_MAX, 1 << 20)));
    assert!(!is_sent(probe(PROBE_LEN_MAX + 1, 0)));
    assert!(!is_sent(probe(0, PROBE_LEN_MAX as usize + 1)));
}

// Goal: a block that is only announced has no names. Method: at the encoder, and in a frame.
#[test]
fn names_are_for_questions() {
    let want = |asks| Message::Want {
        block: 1,
        asks,
        payload: numbered(8),
    };
    let mut frame = encode(&[want(true)]);
    assert!(decode(&frame).is_ok());
    let mut encoder = Encoder::new(false);
    assert!(encoder.encode(&want(false), &mut Vec::new()).is_err());
    // The same with the bit of the question taken away: block, asks, names.
    frame[HEADER_LEN + 8] = 0;
    let head = frame[HEADER_LEN..HEADER_LEN + 9].to_vec();
    let forged = forge(WANT, 0, 0, &head, &numbered(8));
    assert!(refusal(&forged).contains("nobody asks"));
}

// Goal: nodes lie in a tree, and no more are asked for than fit one answer. Method: break one rule
// at a time, at the encoder.
#[test]
fn node_rules_are_enforced() {
    let descend = |level, down, indices: &[u32]| Message::Descend {
        level,
        down,
        payload: indices
            .iter()
            .flat_map(|index| index.to_le_bytes())
            .collect(),
    };
    let nodes = |level, first, hash_len, len| Message::Nodes {
        level,
        first,
        hash_len,
        payload: Bytes::from(vec![0; len]),
    };
    let many: Vec<u32> = (0..=failback_transport::NODE_COUNT_MAX).collect();
    let mut encoder = Encoder::new(false);
    let mut is_sent = |message: Message| encoder.encode(&message, &mut Vec::new()).is_ok();
    assert!(is_sent(descend(30, 4, &[0])));
    assert!(!is_sent(descend(30, 4, &[1])));
    assert!(!is_sent(descend(31, 4, &[0])));
    assert!(!is_sent(descend(30, 5, &[0])));
    assert!(!is_sent(descend(3, 4, &[0])));
    assert!(is_sent(descend(0, 0, &[(1 << 30) - 1])));
    assert!(!is_sent(descend(0, 0, &[1 << 30])));
    assert!(!is_sent(descend(5, 1, &[])));
    assert!(!is_sent(descend(5, 1, &[2, 2])));
    assert!(!is_sent(descend(5, 1, &[2, 1])));
    assert!(is_sent(descend(5, 1, &many[1..])));
    assert!(!is_sent(descend(5, 1, &many)));
    assert!(is_sent(nodes(30, 0, 32, 2048 * 32)));
    assert!(!is_sent(nodes(30, 0, 32, 2049 * 32)));
    assert!(!is_sent(nodes(30, 1, 32, 32)));
    assert!(!is_sent(nodes(31, 0, 32, 32)));
    assert!(!is_sent(nodes(3, 0, 17, 17)));
    assert!(!is_sent(nodes(3, 0, 16, 17)));
    assert!(!is_sent(nodes(3, 0, 16, 0)));
}

// Goal: each rule of block data is enforced. Method: break one at a time, at the encoder, which
// holds the same rules as the decoder.
#[test]
fn block_data_rules_are_enforced() {
    let Some(Message::Data(good)) = samples()
        .into_iter()
        .find(|sample| matches!(sample, Message::Data(_)))
    else {
        panic!("no sample of Data")
    };
    let breaks: [Break; 12] = [
        ("no runs", |data| data.runs.clear()),
        ("empty run", |data| data.runs[1].count = 0),
        ("overlap", |data| data.runs[0].count = 6),
        ("descending", |data| data.runs.reverse()),
        ("past the block", |data| data.runs[1].first = 1023),
        ("past u16", |data| data.runs[1].first = u16::MAX),
        ("raw too long", |data| data.raw_len += 2),
        ("raw too short", |data| data.raw_len -= 4095),
        ("short before the end", |data| {
            data.runs.push(SubRun {
                first: 7,
                count: 1,
                kind: RunKind::Zero,
            });
        }),
        ("raw of another length", |data| {
            data.encoding = Encoding::Raw;
        }),
        ("packed and empty", |data| data.payload.clear()),
        ("packed and longer", |data| {
            data.payload = vec![0; 9000].into();
        }),
    ];
    for (what, broken) in breaks {
        let mut data = good.clone();
        broken(&mut data);
        let refused = Encoder::new(false).encode(&Message::Data(data), &mut Vec::new());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    // Goal: no bytes make the decoder panic. Method: noise as it is, and noise with right sums.
    #[test]
    fn noise_never_panics(noise in vec(any::<u8>(), 0..300), message_type in 0..40_u16) {
        let _ = decode(&noise);
        let (head, payload) = noise.split_at(noise.len() / 2);
        let _ = decode(&forge(message_type, 0, 0, head, payload));
        let _ = decode(&forge(message_type, 0, 0, &noise, &[]));
    }

    // Goal: what the decoder lets through, the encoder would send: both hold the same rules.
    // Method: damage heads under a right sum; what is accepted must encode to the same bytes.
    #[test]
    fn accepted_bytes_are_the_only_encoding(
        message in message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let bytes = encode(&[message]);
        let head_len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        let message_type = u16::from_le_bytes(bytes[4..6].try_into().unwrap());
        let (head, payload) = bytes[HEADER_LEN..].split_at(head_len);
        let mut head = head.to_vec();
        if head_len > 0 {
            head[at.index(head_len)] = byte;
        }
        let damaged = forge(message_type, 0, 0, &head, payload);
        if let Ok((messages, complete)) = decode(&damaged) {
            prop_assert!(complete);
            prop_assert_eq!(encode(&messages), damaged);
        }
    }
}

// Goal: a control link asks for no more than its limits. Method: heads that the encoder would not
// make, each with one rule broken.
#[test]
fn control_messages_meet_their_limits() {
    const CONTROL: u16 = 48;
    const CONTROLLED: u16 = 49;
    const ASK: u16 = 50;
    const TOLD: u16 = 51;
    let text = |len: usize| [&(len as u16).to_le_bytes()[..], &vec![b'a'; len]].concat();
    let ask = |kind: u8, fields: &[u8]| [&text(5)[..], &[kind], fields].concat();
    let day = 24 * 60 * 60 * 1000_u64;
    let token = [&[16_u8][..], &[7; 16]].concat();
    let epoch = 1_u64.to_le_bytes();
    let control = |name: usize, job: usize, token: &[u8]| {
        [&text(name)[..], &text(job), &epoch, token].concat()
    };
    // Side, epoch, nobody in charge, not tracked, and then the disks.
    let controlled = |disks: &[u8]| [&text(3)[..], &epoch, &[0, 0], disks].concat();
    let table = [
        (CONTROL, control(0, 3, &token), "bad name length"),
        (CONTROL, control(3, 65, &token), "bad name length"),
        (
            CONTROL,
            control(3, 3, &[&[32][..], &[7; 32]].concat()),
            "a token has 16 bytes",
        ),
        (CONTROLLED, controlled(&[65]), "a list is too long"),
        (CONTROLLED, controlled(&[255]), "a list is too long"),
        (
            CONTROLLED,
            controlled(&[2, 1, 0, b'a']),
            "head ends within a field",
        ),
        (CONTROLLED, controlled(&[1, 0, 0]), "bad name length"),
        (
            CONTROLLED,
            controlled(&[&[1][..], &text(65)].concat()),
            "bad name length",
        ),
        (
            ASK,
            ask(1, &(day + 1).to_le_bytes()),
            "a time limit is too long",
        ),
        (
            ASK,
            ask(1, &u64::MAX.to_le_bytes()),
            "a time limit is too long",
        ),
        (
            ASK,
            ask(5, &[text(65), text(1)].concat()),
            "bad name length",
        ),
        (ASK, ask(7, &text(0)), "bad name length"),
        (ASK, ask(15, &[]), "unknown ControlTask"),
        (
            ASK,
            ask(10, &[text(1), text(1), vec![1], text(65)].concat()),
            "head ends within a field",
        ),
        (
            ASK,
            ask(
                10,
                &[text(1), text(1), vec![1], text(65), vec![16], vec![7; 16]].concat(),
            ),
            "bad name length",
        ),
        (ASK, ask(0, &[0]), "head has bytes after its last field"),
        (TOLD, vec![3, 65], "a list is too long"),
        (
            TOLD,
            [&[7][..], &[0; 17], &[9], &[0; 72]].concat(),
            "a list is too long",
        ),
        (TOLD, [&[6][..], &text(65)].concat(), "bad name length"),
        (TOLD, vec![1, 2], "unknown ControlPower"),
        (TOLD, vec![8], "unknown ControlAnswer"),
        (
            TOLD,
            [&[3, 2][..], &text(1)].concat(),
            "head ends within a field",
        ),
    ];
    for (message_type, head, fault) in table {
        let found = refusal(&forge(message_type, 0, 0, &head, &[]));
        assert!(found.ends_with(fault), "{found}, not {fault}");
    }
    assert!(decode(&forge(ASK, 0, 0, &ask(1, &day.to_le_bytes()), &[])).is_ok());
    let full = [&[64][..], &text(64).repeat(64)].concat();
    assert!(decode(&forge(CONTROLLED, 0, 0, &controlled(&full), &[])).is_ok());
}
