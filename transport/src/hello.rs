//! The first words of a link: which version both speak.

use std::time::Instant;

use crate::channel::{MessageReceiver, MessageSender};
use crate::error::{Error, ErrorKind, Result};
use crate::link::{HANDSHAKE_LIMIT, IDLE_LIMIT};
use crate::wire::{Hello, Message};

/// Lowest protocol version this release speaks.
pub const VERSION_MIN: u16 = 7;

/// Highest protocol version this release speaks.
///
/// - 1: the first one; never in a release.
/// - 2: `Start` says how the target is changed, `Result` what was found of an earlier session.
/// - 3: what keeps the target's new content until all is there: asked for in `Start`, told in
///   `Result`; a full copy can go on with what one that was cut off has left.
/// - 4: saved maps: asked for in `Open`, told in `Opened`; `End` and `Result` count what was not
///   read because of them. A client need not wait for `Hello` before `Open`, nor begin a session.
/// - 5: `Want` names the pieces that the source has, `SubHashes` says which of them may differ.
/// - 5: between `Opened` and `Start` a client may ask for a survey and a sample of the disk, and
///   measure the link; a disk can be opened to plan.
/// - 5: the source may decide while it runs whether it compresses; a session may have several
///   connections.
/// - 6: instead of a disk a client may ask for the machine of a pair, and control it.
/// - 6: `Want` may announce a block without asking about it, as `Start` allows; `Replan` says that
///   the source does that from here on, `End` how much of it there was.
/// - 7: a survey says how fast the disk was in the syncs before.
pub const VERSION_MAX: u16 = 7;

/// Optional features of this release, one bit each; none yet.
pub const FEATURES: u64 = 0;

/// What both sides can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Highest version that both speak.
    pub version: u16,
    /// Features that both have.
    pub features: u64,
    /// What the peer calls its program. Foreign text: escape it before it is printed.
    pub peer_software: String,
}

/// Says hello and hears it: both sides call this at once, before anything else is sent. Within
/// [`HANDSHAKE_LIMIT`]; afterwards the idle limit is [`IDLE_LIMIT`]. `software`: name and version
/// of the calling program, at most [`NAME_LEN_MAX`](crate::NAME_LEN_MAX) bytes.
///
/// # Errors
///
/// [`ErrorKind::Version`]: no common version; the message names both ranges.
/// [`ErrorKind::Protocol`]: the peer begins with something else. [`ErrorKind::TimedOut`],
/// [`ErrorKind::Closed`], [`ErrorKind::Io`]: of the link.
pub fn handshake(
    sender: &mut MessageSender,
    receiver: &mut MessageReceiver,
    software: &str,
) -> Result<Negotiated> {
    handshake_ahead(sender, receiver, software, None)
}

/// As [`handshake`]; `ahead` is sent with the hello, for a client that knows what it wants: one
/// round trip less. A peer of another version does not look at it.
///
/// # Errors
///
/// As [`handshake`].
pub fn handshake_ahead(
    sender: &mut MessageSender,
    receiver: &mut MessageReceiver,
    software: &str,
    ahead: Option<&Message>,
) -> Result<Negotiated> {
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let ours = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        features: FEATURES,
        software: software.to_owned(),
    };
    sender.send(&Message::Hello(ours.clone()))?;
    if let Some(message) = ahead {
        sender.send(message)?;
    }
    sender.flush()?;
    let theirs = match receiver.recv_before(deadline)? {
        Message::Hello(hello) => hello,
        Message::Failure(failure) => {
            let context = format!("peer refused to talk: {}", failure.message.escape_debug());
            return Err(Error::new(ErrorKind::Protocol, context));
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Protocol,
                "peer does not begin with hello",
            ));
        }
    };
    receiver.set_idle_limit(IDLE_LIMIT)?;
    agree(&ours, theirs)
}

/// The highest version in both ranges; no I/O.
fn agree(ours: &Hello, theirs: Hello) -> Result<Negotiated> {
    let version = ours.version_max.min(theirs.version_max);
    if version < ours.version_min.max(theirs.version_min) {
        let context = format!(
            "no common protocol version: this side speaks {} to {}, {} speaks {} to {}",
            ours.version_min,
            ours.version_max,
            theirs.software.escape_debug(),
            theirs.version_min,
            theirs.version_max,
        );
        return Err(Error::new(ErrorKind::Version, context));
    }
    let features = ours.features & theirs.features;
    Ok(Negotiated {
        version,
        features,
        peer_software: theirs.software,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version_min: u16, version_max: u16, features: u64) -> Hello {
        Hello {
            version_min,
            version_max,
            features,
            software: "peer 2".to_owned(),
        }
    }

    // Goal: the newest common version and only common features are used.
    #[test]
    fn highest_common_version_is_taken() {
        let agreed = agree(&hello(1, 4, 0b0110), hello(2, 3, 0b0011)).unwrap();
        assert_eq!(agreed.version, 3);
        assert_eq!(agreed.features, 0b0010);
    }

    // Goal: a mismatch says what each side speaks, whichever is the newer one.
    #[test]
    fn mismatch_names_both_ranges() {
        let older = agree(&hello(1, 2, 0), hello(3, 7, 0)).unwrap_err();
        let newer = agree(&hello(3, 7, 0), hello(1, 2, 0)).unwrap_err();
        assert_eq!(older.kind(), ErrorKind::Version);
        assert_eq!(newer.kind(), ErrorKind::Version);
        assert_eq!(
            older.to_string(),
            "no common protocol version: this side speaks 1 to 2, peer 2 speaks 3 to 7"
        );
    }
}
