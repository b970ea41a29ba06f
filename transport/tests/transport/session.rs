//! Messages over a link: the handshake, and when bytes leave.

use std::thread;
use std::time::Duration;

use failback_transport::link::{Link, loopback};
use failback_transport::{
    ErrorKind, Failure, Hello, Message, Negotiated, Result, VERSION_MAX, handshake, split,
};

use crate::kit::raw_block;

/// Our handshake against a peer that says `first`.
fn shake(first: &Message) -> Result<Negotiated> {
    let (near, far) = loopback::pair();
    let (mut sender, mut receiver, _, _) = split(near);
    let (mut far_sender, _far_receiver, _, _) = split(far);
    far_sender.send(first).unwrap();
    far_sender.flush().unwrap();
    handshake(&mut sender, &mut receiver, "failback test")
}

fn hello(version_min: u16, version_max: u16) -> Message {
    Message::Hello(Hello {
        version_min,
        version_max,
        features: !0,
        software: "peer\n9".to_owned(),
    })
}

// Goal: two of the same release agree, each learns the other's name, and messages follow.
#[test]
fn both_sides_say_hello_at_once() {
    let (near, far) = loopback::pair();
    let other = thread::spawn(|| {
        let (mut sender, mut receiver, _, _) = split(far);
        let agreed = handshake(&mut sender, &mut receiver, "agent").unwrap();
        sender.send(&Message::Bye).unwrap();
        sender.flush().unwrap();
        agreed
    });
    let (mut sender, mut receiver, _, _) = split(near);
    let agreed = handshake(&mut sender, &mut receiver, "client").unwrap();
    assert_eq!(
        (agreed.version, agreed.peer_software.as_str()),
        (VERSION_MAX, "agent")
    );
    assert_eq!(receiver.recv().unwrap(), Message::Bye);
    assert_eq!(other.join().unwrap().peer_software, "client");
}

// Goal: a peer from the future is told both ranges, with its name made harmless.
#[test]
fn version_mismatch_names_both_ranges() {
    let error = shake(&hello(200, 300)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version);
    assert!(!error.is_transient());
    assert_eq!(
        error.to_string(),
        "no common protocol version: this side speaks 7 to 7, peer\\n9 speaks 200 to 300"
    );
}

// Goal: features that only the peer has are not used.
#[test]
fn unknown_features_are_ignored() {
    assert_eq!(shake(&hello(1, 9)).unwrap().features, 0);
}

// Goal: anything but hello ends the handshake; a failure is passed on.
#[test]
fn handshake_takes_only_hello() {
    assert_eq!(
        shake(&Message::Bye).unwrap_err().kind(),
        ErrorKind::Protocol
    );
    let failure = Failure {
        kind: 1,
        message: "busy\x1b[2J".to_owned(),
        path: String::new(),
        offset: None,
    };
    let refused = shake(&Message::Failure(failure)).unwrap_err();
    assert_eq!(refused.to_string(), "peer refused to talk: busy\\u{1b}[2J");
}

// Goal: a second hello later is a message like others; the engine decides. A silent peer's link
// that is closed ends the handshake.
#[test]
fn closed_link_ends_the_handshake() {
    let (near, far) = loopback::pair();
    let (mut sender, mut receiver, closer, _) = split(near);
    let wait = thread::spawn(move || handshake(&mut sender, &mut receiver, "client").unwrap_err());
    thread::sleep(Duration::from_millis(50));
    closer.close();
    assert_eq!(wait.join().unwrap().kind(), ErrorKind::Closed);
    drop(far);
}

// Goal: small messages wait for each other; a flush or enough of them sends them.
#[test]
fn small_messages_are_coalesced() {
    let (near, far) = loopback::pair();
    let (mut sender, _receiver, _, out) = split(near);
    sender.send(&Message::KeepAlive).unwrap();
    assert_eq!(out.bytes_out(), 0);
    sender.flush().unwrap();
    assert_eq!(out.bytes_out(), 40);
    sender
        .send(&raw_block(0, vec![7; 64 << 10].into()))
        .unwrap();
    assert!(out.bytes_out() > 64 << 10);
    let before = out.bytes_out();
    (0..2000).for_each(|block| sender.send(&Message::Resend { block }).unwrap());
    assert!(out.bytes_out() >= before + (64 << 10));
    let Link {
        receiver: mut bytes,
        ..
    } = far;
    assert_eq!(bytes.recv().unwrap().unwrap().len(), 40);
}
