//! The client's side of a conversation with an agent, up to the start of a session.

use std::sync::Arc;
use std::time::Duration;

use failback_transport as wire;
use failback_transport::link::{
    HANDSHAKE_LIMIT, IDLE_LIMIT, Link, Shape, bundle, shaped, tcp, unix,
};
use failback_transport::{Counters, Digest, LinkGroup, Message, OpenRequest, Role, SessionParams};

use super::maps::{MapStanding, MapUse};
use crate::disk::DiskInfo;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::sync::{SessionLink, SessionOptions};

/// Name and version that peers are told.
pub(crate) const SOFTWARE: &str = concat!("failback ", env!("CARGO_PKG_VERSION"));

/// A link to an agent on which both have shaken hands.
pub(crate) struct Connection {
    link: SessionLink,
    counters: Arc<Counters>,
    joining: Option<Joining>,
}

/// What the connections to an agent are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// What they are slowed down to; the rate is that of all connections of a session together.
    pub shape: Shape,
    /// How many a session has, 1 to [`LINKS_MAX`](wire::link::LINKS_MAX). With more than one, the
    /// connection that begins it is one more, and carries nothing afterwards.
    pub count: u8,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            count: 1,
        }
    }
}

/// Connections that a session is still to get.
struct Joining {
    endpoint: Endpoint,
    shape: Shape,
    group: LinkGroup,
}

/// What an agent opened.
pub(crate) struct Opened {
    pub(crate) info: DiskInfo,
    /// There was no such disk before.
    pub(crate) is_new: bool,
    /// A full copy that was cut off left something to go on with.
    pub(crate) is_partial: bool,
    /// What is known of the saved map of the disk.
    pub(crate) map: MapStanding,
}

/// An agent says that it lives while it brings an earlier sync to its end before it answers.
const OPEN_LIMIT: Duration = Duration::from_hours(6);

impl Connection {
    /// Connects to the agent of `endpoint` and asks for the disk, in one round trip.
    ///
    /// # Errors
    /// The agent's refusal, `PeerGone`, `Protocol`; `Refused` for an address that is not loopback;
    /// `Usage` for a path.
    pub(crate) fn open(
        endpoint: &Endpoint,
        access: wire::Access,
        create: Option<wire::NewDisk>,
        map: Option<&MapUse>,
        options: LinkOptions,
    ) -> Result<(Self, Opened)> {
        let link = connect(endpoint, options.shape)?;
        let grant = endpoint.name().expect("a path was refused before");
        let joining = (options.count > 1).then(|| Joining::new(endpoint, options));
        let request = Message::Open(OpenRequest {
            name: grant.to_owned(),
            access,
            create,
            map: map.map(|map| map.to_wire()),
            links: joining.as_ref().map(|joining| joining.group),
        });
        let (link, counters) = shake_hands(link, &request)?;
        let mut connection = Self {
            link,
            counters,
            joining,
        };
        let opened = connection.hear_opened()?;
        Ok((connection, opened))
    }

    fn hear_opened(&mut self) -> Result<Opened> {
        match self.link.hear(OPEN_LIMIT)? {
            Message::Opened(info) => Ok(Opened {
                info: from_wire(&info),
                is_new: info.is_new,
                is_partial: info.is_partial,
                map: MapStanding::from_wire(&info.map),
            }),
            _ => Err(out_of_place()),
        }
    }

    /// Asks a question and hears the answer.
    ///
    /// # Errors
    /// The agent's failure, `PeerGone`, `Protocol`.
    pub(super) fn ask(&mut self, question: &Message, limit: Duration) -> Result<Message> {
        self.link.say(question)?;
        self.link.hear(limit)
    }

    /// Ends the conversation without a session: there is nothing to do. Bytes that were sent and
    /// received.
    pub(crate) fn leave(mut self) -> (u64, u64) {
        // A courtesy, and lost with the link.
        drop(self.link.say(&Message::Bye));
        (self.counters.bytes_out(), self.counters.bytes_in())
    }

    /// Starts the session, in which the agent plays `peer_role`.
    ///
    /// # Errors
    /// `PeerGone`.
    pub(crate) fn start(
        mut self,
        options: &SessionOptions,
        peer_role: Role,
    ) -> Result<(SessionLink, Arc<Counters>)> {
        let start = Message::Start(to_wire(options, peer_role));
        let Some(joining) = self.joining else {
            self.link.say(&start)?;
            return Ok((self.link, self.counters));
        };
        let links = joining.connect()?;
        self.link.say(&start)?;
        in_one(links)
    }
}

/// Connects to the agent of `endpoint`, and sends what it is asked for with the hello.
///
/// # Errors
/// `PeerGone`, `Protocol`; `Refused` for an address that is not loopback; `Usage` for a path.
pub(crate) fn call(endpoint: &Endpoint, request: &Message) -> Result<SessionLink> {
    let link = connect(endpoint, Shape::default())?;
    shake_hands(link, request).map(|(link, _)| link)
}

impl Joining {
    fn new(endpoint: &Endpoint, options: LinkOptions) -> Self {
        let LinkOptions { shape, count } = options;
        Self {
            endpoint: endpoint.clone(),
            shape: Shape {
                bytes_per_second: shape.bytes_per_second.map(|rate| rate / u64::from(count)),
                ..shape
            },
            group: LinkGroup {
                count,
                token: Digest::from(uuid::Uuid::new_v4().into_bytes()),
            },
        }
    }

    /// All of them, at the same time.
    fn connect(&self) -> Result<Vec<Link>> {
        std::thread::scope(|scope| {
            let joining = (0..self.group.count).map(|_| scope.spawn(|| self.join()));
            let joining: Vec<_> = joining.collect();
            let joined = joining.into_iter();
            joined
                .map(|link| link.join().expect("errors are values here"))
                .collect()
        })
    }

    fn join(&self) -> Result<Link> {
        let link = connect(&self.endpoint, self.shape)?;
        let token = self.group.token;
        let (mut link, _) = shake_hands(link, &Message::Join { token })?;
        match link.hear(HANDSHAKE_LIMIT)? {
            Message::Joined => {
                let unsplit = wire::unsplit(link.sender, link.receiver, link.closer);
                unsplit.map_err(peer_error)
            }
            _ => Err(out_of_place()),
        }
    }
}

fn connect(endpoint: &Endpoint, shape: Shape) -> Result<Link> {
    let link = match endpoint {
        Endpoint::Path(path) => {
            return Err(Error::new(ErrorKind::Usage, "a path has no agent").path(path));
        }
        Endpoint::Unix { socket, .. } => unix::connect(socket),
        Endpoint::Tcp { address, .. } => tcp::connect(address),
    };
    in_shape(link.map_err(peer_error)?, shape)
}

/// Says hello, and at once what is wanted.
fn shake_hands(link: Link, request: &Message) -> Result<(SessionLink, Arc<Counters>)> {
    let (mut link, counters) = session_link(link);
    wire::handshake_ahead(
        &mut link.sender,
        &mut link.receiver,
        SOFTWARE,
        Some(request),
    )
    .map_err(peer_error)?;
    Ok((link, counters))
}

fn session_link(link: Link) -> (SessionLink, Arc<Counters>) {
    let peer = link.peer.clone();
    let (sender, receiver, closer, counters) = wire::split(link);
    let link = SessionLink {
        sender,
        receiver,
        closer,
        peer,
    };
    (link, counters)
}

/// Connections that have joined, as the one link of a session.
///
/// # Errors
/// `Io` when there are no threads for them.
pub(crate) fn in_one(links: Vec<Link>) -> Result<(SessionLink, Arc<Counters>)> {
    let link = bundle(links)
        .map_err(|error| Error::new(ErrorKind::Io, "join connections").caused_by(error))?;
    let (mut link, counters) = session_link(link);
    link.receiver
        .set_idle_limit(IDLE_LIMIT)
        .map_err(peer_error)?;
    Ok((link, counters))
}

fn out_of_place() -> Error {
    Error::new(ErrorKind::Protocol, "peer: a message out of place")
}

/// The link, slowed down.
///
/// # Errors
/// `Io` when there is no thread for a delay.
pub(crate) fn in_shape(link: Link, shape: Shape) -> Result<Link> {
    shaped(link, shape)
        .map_err(|error| Error::new(ErrorKind::Io, "shape the link").caused_by(error))
}

fn from_wire(info: &wire::DiskInfo) -> DiskInfo {
    DiskInfo {
        format: crate::error::one_line(&info.format),
        virtual_size: info.virtual_size,
        logical_sector_size: (info.logical_sector_size != 0).then_some(info.logical_sector_size),
        image_block_size: None,
        identity: crate::error::one_line(&info.identity),
        warnings: Vec::new(),
    }
}

fn to_wire(options: &SessionOptions, peer_role: Role) -> SessionParams {
    SessionParams {
        task: options.task,
        hash: match options.hash {
            crate::hash::HashKind::Blake3 => wire::HashKind::Blake3,
            crate::hash::HashKind::Xxh3 => wire::HashKind::Xxh3,
        },
        block_size: options.block_size.as_u32(),
        verify: options.verify,
        compress: options.compress,
        sub_hash_seed: options.sub_hash_seed,
        peer_role,
        apply: options.apply,
        container: options.container,
        goes_on: options.goes_on,
        source_mark: options.source_mark,
        target_root: options.target_root,
        may_send_whole: options.may_send_whole,
    }
}
