//! Messages over a link: coalescing, counting, time limits.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::buffer::RecycledBuffers;
use crate::counters::Counters;
use crate::error::{Error, ErrorKind, Result};
use crate::link::{HANDSHAKE_LIMIT, Link, LinkCloser, LinkReceiver, LinkSender};
use crate::wire::{Decoder, Encoder, Message};

/// Bytes that wait for more before they are sent without [`MessageSender::flush`].
pub const COALESCE_LEN: usize = 64 << 10;

/// Bytes per second below which a frame that has begun is given up, beyond the idle limit.
pub const FRAME_RATE_MIN: u64 = 1 << 10;

/// A missing rest of a payload is read straight into its place from this length on, in bytes.
const DIRECT_LEN_MIN: usize = 16 << 10;

/// Puts messages on `link`. The halves go to two threads; the closer ends both from any thread.
#[must_use]
pub fn split(
    link: Link,
) -> (
    MessageSender,
    MessageReceiver,
    Arc<dyn LinkCloser>,
    Arc<Counters>,
) {
    let counters = Arc::new(Counters::default());
    let sender = MessageSender {
        link: link.sender,
        encoder: Encoder::new(link.trusted_memory),
        parts: Vec::new(),
        len: 0,
        counters: Arc::clone(&counters),
    };
    let receiver = MessageReceiver {
        link: link.receiver,
        decoder: Decoder::new(link.trusted_memory),
        buffers: RecycledBuffers::default(),
        partial: None,
        begun: None,
        idle_limit: HANDSHAKE_LIMIT,
        counters: Arc::clone(&counters),
        peer: link.peer,
    };
    (sender, receiver, link.closer, counters)
}

/// The link below, for a connection that goes on without messages of its own.
///
/// # Errors
///
/// [`ErrorKind::Protocol`]: the peer has sent more than the messages that were received.
/// [`ErrorKind::Io`], [`ErrorKind::Closed`]: what was sent last could not be handed over.
pub fn unsplit(
    mut sender: MessageSender,
    receiver: MessageReceiver,
    closer: Arc<dyn LinkCloser>,
) -> Result<Link> {
    sender.flush()?;
    if !receiver.decoder.is_between_frames() || receiver.partial.is_some() {
        return Err(Error::new(
            ErrorKind::Protocol,
            "peer goes on before it may",
        ));
    }
    Ok(Link {
        sender: sender.link,
        receiver: receiver.link,
        closer,
        trusted_memory: false,
        peer: receiver.peer,
    })
}

/// The sending half.
///
/// Messages that were sent and not flushed are lost when it is dropped.
pub struct MessageSender {
    link: Box<dyn LinkSender>,
    encoder: Encoder,
    /// Frames that wait for the next write, in pieces.
    parts: Vec<Bytes>,
    /// Bytes in `parts`.
    len: usize,
    counters: Arc<Counters>,
}

impl MessageSender {
    /// Sends a message, now or together with later ones: at once when [`COALESCE_LEN`] bytes wait,
    /// else by [`Self::flush`]. Blocks while the peer takes nothing. A payload is shared, not
    /// copied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`]: the message breaks a limit, nothing was sent. Of the link:
    /// [`ErrorKind::Closed`], [`ErrorKind::TimedOut`], [`ErrorKind::Io`]; it is of no more use
    /// then.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        let known = self.parts.len();
        self.encoder.encode(message, &mut self.parts)?;
        self.len += self.parts[known..].iter().map(Bytes::len).sum::<usize>();
        if self.len >= COALESCE_LEN {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Hands all that waits to the link.
    ///
    /// # Errors
    ///
    /// Those of the link, as for [`Self::send`].
    pub fn flush(&mut self) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let sent = self.link.send(&self.parts);
        self.parts.clear();
        let len = std::mem::take(&mut self.len);
        sent.map_err(|e| Error::io("send to the peer", e))?;
        self.counters.add_out(len as u64);
        Ok(())
    }
}

/// The receiving half.
pub struct MessageReceiver {
    link: Box<dyn LinkReceiver>,
    decoder: Decoder,
    buffers: RecycledBuffers,
    partial: Option<PartialPayload>,
    /// When the first bytes of the frame came that is not complete, and how many came since.
    begun: Option<(Instant, u64)>,
    idle_limit: Duration,
    counters: Arc<Counters>,
    peer: String,
}

impl MessageReceiver {
    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`]: the peer or this side closed the link. [`ErrorKind::TimedOut`]:
    /// nothing came for the idle limit, or a frame came slower than [`FRAME_RATE_MIN`].
    /// [`ErrorKind::Protocol`]: the peer broke a rule. [`ErrorKind::Io`]: the system refused a
    /// read.
    pub fn recv(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.decoder.next()? {
                self.begun = None;
                return Ok(message);
            }
            self.fill()?;
        }
    }

    /// Sets how long [`Self::recv`] waits for the next bytes; [`HANDSHAKE_LIMIT`] on a new link.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the system refuses.
    pub fn set_idle_limit(&mut self, limit: Duration) -> Result<()> {
        self.idle_limit = limit;
        self.link
            .set_idle_limit(limit)
            .map_err(|e| Error::io("set the idle limit", e))
    }

    /// The peer's address, for reports.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Waits for a message that must be complete before `deadline`, however it trickles in.
    pub(crate) fn recv_before(&mut self, deadline: Instant) -> Result<Message> {
        loop {
            if let Some(message) = self.decoder.next()? {
                self.begun = None;
                return Ok(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::TimedOut, "peer is too slow"));
            }
            self.set_idle_limit(left)?;
            self.fill()?;
        }
    }

    /// Gets more bytes from the link to the decoder.
    fn fill(&mut self) -> Result<()> {
        let came = match (self.begin_direct(), self.link.stream()) {
            (Some(mut partial), Some(stream)) => {
                let read = stream.read(&mut partial.buf[partial.filled..partial.len]);
                partial.filled += *read.as_ref().unwrap_or(&0);
                if partial.filled == partial.len {
                    self.decoder
                        .push(self.buffers.hand_out(partial.buf, partial.len));
                } else {
                    self.partial = Some(partial);
                }
                read
            }
            _ => self.link.recv().map(|chunk| {
                let chunk = chunk.unwrap_or_default();
                let len = chunk.len();
                self.decoder.push(chunk);
                len
            }),
        };
        match came {
            Ok(0) => {
                let within = self.decoder.is_between_frames() && self.partial.is_none();
                let place = if within {
                    "between frames"
                } else {
                    "within a frame"
                };
                Err(Error::new(
                    ErrorKind::Closed,
                    format!("peer closed the link {place}"),
                ))
            }
            Ok(len) => self.count(len as u64),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(Error::io("receive from the peer", e)),
        }
    }

    /// The payload that is to be read straight into its place: the one that was begun so, or the
    /// one at the front when enough of it is missing and the link has a stream to read from.
    fn begin_direct(&mut self) -> Option<PartialPayload> {
        if self.partial.is_some() {
            return self.partial.take();
        }
        let (len, filled) = self.decoder.begun_payload()?;
        if len - filled < DIRECT_LEN_MIN || self.link.stream().is_none() {
            return None;
        }
        let mut buf = self.buffers.take(len);
        self.decoder.take_rest(&mut buf);
        Some(PartialPayload { buf, filled, len })
    }

    /// Counts what came; a frame that trickles in must not keep this side for ever.
    fn count(&mut self, len: u64) -> Result<()> {
        self.counters.add_in(len);
        let now = Instant::now();
        let (since, begun_len) = self.begun.get_or_insert((now, 0));
        *begun_len = begun_len.saturating_add(len);
        let limit = self
            .idle_limit
            .saturating_add(Duration::from_secs(*begun_len / FRAME_RATE_MIN));
        if now.saturating_duration_since(*since) > limit {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "peer sends a frame too slowly",
            ));
        }
        Ok(())
    }
}

/// A payload on its way from the kernel to its own place.
struct PartialPayload {
    buf: BytesMut,
    /// Bytes that are there; below `len`.
    filled: usize,
    /// Bytes of the payload; at most the length of `buf`.
    len: usize,
}
