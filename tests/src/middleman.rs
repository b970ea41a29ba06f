//! Somebody between two processes: cuts their connection at a byte, or flips a bit of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The caller.
    ToAgent,
    /// The agent.
    FromAgent,
}

/// Both.
pub const DIRECTIONS: [Direction; 2] = [Direction::ToAgent, Direction::FromAgent];

/// What is done to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It ends, both ways, once so many bytes have passed in this direction.
    Cut(Direction, u64),
    /// One bit (0 to 7) of this byte is flipped.
    Flip(Direction, u64, u8),
}

/// Listens on a free loopback port and hands everything on to an agent.
#[derive(Debug)]
pub struct Middleman {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the next connection.
    harm: Mutex<Option<Harm>>,
    /// Bytes of the last connection, by direction.
    passed: [AtomicU64; 2],
}

impl Middleman {
    /// Before an agent at this address (`HOST:PORT`).
    ///
    /// # Panics
    ///
    /// When no port is free.
    pub fn before(agent: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let shared = Arc::new(Shared::default());
        let (agent, known) = (agent.to_owned(), Arc::clone(&shared));
        // It ends with the test's process: nobody calls any more.
        thread::spawn(move || {
            while let Ok((caller, _)) = listener.accept() {
                if let Ok(agent) = TcpStream::connect(&agent) {
                    known.join(&caller, &agent);
                }
            }
        });
        Self { port, shared }
    }

    /// The endpoint of a grant, by way of here.
    pub fn endpoint(&self, grant: &str) -> String {
        format!("tcp://127.0.0.1:{}/{grant}", self.port)
    }

    /// Does this to the next connection.
    ///
    /// # Panics
    ///
    /// When another thread panicked meanwhile.
    pub fn harm_next(&self, harm: Option<Harm>) {
        *self.shared.harm.lock().expect("no panic under it") = harm;
    }

    /// Bytes that passed in the last connection.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed[direction as usize].load(Ordering::SeqCst)
    }
}

impl Shared {
    fn join(self: &Arc<Self>, caller: &TcpStream, agent: &TcpStream) {
        let harm = self.harm.lock().expect("no panic under it").take();
        for (direction, from, to) in [
            (Direction::ToAgent, caller, agent),
            (Direction::FromAgent, agent, caller),
        ] {
            self.passed[direction as usize].store(0, Ordering::SeqCst);
            let ends = from
                .try_clone()
                .and_then(|from| Ok((from, to.try_clone()?)));
            // A connection that ended meanwhile has nothing to pass on.
            let Ok((from, to)) = ends else { return };
            // Both sides wait for short messages: none may be held back.
            let _ = to.set_nodelay(true);
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(direction, from, to, harm));
        }
    }

    fn pump(
        &self,
        direction: Direction,
        mut from: TcpStream,
        mut to: TcpStream,
        harm: Option<Harm>,
    ) {
        let passed = &self.passed[direction as usize];
        let mut buf = vec![0; 64 << 10];
        loop {
            let before = passed.load(Ordering::SeqCst);
            let cut_after = match harm {
                Some(Harm::Cut(cut, at)) if cut == direction => Some(at - before),
                _ => None,
            };
            if cut_after == Some(0) {
                // Both ways, as when the machine between is gone.
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            let most = cut_after.map_or(buf.len(), |left| {
                usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()))
            });
            let len = from.read(&mut buf[..most]).unwrap_or(0);
            if len == 0 {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if let Some(Harm::Flip(flipped, at, bit)) = harm
                && flipped == direction
                && let Some(byte) = at.checked_sub(before)
                && let Some(byte) = usize::try_from(byte).ok().filter(|byte| *byte < len)
            {
                buf[byte] ^= 1 << bit;
            }
            if to.write_all(&buf[..len]).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            passed.fetch_add(len as u64, Ordering::SeqCst);
        }
    }
}
