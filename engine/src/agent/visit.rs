//! One peer, from hello to goodbye.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use failback_transport as wire;
use failback_transport::link::{HANDSHAKE_LIMIT, IDLE_LIMIT, Link, Shape};
use failback_transport::{Access, Compress, Message, OpenRequest, Role, SessionParams, Task};

use super::grant::{Grant, Grants, OpenGrant};
use super::joining::Joins;
use super::planning::{Asked, Planning};
use super::steering::steer;
use crate::abort::{Abort, CancelToken};
use crate::disk::{DiskInfo, NewDisk, Source, open_source};
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::event::{Event, Observer};
use crate::hash::HashKind;
use crate::operation::{
    HostedTarget, MapUse, PlannedTarget, SOFTWARE, forget_liar, in_one, in_shape, new_disk,
    prospect_of, refuse_mixed_source, source_map,
};
use crate::step::Step;
use crate::sync::{
    KEEP_ALIVE, Session, SessionLink, SessionOptions, SideMap, Until, run_source, run_target,
};
use crate::units::BlockSize;

/// Highest zstd level that a peer can make this host compress at: some 200 MB/s a core.
pub(super) const ZSTD_LEVEL_MAX: i8 = 3;

/// Messages of a peer of another version that are taken until it hangs up.
const UNREAD_MAX: usize = 4;

/// Serves one peer to the end, and tells the observer how it ended.
pub(super) fn receive_peer(
    link: Link,
    shape: Shape,
    host: (&Grants, &Joins),
    observer: &dyn Observer,
    cancel: &CancelToken,
) {
    let peer = link.peer.clone();
    let conversation =
        in_shape(link, shape).and_then(|link| converse(link, host, observer, cancel));
    let outcome = match conversation {
        Ok(()) => "done".to_owned(),
        Err(error) => error.chain(),
    };
    observer.event(&Event::SessionEnded { peer, outcome });
}

/// A granted disk that is open.
enum OpenDisk {
    Read(Arc<dyn Source>),
    Write(Box<HostedTarget>),
    /// For a plan.
    Look(PlannedTarget),
}

/// What a peer has opened.
struct Visited {
    disk: OpenDisk,
    map: SideMap,
    params: SessionParams,
    grant: String,
    _granted: OpenGrant,
}

impl OpenDisk {
    fn info(&self) -> DiskInfo {
        match self {
            Self::Read(disk) => disk.info(),
            Self::Write(target) => target.info(),
            Self::Look(target) => target.info(),
        }
    }

    fn is_new(&self) -> bool {
        match self {
            Self::Read(_) => false,
            Self::Write(target) => target.is_new(),
            Self::Look(target) => target.is_new(),
        }
    }

    fn is_partial(&self) -> bool {
        matches!(self, Self::Write(target) if target.is_partial())
    }

    /// `None`: it is not there yet.
    fn source(&self) -> Option<&dyn Source> {
        match self {
            Self::Read(disk) => Some(disk.as_ref()),
            Self::Write(target) => target.source(),
            Self::Look(target) => target.source(),
        }
    }
}

fn converse(
    link: Link,
    host: (&Grants, &Joins),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let peer = link.peer.clone();
    let (mut sender, mut receiver, closer, _) = wire::split(link);
    if let Err(error) = wire::handshake(&mut sender, &mut receiver, SOFTWARE) {
        // A client asks before it has heard. Closing a socket with unread input would destroy the
        // hello that tells it why not.
        receiver
            .set_idle_limit(HANDSHAKE_LIMIT)
            .map_err(peer_error)?;
        let mut left = match error.kind() {
            wire::ErrorKind::Version => UNREAD_MAX,
            _ => 0,
        };
        while left > 0 && receiver.recv().is_ok() {
            left -= 1;
        }
        return Err(peer_error(error));
    }
    // Until it has named a disk a peer is only a cost.
    receiver
        .set_idle_limit(HANDSHAKE_LIMIT)
        .map_err(peer_error)?;
    let mut link = SessionLink {
        sender,
        receiver,
        closer,
        peer,
    };
    let asked = link.hear(HANDSHAKE_LIMIT);
    if let Ok(Message::Join { token }) = &asked {
        let joins = host.1;
        return match joins.join(&mut link, token) {
            Ok(()) => joins.hand_over(link, token),
            Err(error) => refuse(link, error),
        };
    }
    if let Ok(Message::Control(request)) = asked {
        return match host.0.pair(&request.name) {
            Ok(pair) => steer(link, (request, pair), observer, cancel),
            Err(error) => refuse(link, error),
        };
    }
    match asked.and_then(|asked| prepare(&mut link, asked, host, (observer, cancel))) {
        Ok(Some(visited)) => run(visited, link, observer, cancel),
        // It was told all that it wanted to know.
        Ok(None) => Ok(()),
        Err(error) => refuse(link, error),
    }
}

fn prepare(
    link: &mut SessionLink,
    asked: Message,
    (grants, joins): (&Grants, &Joins),
    (observer, cancel): (&dyn Observer, &CancelToken),
) -> Result<Option<Visited>> {
    let Message::Open(request) = asked else {
        return Err(out_of_place());
    };
    let (granted, disk, (map, standing)) = while_alive(link, KEEP_ALIVE, || {
        let step = Step {
            job: "agent",
            name: "open-disk",
            observer,
            cancel,
        };
        let granted = grants.open(&request.name, &step)?;
        let disk = open(&granted.grant, &request, cancel)?;
        let wanted = request.map.as_ref().map(MapUse::from_wire).transpose()?;
        let (path, state) = (&granted.grant.path, granted.grant.state.as_deref());
        let map = match (&disk, &granted.maps) {
            (OpenDisk::Read(disk), Some(maps)) => {
                maps.side(wanted.as_ref(), disk.info().virtual_size)
            }
            (OpenDisk::Read(disk), None) => source_map(path, state, wanted.as_ref(), disk.as_ref()),
            (OpenDisk::Write(target), _) => target.map(path, state, wanted.as_ref()),
            (OpenDisk::Look(target), _) => (SideMap::default(), target.standing(wanted.as_ref())),
        };
        Ok((granted, disk, map))
    })?;
    let joinable = request.links.map(|group| joins.open(&group)).transpose()?;
    let info = disk.info();
    let opened = Message::Opened(wire::DiskInfo {
        format: info.format,
        virtual_size: info.virtual_size,
        logical_sector_size: info.logical_sector_size.unwrap_or(0),
        identity: info.identity,
        is_new: disk.is_new(),
        is_partial: disk.is_partial(),
        allocated_bytes: 0,
        map: standing.to_wire(),
    });
    link.say(&opened)?;
    link.receiver
        .set_idle_limit(IDLE_LIMIT)
        .map_err(peer_error)?;
    match hear_start(link, &disk, &granted.grant)? {
        Message::Start(params) => {
            if let Some(joinable) = joinable {
                // This one has done its part; also a refusal goes the new way from here.
                *link = in_one(joinable.take()?)?.0;
            }
            let is_change = matches!(params.task, Task::Delta | Task::Full);
            if is_change && params.peer_role == Role::Source {
                refuse_mixed_source(&granted.grant.path)?;
                // Not before: until here it may have been a plan.
                forget_liar(&map, &standing);
            }
            let map = fitting(map, &request, &params);
            Ok(Some(Visited {
                disk,
                map,
                params,
                grant: request.name,
                _granted: granted,
            }))
        }
        Message::Bye => Ok(None),
        _ => Err(out_of_place()),
    }
}

/// The first message that is no question of planning; those before it are answered.
fn hear_start(link: &mut SessionLink, disk: &OpenDisk, grant: &Grant) -> Result<Message> {
    let mut planning = Planning::new();
    let asked = Asked {
        disk: disk.source(),
        likely: &|| prospect_of(&grant.path, grant.state.as_deref()),
    };
    let until = Instant::now() + IDLE_LIMIT;
    loop {
        let message = link.hear(until.saturating_duration_since(Instant::now()))?;
        let answer = while_alive(link, KEEP_ALIVE, || planning.answer(&message, &asked))?;
        match answer {
            Some(answer) => link.say(&answer)?,
            None => return Ok(message),
        }
    }
}

/// The map that was asked for, if it is one for this session.
fn fitting(map: SideMap, request: &OpenRequest, params: &SessionParams) -> SideMap {
    let asked = request.map.map(|wish| (wish.hash, wish.block_size));
    match asked == Some((params.hash, params.block_size)) {
        true => map,
        false => SideMap::default(),
    }
}

/// Does what may take long, and tells the peer now and then that it goes on.
fn while_alive<T>(link: &mut SessionLink, every: Duration, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = bounded::<()>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while is_done.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // Whoever has gone meanwhile is missed when the work is done.
                drop(link.say(&Message::KeepAlive));
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn open(grant: &Grant, request: &OpenRequest, cancel: &CancelToken) -> Result<OpenDisk> {
    if request.access == Access::Read {
        return Ok(OpenDisk::Read(open_source(&grant.path, &grant.open)?));
    }
    if !grant.is_writable {
        let message = format!(
            "disk `{}` is granted for reading only",
            crate::error::one_line(&request.name)
        );
        return Err(Error::new(ErrorKind::NotGranted, message));
    }
    let state = grant.state.as_deref();
    let wanted = || wanted_disk(grant, request.create);
    if request.access == Access::Plan {
        return PlannedTarget::open(&grant.path, &grant.open, state, wanted).map(OpenDisk::Look);
    }
    let until = Instant::now() + LET_GO_MAX;
    loop {
        match HostedTarget::open(&grant.path, &grant.open, state, wanted, cancel) {
            Err(error) if error.kind() == ErrorKind::InUse && Instant::now() < until => {
                std::thread::sleep(LET_GO_POLL);
            }
            opened => return Ok(OpenDisk::Write(Box::new(opened?))),
        }
    }
}

/// A session before this one has given its answer and may not have let go of the disk yet: who
/// syncs twice in a row is not to be told that somebody has it.
const LET_GO_MAX: Duration = Duration::from_secs(1);
const LET_GO_POLL: Duration = Duration::from_millis(10);

/// What a first sync makes, if the grant lets it.
fn wanted_disk(grant: &Grant, create: Option<wire::NewDisk>) -> Result<NewDisk> {
    let (Some(create), Some(max)) = (create, grant.create_max) else {
        let message = "the granted disk does not exist, and the grant has no max=SIZE to make it";
        return Err(Error::new(ErrorKind::NotGranted, message));
    };
    if create.size > max {
        let message = format!(
            "a new disk of {} bytes is more than the grant's {max}",
            create.size
        );
        return Err(Error::new(ErrorKind::NotGranted, message));
    }
    let source = DiskInfo {
        format: String::new(),
        virtual_size: create.size,
        logical_sector_size: (create.logical_sector_size != 0)
            .then_some(create.logical_sector_size),
        image_block_size: (create.block_size_hint != 0).then_some(create.block_size_hint),
        identity: String::new(),
        warnings: Vec::new(),
    };
    new_disk(&grant.path, None, &source)
}

fn run(
    visited: Visited,
    link: SessionLink,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let Visited {
        disk,
        map,
        params,
        grant,
        _granted,
    } = visited;
    let params = &params;
    let store = map.store.clone();
    let session =
        match options(params).and_then(|options| Session::new(options, disk.info().virtual_size)) {
            Ok(session) => session.with_map(map),
            Err(error) => return refuse(link, error),
        };
    let is_change = matches!(params.task, Task::Delta | Task::Full);
    let role = if params.peer_role == Role::Source {
        "source"
    } else {
        "target"
    };
    observer.event(&Event::SessionStarted {
        peer: link.peer.clone(),
        grant: crate::error::one_line(&grant),
        role,
    });
    let abort = Arc::new(Abort::with_cancel(cancel));
    let ended = match (disk, params.peer_role, is_change) {
        (OpenDisk::Read(disk), Role::Source, _) => {
            run_source(&session, disk.as_ref(), link, &abort).map(drop)
        }
        (OpenDisk::Read(disk), Role::Target, false) => {
            run_target(&session, disk.as_ref(), None, link, &abort).map(drop)
        }
        (OpenDisk::Write(target), Role::Target, true) => {
            target.run(&session, link.into(), &abort).map(drop)
        }
        _ => refuse(
            link,
            Error::new(ErrorKind::NotGranted, "the disk was not opened for this"),
        ),
    };
    if let (Err(error), Some(store)) = (&ended, store)
        && error.kind() == ErrorKind::MapRejected
        && !error.is_from_peer()
    {
        store.remove();
    }
    ended
}

/// Tells the peer why not. Told, not expected to arrive: the peer may be the reason.
pub(super) fn refuse<T>(mut link: SessionLink, error: Error) -> Result<T> {
    drop(link.say(&Message::Failure(error.to_wire())));
    Err(error)
}

fn options(params: &SessionParams) -> Result<SessionOptions> {
    if params.task == Task::Map {
        let message = "this release does not serve maps";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(SessionOptions {
        task: params.task,
        hash: hash_kind(params.hash),
        block_size: BlockSize::new(params.block_size.into())?,
        verify: params.verify,
        // The peer asks, this host pays: a level is a matter of its own processors.
        compress: match params.compress {
            Compress::Zstd(level) => Compress::Zstd(level.clamp(1, ZSTD_LEVEL_MAX)),
            other @ (Compress::Off | Compress::Auto) => other,
        },
        sub_hash_seed: params.sub_hash_seed,
        apply: params.apply,
        container: params.container,
        goes_on: params.goes_on,
        until: Until::End,
        source_mark: params.source_mark,
        target_root: params.target_root,
        may_send_whole: params.may_send_whole,
    })
}

pub(super) fn hash_kind(kind: wire::HashKind) -> HashKind {
    match kind {
        wire::HashKind::Blake3 => HashKind::Blake3,
        wire::HashKind::Xxh3 => HashKind::Xxh3,
    }
}

pub(super) fn out_of_place() -> Error {
    Error::new(ErrorKind::Protocol, "peer: a message out of place")
}

#[cfg(test)]
mod tests {
    use super::*;
    use failback_transport::link::loopback;

    // Goal: a peer is not left waiting while an earlier sync is brought to its end. Method: work
    // that ends when the peer has heard something.
    #[test]
    fn a_peer_hears_that_long_work_goes_on() {
        let (near, far) = loopback::pair();
        let peer = near.peer.clone();
        let (sender, receiver, closer, _) = wire::split(near);
        let mut link = SessionLink {
            sender,
            receiver,
            closer,
            peer,
        };
        let (_, mut heard, _, _) = wire::split(far);

        let first = while_alive(&mut link, Duration::from_millis(1), || heard.recv());

        assert!(matches!(first, Ok(Message::KeepAlive)));
    }
}
