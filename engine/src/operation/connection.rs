//! The client's side of a conversation with an agent, up to the start of a session.

use std::sync::Arc;
use std::time::Duration;

use failback_transport as wire;
use failback_transport::link::{Link, Shape, shaped, tcp, unix};
use failback_transport::{Counters, Message, OpenRequest, Role, SessionParams};

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
        shape: Shape,
    ) -> Result<(Self, Opened)> {
        let (link, grant) = match endpoint {
            Endpoint::Path(path) => {
                return Err(Error::new(ErrorKind::Usage, "a path has no agent").path(path));
            }
            Endpoint::Unix { socket, name } => (unix::connect(socket), name),
            Endpoint::Tcp { address, name } => (tcp::connect(address), name),
        };
        let link = in_shape(link.map_err(peer_error)?, shape)?;
        let request = Message::Open(OpenRequest {
            name: grant.clone(),
            access,
            create,
            map: map.map(|map| map.to_wire()),
        });
        let mut connection = Self::shake_hands(link, &request)?;
        let opened = connection.hear_opened()?;
        Ok((connection, opened))
    }

    fn shake_hands(link: Link, request: &Message) -> Result<Self> {
        let peer = link.peer.clone();
        let (mut sender, mut receiver, closer, counters) = wire::split(link);
        wire::handshake_ahead(&mut sender, &mut receiver, SOFTWARE, Some(request))
            .map_err(peer_error)?;
        let link = SessionLink {
            sender,
            receiver,
            closer,
            peer,
        };
        Ok(Self { link, counters })
    }

    fn hear_opened(&mut self) -> Result<Opened> {
        match self.link.hear(OPEN_LIMIT)? {
            Message::Opened(info) => Ok(Opened {
                info: from_wire(&info),
                is_new: info.is_new,
                is_partial: info.is_partial,
                map: MapStanding::from_wire(&info.map),
            }),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "peer: a message out of place",
            )),
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
        self.link
            .say(&Message::Start(to_wire(options, peer_role)))?;
        Ok((self.link, self.counters))
    }
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
    }
}
