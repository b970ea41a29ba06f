//! Connections that belong to one session: they join by its token before it starts.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use failback_transport::link::{HANDSHAKE_LIMIT, Link};
use failback_transport::{Digest, LinkGroup, Message, unsplit};

use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::sync::SessionLink;

/// The sessions of an agent that connections may join.
#[derive(Default)]
pub(super) struct Joins {
    groups: Mutex<HashMap<Digest, Group>>,
    joined: Condvar,
}

struct Group {
    /// How many may still join.
    open: usize,
    /// How many join in all.
    count: usize,
    links: Vec<Link>,
}

/// A session that may be joined as long as this lives.
pub(super) struct Joinable<'a> {
    joins: &'a Joins,
    token: Digest,
}

impl Joins {
    /// Lets connections join by that token.
    ///
    /// # Errors
    /// `Refused` for a token that somebody else has named.
    pub(super) fn open(&self, group: &LinkGroup) -> Result<Joinable<'_>> {
        let count = usize::from(group.count);
        let mut groups = self.groups();
        if groups.contains_key(&group.token) {
            return Err(unknown_token());
        }
        let links = Vec::with_capacity(count);
        let open = count;
        groups.insert(group.token, Group { open, count, links });
        Ok(Joinable {
            joins: self,
            token: group.token,
        })
    }

    /// Adds a connection that asks for it, and tells it so.
    ///
    /// # Errors
    /// `Refused` for a token that nobody has named, and for more connections than were asked for;
    /// `PeerGone`, `Protocol`.
    pub(super) fn join(&self, link: &mut SessionLink, token: &Digest) -> Result<()> {
        let mut groups = self.groups();
        let group = groups.get_mut(token).filter(|group| group.open > 0);
        group.ok_or_else(unknown_token)?.open -= 1;
        drop(groups);
        link.say(&Message::Joined)
    }

    /// The connection is the session's from now on.
    ///
    /// # Errors
    /// `Refused` when the session has ended meanwhile, `Protocol` when the peer goes on too early.
    pub(super) fn hand_over(&self, link: SessionLink, token: &Digest) -> Result<()> {
        let SessionLink {
            sender,
            receiver,
            closer,
            ..
        } = link;
        let link = unsplit(sender, receiver, closer).map_err(peer_error)?;
        let mut groups = self.groups();
        let group = groups.get_mut(token).ok_or_else(unknown_token)?;
        group.links.push(link);
        self.joined.notify_all();
        Ok(())
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Digest, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Joinable<'_> {
    /// All connections of the session. Those that were told that they have joined may be on their
    /// way here still.
    ///
    /// # Errors
    /// `Protocol` when there are too few.
    pub(super) fn take(self) -> Result<Vec<Link>> {
        let until = Instant::now() + HANDSHAKE_LIMIT;
        let mut groups = self.joins.groups();
        while let Some(group) = groups.get_mut(&self.token) {
            if group.links.len() == group.count {
                return Ok(std::mem::take(&mut group.links));
            }
            let left = until.saturating_duration_since(Instant::now());
            if group.open > 0 || left.is_zero() {
                break;
            }
            let waited = self.joins.joined.wait_timeout(groups, left);
            groups = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let message = "peer: starts a session before all of its connections have joined";
        Err(Error::new(ErrorKind::Protocol, message))
    }
}

impl Drop for Joinable<'_> {
    fn drop(&mut self) {
        self.joins.groups().remove(&self.token);
    }
}

fn unknown_token() -> Error {
    let message = "no session waits for this connection";
    Error::new(ErrorKind::Refused, message)
}
