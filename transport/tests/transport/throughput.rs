//! How fast the links are. Ignored: a measurement, not a test.

use std::thread;
use std::time::Instant;

use failback_transport::link::{Link, loopback, tcp};
use failback_transport::{Message, split};

use crate::kit::{numbered, raw_block};

fn measure(name: &str, (near, far): (Link, Link), block_len: usize) {
    let total = 8_usize << 30;
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

#[test]
#[ignore = "a measurement of some seconds"]
fn throughput() {
    for block_len in [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20] {
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
