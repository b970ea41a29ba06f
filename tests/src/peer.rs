//! Peers that are no failback: they vanish, send garbage, or stop in the middle of a frame.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How a false peer behaves once connected.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Closes at once.
    Vanishes,
    /// Sends bytes that are no frame, then closes.
    SendsGarbage,
    /// Sends the start of what it was sent itself, then closes.
    EchoesHalf,
}

/// Listens on a free loopback port and treats the first caller in this manner. Returns an
/// endpoint that names a disk there.
///
/// # Panics
///
/// When no port is free.
pub fn false_server(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("address").port();
    thread::spawn(move || {
        if let Ok((link, _)) = listener.accept() {
            behave(link, manner);
        }
    });
    format!("tcp://127.0.0.1:{port}/disk")
}

/// Calls an agent (`HOST:PORT`) and treats it in this manner.
///
/// # Panics
///
/// When nobody listens there.
pub fn false_client(address: &str, manner: Manner) {
    behave(
        TcpStream::connect(address).expect("the agent listens"),
        manner,
    );
}

fn behave(mut link: TcpStream, manner: Manner) {
    let garbage: Vec<u8> = (0..=255).cycle().take(256 << 10).collect();
    // Errors are of no interest: the other side may hang up at any time.
    let _ = match manner {
        Manner::Vanishes => Ok(()),
        Manner::SendsGarbage => link.write_all(&garbage),
        Manner::EchoesHalf => {
            let mut heard = [0; 24];
            let _ = link.set_read_timeout(Some(Duration::from_secs(2)));
            let len = link.read(&mut heard).unwrap_or(0).max(8);
            link.write_all(&heard[..len / 2])
        }
    };
}
