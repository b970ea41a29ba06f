//! What stands between a job and an agent: passes links on, counts what is said about the machine,
//! and cuts the link instead of passing on one of these messages.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Bytes before the head of a frame, and where its type and lengths stand: docs/wire.md.
const HEADER_LEN: usize = 40;
const TYPE_AT: usize = 4;
const HEAD_LEN_AT: usize = 16;
const PAYLOAD_LEN_AT: usize = 20;
/// The first message of a client that controls a machine.
const CONTROL: u16 = 48;
/// Messages that nobody waits for.
const KEEP_ALIVE: u16 = 6;
const BYE: u16 = 7;

/// See the module's head.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

struct State {
    agent: String,
    is_over: AtomicBool,
    /// Control messages until the one that is lost.
    left: AtomicUsize,
    said: AtomicUsize,
    was_cut: AtomicBool,
}

impl Relay {
    /// To the agent at that address; cuts the link in place of the control message number `cut`,
    /// once.
    pub(crate) fn to(agent: &str, cut: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            agent: agent.to_owned(),
            is_over: AtomicBool::default(),
            left: AtomicUsize::new(cut),
            said: AtomicUsize::default(),
            was_cut: AtomicBool::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (client, shared) = (client.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || drop(pass_on(&client, &shared)));
            }
        });
        Self {
            address,
            state,
            accepting: Some(accepting),
        }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether it has cut a link.
    pub(crate) fn was_cut(&self) -> bool {
        self.state.was_cut.load(Ordering::SeqCst)
    }

    /// Control messages so far.
    pub(crate) fn said(&self) -> usize {
        self.state.said.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        drop(self.accepting.take().map(JoinHandle::join));
    }
}

fn pass_on(client: &TcpStream, state: &State) -> io::Result<()> {
    let agent = TcpStream::connect(&state.agent)?;
    // Hello, then what it wants: only then it is known what kind of link this is.
    let mut first = Vec::new();
    let mut kind = 0;
    for _ in 0..2 {
        let frame = read_frame(&mut &*client)?;
        kind = type_of(&frame);
        first.push(frame);
    }
    let counted = (kind == CONTROL).then_some(state);
    std::thread::scope(|scope| {
        scope.spawn(|| forward(&agent, client, &[], counted));
        forward(client, &agent, &first, counted);
    });
    Ok(())
}

/// Until the link ends, or is cut.
fn forward(from: &TcpStream, to: &TcpStream, first: &[Vec<u8>], counted: Option<&State>) {
    let mut first = first.iter().cloned();
    loop {
        let next = first.next().map_or_else(|| read_frame(&mut &*from), Ok);
        let Ok(frame) = next else { break };
        if counted.is_some_and(|state| is_cut(&frame, state)) {
            break;
        }
        if (&*to).write_all(&frame).is_err() {
            break;
        }
    }
    for end in [from, to] {
        drop(end.shutdown(Shutdown::Both));
    }
}

fn is_cut(frame: &[u8], state: &State) -> bool {
    if matches!(type_of(frame), KEEP_ALIVE | BYE) {
        return false;
    }
    state.said.fetch_add(1, Ordering::SeqCst);
    let left = state
        .left
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
    let is_cut = left.is_err() && !state.was_cut.swap(true, Ordering::SeqCst);
    if is_cut {
        state.left.store(usize::MAX, Ordering::SeqCst);
    }
    is_cut
}

fn type_of(frame: &[u8]) -> u16 {
    u16::from_le_bytes([frame[TYPE_AT], frame[TYPE_AT + 1]])
}

fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_LEN];
    from.read_exact(&mut frame)?;
    let len = |at: usize| {
        let field: [u8; 4] = frame[at..at + 4].try_into().unwrap();
        u32::from_le_bytes(field) as usize
    };
    let len = HEADER_LEN + len(HEAD_LEN_AT) + len(PAYLOAD_LEN_AT);
    frame.resize(len, 0);
    from.read_exact(&mut frame[HEADER_LEN..])?;
    Ok(frame)
}
