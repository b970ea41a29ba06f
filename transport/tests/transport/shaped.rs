//! A shaped link is as slow as it says, and no slower.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use failback_transport::link::{Link, RATE_MIN, Shape, loopback, shaped};

use crate::kit::numbered;

const RATE: u64 = 16 << 20;
const LEN: usize = 4 << 20;

fn limited(bytes_per_second: u64) -> Shape {
    Shape {
        bytes_per_second: Some(bytes_per_second),
        delay: Duration::ZERO,
    }
}

fn pair(near: Shape, far: Shape) -> (Link, Link) {
    let (a, b) = loopback::pair();
    (shaped(a, near).unwrap(), shaped(b, far).unwrap())
}

/// Seconds that `LEN` bytes take, in parts of 100,000 bytes.
fn seconds((mut near, mut far): (Link, Link)) -> f64 {
    let sent = numbered(LEN);
    let begun = Instant::now();
    let sending = thread::spawn({
        let sent = sent.clone();
        move || {
            for at in (0..LEN).step_by(100_000) {
                let part = sent.slice(at..(at + 100_000).min(LEN));
                near.sender.send(&[Bytes::new(), part]).unwrap();
            }
        }
    });
    let mut received = Vec::new();
    while let Some(part) = far.receiver.recv().unwrap() {
        received.extend_from_slice(&part);
    }
    let seconds = begun.elapsed().as_secs_f64();
    sending.join().unwrap();
    assert!(received == sent, "what came is what was sent");
    seconds
}

// Goal: a limit holds, whichever end has it, and is used up. Method: the time of a quarter of a
// second's bytes; only the lower bound is sharp, since other programs run too.
#[test]
fn a_rate_is_kept_by_either_end() {
    let none = Shape::default();
    for (name, near, far) in [
        ("sender", limited(RATE), none),
        ("receiver", none, limited(RATE)),
        ("both", limited(RATE), limited(RATE)),
    ] {
        let ratio = seconds(pair(near, far)) / (LEN as f64 / RATE as f64);
        assert!(ratio > 0.85, "{name}: {ratio} of the time it should take");
        assert!(ratio < 1.7, "{name}: {ratio} of the time it should take");
    }
}

// Goal: a delay costs its time once. Method: the same bytes at the same rate; were each piece sent
// after the one before has come, it would be sixteen delays and more.
#[test]
fn a_delay_does_not_lower_the_rate() {
    let delay = Duration::from_millis(50);
    let far_away = Shape {
        delay,
        ..limited(RATE)
    };
    let near = seconds(pair(limited(RATE), Shape::default()));
    let far = seconds(pair(far_away, Shape::default()));
    assert!(
        far > 0.85 * near + 0.9 * delay.as_secs_f64(),
        "{far} {near}"
    );
    assert!(far < 1.5 * near + 3.0 * delay.as_secs_f64(), "{far} {near}");
}

// Goal: nothing comes early, and a delay alone blocks nobody. Method: one byte.
#[test]
fn a_byte_comes_after_the_delay() {
    let delay = Duration::from_millis(300);
    let shape = Shape {
        bytes_per_second: None,
        delay,
    };
    let (mut near, mut far) = pair(shape, Shape::default());
    let begun = Instant::now();
    near.sender.send(&[numbered(1)]).unwrap();
    assert!(begun.elapsed() < delay, "who sends does not wait for it");
    assert_eq!(far.receiver.recv().unwrap().unwrap().len(), 1);
    assert!(begun.elapsed() >= delay);
}

// Goal: what is on its way is bounded, and the sender held back. Method: a peer that takes nothing.
#[test]
fn a_sender_is_held_back() {
    let shape = Shape {
        bytes_per_second: Some(1 << 30),
        delay: Duration::from_millis(10),
    };
    let (mut near, far) = pair(shape, Shape::default());
    let (sent, progress) = mpsc::channel();
    let sending = thread::spawn(move || {
        let part = [numbered(1 << 20)];
        while near.sender.send(&part).is_ok() {
            sent.send(()).unwrap();
        }
    });
    thread::sleep(Duration::from_millis(300));
    // The queue: 10.24 MiB and 1 MiB; beyond it the loopback, and what is in nobody's count.
    let limit = 12 + (loopback::IN_FLIGHT_MAX >> 20) + 2;
    let count = progress.try_iter().count();
    assert!(count <= limit, "{count} MiB");
    far.closer.close();
    sending.join().unwrap();
}

// Goal: a close ends at once whatever waits: for its turn to send, for room, for its turn to
// receive, for a peer that takes nothing after the sender was dropped.
#[test]
fn a_close_ends_all_waits() {
    let slow = limited(RATE_MIN);
    let far_and_slow = Shape {
        delay: Duration::from_secs(2),
        ..slow
    };
    for (name, shape) in [("turn", slow), ("delay", far_and_slow)] {
        let (near, mut far) = pair(shape, Shape::default());
        let Link {
            mut sender,
            mut receiver,
            closer,
            ..
        } = near;
        far.sender.send(&[numbered(1 << 20)]).unwrap();
        let (done, ends) = mpsc::channel();
        let sent = done.clone();
        thread::spawn(move || {
            let error = sender.send(&[numbered(16 << 20)]).unwrap_err();
            drop(sender);
            sent.send(Some(error.kind())).unwrap();
        });
        thread::spawn(move || {
            while receiver.recv().unwrap().is_some() {}
            done.send(None).unwrap();
        });
        thread::sleep(Duration::from_millis(100));
        assert!(ends.try_recv().is_err(), "{name}: nothing ends by itself");
        let begun = Instant::now();
        closer.close();
        let limit = Duration::from_secs(1);
        let mut kinds = [0; 2].map(|_| ends.recv_timeout(limit).unwrap());
        kinds.sort();
        assert_eq!(kinds, [None, Some(io::ErrorKind::BrokenPipe)], "{name}");
        assert!(begun.elapsed() < limit, "{name}");
    }
}

// Goal: an error of the link below comes to whoever sends, though another thread met it.
#[test]
fn a_broken_link_is_told() {
    let shape = Shape {
        bytes_per_second: None,
        delay: Duration::from_millis(5),
    };
    let (mut near, far) = pair(shape, Shape::default());
    drop(far);
    let part = [numbered(1)];
    let until = Instant::now() + Duration::from_secs(5);
    let error = loop {
        match near.sender.send(&part) {
            Err(error) => break error,
            Ok(()) => assert!(Instant::now() < until, "no error came"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

// Goal: a silent peer is noticed through a shaped link, and one that is only slow is not taken for
// it. Method: an idle limit that bytes of a slow peer take longer than.
#[test]
fn the_idle_limit_counts_silence_only() {
    let (mut near, mut far) = pair(limited(RATE_MIN), Shape::default());
    near.set_idle_limit(Duration::from_millis(60)).unwrap();
    let len = 4 << 10;
    far.sender.send(&[numbered(len)]).unwrap();
    let begun = Instant::now();
    let mut left = len;
    while left > 0 {
        left -= near.receiver.recv().unwrap().unwrap().len();
    }
    assert!(begun.elapsed() > Duration::from_millis(120), "it was slow");
    let error = near.receiver.recv().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
