//! Every link keeps the contract of `LinkSender`, `LinkReceiver` and `LinkCloser`.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use failback_transport::link::{Link, Listener, Shape, bundle, loopback, shaped, tcp};
use failback_transport::{Error, ErrorKind, Message, split};

use crate::kit::{numbered, raw_block};

/// Two connected ends, and the listener that must outlive them.
struct Ends {
    near: Link,
    far: Link,
    _listener: Option<Listener>,
}

fn accept_from(listener: Listener, connect: impl FnOnce(&str) -> Link) -> Ends {
    let near = connect(listener.local_addr());
    let far = listener.accept().unwrap().unwrap();
    Ends {
        near,
        far,
        _listener: Some(listener),
    }
}

/// A loopback whose near end has that shape.
fn shaped_ends(bytes_per_second: Option<u64>, delay: Duration) -> Ends {
    let (near, far) = loopback::pair();
    let shape = Shape {
        bytes_per_second,
        delay,
    };
    Ends {
        near: shaped(near, shape).unwrap(),
        far,
        _listener: None,
    }
}

/// Three connections as one link.
fn bundled_ends() -> Ends {
    let (near, far) = (0..3).map(|_| loopback::pair()).unzip();
    Ends {
        near: bundle(near).unwrap(),
        far: bundle(far).unwrap(),
        _listener: None,
    }
}

fn all_links() -> Vec<(&'static str, Ends)> {
    let (near, far) = loopback::pair();
    let tcp_ends = accept_from(tcp::listen("127.0.0.1:0").unwrap(), |addr| {
        tcp::connect(addr.strip_prefix("tcp://").unwrap()).unwrap()
    });
    let mut links = vec![
        (
            "loopback",
            Ends {
                near,
                far,
                _listener: None,
            },
        ),
        ("tcp", tcp_ends),
        ("bundle", bundled_ends()),
        ("limited", shaped_ends(Some(1 << 30), Duration::ZERO)),
        ("delayed", shaped_ends(None, Duration::from_millis(20))),
        (
            "limited and delayed",
            shaped_ends(Some(1 << 30), Duration::from_millis(20)),
        ),
    ];
    #[cfg(unix)]
    links.push(("unix", sockets::ends()));
    links
}

// Goal: 64 MiB arrive whole and in order over every link. Method: blocks of several lengths.
#[test]
fn data_arrives_whole_and_in_order() {
    for (name, ends) in all_links() {
        let blocks: Vec<_> = [4 << 20, 1 << 20, 64 << 10, 4 << 10, 100]
            .map(|len: usize| numbered(len))
            .into_iter()
            .cycle()
            .take(62)
            .collect();
        let total: usize = blocks.iter().map(Bytes::len).sum();
        assert!(total >= 60 << 20, "{name}");
        let (mut sender, _, _, out) = split(ends.near);
        let (_far_sender, mut receiver, _, into) = split(ends.far);
        thread::scope(|scope| {
            scope.spawn(|| {
                for (block, payload) in (0..).zip(&blocks) {
                    sender.send(&Message::Want { block }).unwrap();
                    sender.send(&raw_block(block, payload.clone())).unwrap();
                }
                sender.send(&Message::Bye).unwrap();
                sender.flush().unwrap();
            });
            for (block, payload) in (0..).zip(&blocks) {
                assert_eq!(receiver.recv().unwrap(), Message::Want { block }, "{name}");
                let expected = raw_block(block, payload.clone());
                assert!(receiver.recv().unwrap() == expected, "{name} block {block}");
            }
            assert_eq!(receiver.recv().unwrap(), Message::Bye);
        });
        assert_eq!(out.bytes_out(), into.bytes_in(), "{name}");
        assert!(out.bytes_out() > total as u64, "{name}");
    }
}

// Goal: a closer ends a receive and a send that wait, within a second, on both sides.
#[test]
fn closer_unblocks_both_halves() {
    for (name, ends) in all_links() {
        let Link {
            sender: mut out,
            receiver: mut input,
            closer,
            ..
        } = ends.near;
        let Link {
            receiver: _idle,
            sender: mut far_out,
            ..
        } = ends.far;
        let (done, finished) = mpsc::channel();
        let sent = done.clone();
        thread::spawn(move || {
            let part = [numbered(1 << 20)];
            let error = loop {
                if let Err(e) = out.send(&part) {
                    break e;
                }
            };
            sent.send(("send", Some(error.kind()))).unwrap();
        });
        thread::spawn(move || {
            let received = input.recv();
            done.send(("recv", received.err().map(|e| e.kind())))
                .unwrap();
        });
        thread::sleep(Duration::from_millis(100));
        assert!(
            finished.try_recv().is_err(),
            "{name}: nothing ends by itself"
        );
        let begun = Instant::now();
        closer.close();
        closer.close();
        finished.recv_timeout(Duration::from_secs(1)).unwrap();
        finished.recv_timeout(Duration::from_secs(1)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{name}");
        let part = [numbered(1 << 10)];
        assert!(
            (0..10_000).any(|_| far_out.send(&part).is_err()),
            "{name}: the peer sees the end"
        );
    }
}

// Goal: a dropped sender is an orderly end: what was sent before it still arrives.
#[test]
fn dropped_sender_ends_the_stream_in_order() {
    for (name, ends) in all_links() {
        let (mut sender, _receiver, _, _) = split(ends.near);
        let (_far_sender, mut receiver, _, _) = split(ends.far);
        sender.send(&Message::Bye).unwrap();
        sender.flush().unwrap();
        drop(sender);
        assert_eq!(receiver.recv().unwrap(), Message::Bye, "{name}");
        let end = receiver.recv().unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Closed, "{name}");
        assert!(end.to_string().ends_with("between frames"), "{name}: {end}");
    }
}

// Goal: a stream that ends within a frame says so.
#[test]
fn end_within_a_frame_is_told_apart() {
    for (name, mut ends) in all_links() {
        let bytes = crate::kit::encode(&[raw_block(0, numbered(1 << 20))]);
        let cut = Bytes::from(bytes).slice(..100_000);
        ends.near.sender.send(&[cut]).unwrap();
        drop(ends.near);
        ends.far.trusted_memory = false;
        let (_far_sender, mut receiver, _, _) = split(ends.far);
        let end = receiver.recv().unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Closed, "{name}");
        assert!(end.to_string().ends_with("within a frame"), "{name}: {end}");
    }
}

// Goal: a silent peer is noticed after the idle limit, and not much later.
#[test]
fn silent_peer_times_out() {
    for (name, ends) in all_links() {
        let (_sender, mut receiver, _, _) = split(ends.near);
        receiver.set_idle_limit(Duration::from_millis(60)).unwrap();
        let begun = Instant::now();
        let error = receiver.recv().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{name}");
        assert!(error.is_transient());
        assert!(begun.elapsed() >= Duration::from_millis(50), "{name}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{name}");
        drop(ends.far);
    }
}

// Goal: a frame that trickles in is given up although the peer is never idle.
#[test]
fn trickling_frame_times_out() {
    let (near, mut far) = loopback::pair();
    let (_sender, mut receiver, _, _) = split(near);
    receiver.set_idle_limit(Duration::from_millis(100)).unwrap();
    let frame = Bytes::from(crate::kit::encode(&[Message::Bye]));
    let trickle = thread::spawn(move || {
        (0..frame.len() - 1)
            .map(|at| frame.slice(at..=at))
            .take_while(|byte| {
                thread::sleep(Duration::from_millis(20));
                far.sender.send(std::slice::from_ref(byte)).is_ok()
            })
            .count()
    });
    let error = receiver.recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("too slowly"));
    drop((receiver, _sender));
    assert!(trickle.join().unwrap() < 39);
}

// Goal: the loopback holds back a sender that is ahead, by bytes, and lets it go on.
#[test]
fn loopback_is_bounded_by_bytes() {
    let (mut near, mut far) = loopback::pair();
    let (sent, progress) = mpsc::channel();
    thread::spawn(move || {
        let part = [numbered(1 << 20)];
        (0..64).for_each(|_| {
            near.sender.send(&part).unwrap();
            sent.send(()).unwrap();
        });
    });
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        progress.try_iter().count(),
        loopback::IN_FLIGHT_MAX / (1 << 20) - 1
    );
    let received: usize = std::iter::from_fn(|| far.receiver.recv().unwrap())
        .map(|part| part.len())
        .sum();
    assert_eq!(received, 64 << 20);
}

// Goal: plain TCP stays on this host, both ways, by number and by name; names are not looked up.
#[test]
fn tcp_refuses_all_but_loopback() {
    let refused = |outcome: Result<(), Error>| outcome.unwrap_err().kind() == ErrorKind::Refused;
    for addr in [
        "0.0.0.0:0",
        "10.0.0.1:80",
        "[::]:0",
        "[fe80::1]:80",
        "[::ffff:127.0.0.1]:80",
        "192.168.1.1:80",
        "example.org:80",
        "localhost.example.org:80",
        "127.0.0.1.example.org:80",
        "127.1:80",
        "127.0.0.1",
        "localhost:http",
        ":80",
        "",
    ] {
        assert!(refused(tcp::connect(addr).map(|_| ())), "connect {addr}");
        assert!(refused(tcp::listen(addr).map(|_| ())), "listen {addr}");
    }
}

// Goal: a name that means this host works.
#[test]
fn tcp_takes_localhost() {
    let listener = tcp::listen("localhost:0").unwrap();
    let port = listener.local_addr().rsplit(':').next().unwrap().to_owned();
    tcp::connect(&format!("localhost:{port}")).unwrap();
    assert!(listener.accept().unwrap().is_some());
}

// Goal: nobody there is told apart from a refusal by policy.
#[test]
fn tcp_without_a_listener_is_closed() {
    let listener = tcp::listen("127.0.0.1:0").unwrap();
    let addr = listener
        .local_addr()
        .strip_prefix("tcp://")
        .unwrap()
        .to_owned();
    drop(listener);
    assert_eq!(
        tcp::connect(&addr).map(|_| ()).unwrap_err().kind(),
        ErrorKind::Closed
    );
}

// Goal: a server can be stopped while it waits, and stays stopped.
#[test]
fn listener_can_be_stopped() {
    let listener = tcp::listen("127.0.0.1:0").unwrap();
    let stop = listener.stop_handle();
    let begun = Instant::now();
    thread::scope(|scope| {
        let accept = scope.spawn(|| listener.accept().unwrap().is_none());
        thread::sleep(Duration::from_millis(50));
        stop.stop();
        assert!(accept.join().unwrap());
    });
    assert!(listener.accept().unwrap().is_none());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

// Goal: links give the kinds of error that their traits name.
#[test]
fn send_to_a_gone_peer_is_a_broken_link() {
    let (mut near, far) = loopback::pair();
    drop(far);
    let error = near.sender.send(&[numbered(1)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[cfg(unix)]
mod sockets {
    //! What only Unix sockets have: a file.

    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use failback_transport::ErrorKind;
    use failback_transport::link::unix;

    use super::{Ends, accept_from};

    pub(super) fn ends() -> Ends {
        let dir = tempfile::tempdir().unwrap();
        accept_from(unix::listen(&dir.path().join("s")).unwrap(), |addr| {
            unix::connect(Path::new(addr.strip_prefix("unix://").unwrap())).unwrap()
        })
    }

    // Goal: nobody else may connect, and the file goes with the listener.
    #[test]
    fn socket_file_is_private_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = unix::listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(listener);
        assert!(!path.exists());
    }

    // Goal: what a killed server left is replaced.
    #[test]
    fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = unix::listen(&path).unwrap();
        unix::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
    }

    // Goal: a living server is left alone.
    #[test]
    fn socket_in_use_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = unix::listen(&path).unwrap();
        assert_eq!(
            unix::listen(&path).map(|_| ()).unwrap_err().kind(),
            ErrorKind::Io
        );
        unix::connect(&path).unwrap();
        drop(listener);
    }

    // Goal: a file that is no socket, or a link to one, is never removed.
    #[test]
    fn other_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        fs::write(&path, b"data").unwrap();
        assert_eq!(
            unix::listen(&path).map(|_| ()).unwrap_err().kind(),
            ErrorKind::Io
        );
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    // Goal: a listener does not remove the file of the one that took its place.
    #[test]
    fn file_of_another_listener_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = unix::listen(&path).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let _second = unix::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
