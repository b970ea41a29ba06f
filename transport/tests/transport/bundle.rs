//! Several connections carry more than one, and a piece out of place is found.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use failback_transport::link::{LINKS_MAX, Link, Shape, bundle, loopback, shaped};

use crate::kit::numbered;

fn pairs(count: usize, bytes_per_second: Option<u64>) -> (Vec<Link>, Vec<Link>) {
    let shape = Shape {
        bytes_per_second,
        delay: Duration::ZERO,
    };
    (0..count)
        .map(|_| {
            let (near, far) = loopback::pair();
            (shaped(near, shape).unwrap(), far)
        })
        .unzip()
}

fn seconds(count: usize) -> f64 {
    let len = 8 << 20;
    let sent = numbered(len);
    let (near, far) = pairs(count, Some(16 << 20));
    let (mut near, mut far) = (bundle(near).unwrap(), bundle(far).unwrap());
    let begun = Instant::now();
    let sending = thread::spawn({
        let sent = sent.clone();
        move || near.sender.send(&[sent]).unwrap()
    });
    let mut received = Vec::new();
    while let Some(part) = far.receiver.recv().unwrap() {
        received.extend_from_slice(&part);
    }
    sending.join().unwrap();
    assert!(received == sent, "what came is what was sent");
    begun.elapsed().as_secs_f64()
}

// Goal: connections add up. Method: four that are each limited, against one.
#[test]
fn four_connections_carry_more_than_one() {
    let (one, four) = (seconds(1), seconds(4));
    assert!(four < 0.5 * one, "{one} s by one, {four} s by four");
}

// Goal: how many there may be is checked.
#[test]
fn there_are_some_connections_and_not_too_many() {
    for count in [0, LINKS_MAX + 1] {
        let error = bundle(pairs(count, None).0).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

fn piece(number: u64, len: u32, bytes: &[u8]) -> Bytes {
    let mut piece = BytesMut::new();
    piece.put_u64_le(number);
    piece.put_u32_le(len);
    piece.put_slice(bytes);
    piece.freeze()
}

// Goal: a hostile peer meets limits. Method: one raw connection beside a bundle of two: lengths
// that cannot be, numbers twice, an end within a piece.
#[test]
fn pieces_that_cannot_be_end_the_link() {
    let rows = [
        (piece(0, 0, b""), io::ErrorKind::InvalidData),
        (piece(0, u32::MAX, b"x"), io::ErrorKind::InvalidData),
        (
            [piece(1, 1, b"x"), piece(1, 1, b"y")].concat().into(),
            io::ErrorKind::InvalidData,
        ),
        (piece(0, 2, b"x"), io::ErrorKind::UnexpectedEof),
        (piece(3, 1, b"x"), io::ErrorKind::UnexpectedEof),
    ];
    for (bytes, expected) in rows {
        let (near, far) = pairs(2, None);
        let mut far = bundle(far).unwrap();
        let mut near = near.into_iter();
        let part = std::slice::from_ref(&bytes);
        near.next().unwrap().sender.send(part).unwrap();
        drop(near);
        let error = far.receiver.recv().unwrap_err();
        assert_eq!(error.kind(), expected, "{bytes:?}");
    }
}

// Goal: what comes early is bounded. Method: a peer that leaves out the first piece; the rest stays
// on the connection, and the idle limit ends it.
#[test]
fn pieces_that_come_early_are_bounded() {
    let (mut near, far) = pairs(1, None);
    let mut far = bundle(far).unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let writer = thread::spawn(move || {
        let bytes = numbered(256 << 10);
        let _until_closed = (1..1000_u64).try_for_each(|number| {
            near[0].sender.send(&[piece(number, 256 << 10, &bytes)])?;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>(())
        });
    });
    far.set_idle_limit(Duration::from_millis(300)).unwrap();
    let error = far.receiver.recv().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    // Not after the close: then what was held back is let go.
    let count = taken.load(Ordering::SeqCst);
    far.closer.close();
    writer.join().unwrap();
    let limit = 64 + 2 + loopback::IN_FLIGHT_MAX / (256 << 10);
    assert!(count <= limit, "{count} pieces were taken");
}

// Goal: a connection that dies takes the link with it, on both sides. Method: cut one of three.
#[test]
fn a_dead_connection_ends_the_link() {
    let (near, far) = pairs(3, None);
    let one = near[1].closer.clone();
    let (mut near, mut far) = (bundle(near).unwrap(), bundle(far).unwrap());
    let sending = thread::spawn(move || {
        let part = [numbered(1 << 20)];
        let sent = (0..1000).find_map(|_| near.sender.send(&part).err());
        sent.map(|error| error.kind())
    });
    assert!(far.receiver.recv().unwrap().is_some());
    one.close();
    let ended = loop {
        match far.receiver.recv() {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error.kind()),
        }
    };
    assert_eq!(sending.join().unwrap(), Some(io::ErrorKind::BrokenPipe));
    // Whether a piece is missing or nothing follows, it is no session that ended well.
    assert!(matches!(ended, None | Some(io::ErrorKind::UnexpectedEof)));
}
