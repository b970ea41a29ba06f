//! How fast the links are. Ignored: a measurement, not a test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use failback_transport::link::{Link, loopback, tcp};
use failback_transport::{Message, split};

use crate::kit::{numbered, raw_block};

fn measure(name: &str, (near, far): (Link, Link), block_len: usize) {
    let total = 2_usize << 30;
    let payload = numbered(block_len);
    let (mut sender, _receiver, _, _) = split(near);
    let (_far_sender, mut receiver, _, _) = split(far);
    let begun = Instant::now();
    let send = thread::spawn(move || {
        for block in 0..(total / block_len) as u64 {
            sender.send(&raw_block(block, payload.clone())).unwrap();
        }
        sender.send(&Message::Bye).unwrap();
        sender.flush().unwrap();
    });
    while receiver.recv().unwrap() != Message::Bye {}
    let seconds = begun.elapsed().as_secs_f64();
    send.join().unwrap();
    println!(
        "{name} {:>5} KiB: {:.2} GB/s",
        block_len >> 10,
        total as f64 / seconds / 1e9
    );
}

/// What the system gives without this crate: one thread writes, one reads, nothing is summed.
fn measure_bare_tcp() {
    let (total, len) = (2_usize << 30, 1 << 20);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let begun = Instant::now();
    let send = thread::spawn(move || {
        let buf = vec![7; len];
        (0..total / len).for_each(|_| near.write_all(&buf).unwrap());
    });
    let mut buf = vec![0; len];
    while far.read(&mut buf).unwrap() > 0 {}
    println!(
        "bare tcp: {:.2} GB/s",
        total as f64 / begun.elapsed().as_secs_f64() / 1e9
    );
    send.join().unwrap();
}

#[test]
#[ignore = "a measurement of some seconds"]
fn throughput() {
    measure_bare_tcp();
    for block_len in [1 << 20, 4 << 20, 256 << 10, 64 << 10, 16 << 10] {
        let listener = tcp::listen("127.0.0.1:0").unwrap();
        let near = tcp::connect(listener.local_addr().strip_prefix("tcp://").unwrap()).unwrap();
        measure(
            "tcp",
            (near, listener.accept().unwrap().unwrap()),
            block_len,
        );
        measure("loopback", loopback::pair(), block_len);
        #[cfg(unix)]
        {
            use failback_transport::link::unix;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = unix::listen(&path).unwrap();
            let near = unix::connect(&path).unwrap();
            measure(
                "unix",
                (near, listener.accept().unwrap().unwrap()),
                block_len,
            );
        }
    }
}
