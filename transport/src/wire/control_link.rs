//! The side of a source as a job of another host asks for it: machine, snapshots, fence.

use bytes::BytesMut;

use super::control::{check_name, check_text, check_token};
use super::digest::Digest;
use super::field::{Fault, Field, HeadReader, codes, fields};
use super::limit::{
    CONTROL_BLOCK_COUNT_MAX, CONTROL_DISK_COUNT_MAX, CONTROL_LIMIT_MS_MAX, CONTROL_NAME_LEN_MAX,
    CONTROL_SNAPSHOT_COUNT_MAX,
};

/// Asks the agent for control of a machine, instead of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlRequest {
    /// Name of the pair, as the agent's operator wrote it; 1 to
    /// [`NAME_LEN_MAX`](super::NAME_LEN_MAX) bytes.
    pub name: String,
    /// The job that asks; 1 to [`CONTROL_NAME_LEN_MAX`] bytes.
    pub job: String,
    /// The epoch that the job is in; 0: none, it only looks.
    pub epoch: u64,
    /// 16 random bytes that tell the job from another one of the same name.
    pub token: Digest,
}

/// What is controlled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlInfo {
    /// What the agent's side is called; 1 to [`CONTROL_NAME_LEN_MAX`] bytes.
    pub side: String,
    /// The pair's epoch as the agent knows it; 0: no job was there yet.
    pub epoch: u64,
    /// The side in charge in it; `None`: nobody may start the machine.
    pub authority: Option<String>,
    /// Whether something on the agent's host knows what changed on a disk since a snapshot.
    pub is_tracked: bool,
    /// What the machine's disks are called, all of them; at most [`CONTROL_DISK_COUNT_MAX`].
    pub disks: Vec<String>,
}

/// One question on a control link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAsk {
    /// The step of the job that it is asked for; 1 to [`CONTROL_NAME_LEN_MAX`] bytes.
    pub step: String,
    /// What is asked.
    pub what: ControlTask,
}

/// What is asked. Disks and snapshots are called by 1 to [`CONTROL_NAME_LEN_MAX`] bytes. Asked
/// again for the same step, each has the same effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlTask {
    /// Whether the machine has power.
    Power,
    /// Ask its guest to shut down, and wait for it.
    ShutDown {
        /// Milliseconds to wait at most, at most [`CONTROL_LIMIT_MS_MAX`].
        limit_ms: u64,
    },
    /// Take its power away.
    PowerOff,
    /// Start it, as the side that is in charge.
    Start {
        /// The epoch in which it is.
        epoch: u64,
    },
    /// Delete it.
    Delete,
    /// Freeze a disk.
    Snapshot {
        /// The disk.
        disk: String,
        /// What the snapshot is called within the job.
        snapshot: String,
    },
    /// Let a snapshot go.
    Release {
        /// The disk.
        disk: String,
        /// What the snapshot is called within the job.
        snapshot: String,
    },
    /// Which snapshots of this job exist?
    List {
        /// The disk.
        disk: String,
    },
    /// Show that nobody writes to a disk.
    ProveQuiet {
        /// The disk.
        disk: String,
    },
    /// Begin an epoch.
    Advance {
        /// Its number.
        epoch: u64,
        /// The side in charge in it; `None`: nobody.
        authority: Option<String>,
    },
    /// Make the map of a disk of that of a snapshot, which a session has left, and of what changed
    /// since.
    Hint {
        /// The disk.
        disk: String,
        /// What the snapshot is called within the job.
        since: String,
        /// The snapshot whose map is made; `None`: the disk, whose machine is off.
        now: Option<String>,
        /// Root of the snapshot's map.
        root: Digest,
    },
    /// Read all of a disk whose machine is off, and hold it against the map that a hint made.
    HoldAgainst {
        /// The disk.
        disk: String,
        /// Root of the map.
        root: Digest,
    },
    /// Delete a disk of a machine that was handed over.
    DeleteDisk {
        /// The disk.
        disk: String,
    },
    /// Remove what was kept of a disk for hints.
    ForgetMaps {
        /// The disk.
        disk: String,
    },
    /// Leave the map that has the root with a disk that was handed over, if there is one.
    KeepMap {
        /// The disk.
        disk: String,
        /// Root of the map.
        root: Digest,
        /// What told the disk from any other state when it had that root.
        identity: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAnswer {
    /// It is so.
    Done,
    /// Whether the machine has power.
    Power(ControlPower),
    /// A disk can be read under this name; 1 to [`NAME_LEN_MAX`](super::NAME_LEN_MAX) bytes.
    Granted {
        /// The name.
        name: String,
    },
    /// What the snapshots are called within the job; at most [`CONTROL_SNAPSHOT_COUNT_MAX`].
    Snapshots {
        /// Their names.
        names: Vec<String>,
    },
    /// What tells a disk in this state from any other; at most
    /// [`TEXT_LEN_MAX`](super::TEXT_LEN_MAX) bytes.
    Identity {
        /// For comparison only.
        text: String,
    },
    /// A map was made: the next session that wants maps believed goes by it.
    Hinted {
        /// Its root.
        root: Digest,
        /// Bytes that were read for it.
        read: u64,
    },
    /// No map was made.
    Unhinted {
        /// Why not: a code, 1 to [`CONTROL_NAME_LEN_MAX`] bytes.
        why: String,
    },
    /// All of a disk was read.
    Held {
        /// Bytes that were read.
        read: u64,
        /// Whether the disk is what the map says.
        is_equal: bool,
        /// How many blocks are not; 0 also where the map was lost, and only its root tells.
        differing: u64,
        /// The first of them, ascending; at most [`CONTROL_BLOCK_COUNT_MAX`].
        first: Vec<u64>,
    },
}

/// Whether a machine has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ControlPower {
    /// It runs, or holds its disks.
    On,
    /// It does not.
    Off,
}

impl ControlRequest {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_name(&self.name, 1)?;
        check_short(&self.job)?;
        check_token(&self.token)
    }
}

impl ControlInfo {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_short(&self.side)?;
        self.authority.as_deref().map_or(Ok(()), check_short)?;
        if self.disks.len() > usize::from(CONTROL_DISK_COUNT_MAX) {
            return Err("too many disks");
        }
        self.disks.iter().try_for_each(|name| check_short(name))
    }
}

impl ControlAsk {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_short(&self.step)?;
        self.what.check()
    }
}

impl ControlTask {
    fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Power | Self::PowerOff | Self::Start { .. } | Self::Delete => Ok(()),
            Self::ShutDown { limit_ms } => match *limit_ms <= CONTROL_LIMIT_MS_MAX {
                true => Ok(()),
                false => Err("a time limit is too long"),
            },
            Self::Snapshot { disk, snapshot } | Self::Release { disk, snapshot } => {
                check_short(disk)?;
                check_short(snapshot)
            }
            Self::List { disk }
            | Self::ProveQuiet { disk }
            | Self::HoldAgainst { disk, .. }
            | Self::ForgetMaps { disk }
            | Self::DeleteDisk { disk } => check_short(disk),
            Self::KeepMap { disk, identity, .. } => {
                check_short(disk)?;
                check_text(identity)
            }
            Self::Hint {
                disk, since, now, ..
            } => {
                check_short(disk)?;
                check_short(since)?;
                now.as_deref().map_or(Ok(()), check_short)
            }
            Self::Advance { authority, .. } => authority.as_deref().map_or(Ok(()), check_short),
        }
    }
}

impl ControlAnswer {
    pub(super) fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Done | Self::Power(_) => Ok(()),
            Self::Granted { name } => check_name(name, 1),
            Self::Snapshots { names } => {
                if names.len() > usize::from(CONTROL_SNAPSHOT_COUNT_MAX) {
                    return Err("too many snapshots");
                }
                names.iter().try_for_each(|name| check_short(name))
            }
            Self::Identity { text } => check_text(text),
            Self::Hinted { .. } => Ok(()),
            Self::Unhinted { why } => check_short(why),
            Self::Held { first, .. } => match first.len() <= usize::from(CONTROL_BLOCK_COUNT_MAX) {
                true => Ok(()),
                false => Err("too many blocks"),
            },
        }
    }
}

fn check_short(name: &str) -> Result<(), Fault> {
    match (1..=CONTROL_NAME_LEN_MAX).contains(&name.len()) {
        true => Ok(()),
        false => Err("bad name length"),
    }
}

fields!(ControlRequest {
    name,
    job,
    epoch,
    token
});
fields!(ControlAsk { step, what });
codes!(ControlPower { On = 0, Off = 1 });

impl Field for ControlInfo {
    fn put(&self, out: &mut BytesMut) {
        self.side.put(out);
        self.epoch.put(out);
        self.authority.put(out);
        self.is_tracked.put(out);
        put_list(&self.disks, out);
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            side: Field::take(input)?,
            epoch: Field::take(input)?,
            authority: Field::take(input)?,
            is_tracked: Field::take(input)?,
            disks: take_list(input, CONTROL_DISK_COUNT_MAX)?,
        })
    }
}

/// One byte for the kind, then its fields.
impl Field for ControlTask {
    fn put(&self, out: &mut BytesMut) {
        let code: u8 = match self {
            Self::Power => 0,
            Self::ShutDown { .. } => 1,
            Self::PowerOff => 2,
            Self::Start { .. } => 3,
            Self::Delete => 4,
            Self::Snapshot { .. } => 5,
            Self::Release { .. } => 6,
            Self::List { .. } => 7,
            Self::ProveQuiet { .. } => 8,
            Self::Advance { .. } => 9,
            Self::Hint { .. } => 10,
            Self::HoldAgainst { .. } => 11,
            Self::ForgetMaps { .. } => 12,
            Self::DeleteDisk { .. } => 13,
            Self::KeepMap { .. } => 14,
        };
        code.put(out);
        match self {
            Self::Power | Self::PowerOff | Self::Delete => {}
            Self::ShutDown { limit_ms } => limit_ms.put(out),
            Self::Start { epoch } => epoch.put(out),
            Self::Snapshot { disk, snapshot } | Self::Release { disk, snapshot } => {
                disk.put(out);
                snapshot.put(out);
            }
            Self::List { disk }
            | Self::ProveQuiet { disk }
            | Self::ForgetMaps { disk }
            | Self::DeleteDisk { disk } => disk.put(out),
            Self::Hint {
                disk,
                since,
                now,
                root,
            } => {
                disk.put(out);
                since.put(out);
                now.put(out);
                root.put(out);
            }
            Self::HoldAgainst { disk, root } => {
                disk.put(out);
                root.put(out);
            }
            Self::KeepMap {
                disk,
                root,
                identity,
            } => {
                disk.put(out);
                root.put(out);
                identity.put(out);
            }
            Self::Advance { epoch, authority } => {
                epoch.put(out);
                authority.put(out);
            }
        }
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        Ok(match u8::take(input)? {
            0 => Self::Power,
            1 => Self::ShutDown {
                limit_ms: Field::take(input)?,
            },
            2 => Self::PowerOff,
            3 => Self::Start {
                epoch: Field::take(input)?,
            },
            4 => Self::Delete,
            5 => Self::Snapshot {
                disk: Field::take(input)?,
                snapshot: Field::take(input)?,
            },
            6 => Self::Release {
                disk: Field::take(input)?,
                snapshot: Field::take(input)?,
            },
            7 => Self::List {
                disk: Field::take(input)?,
            },
            8 => Self::ProveQuiet {
                disk: Field::take(input)?,
            },
            9 => Self::Advance {
                epoch: Field::take(input)?,
                authority: Field::take(input)?,
            },
            10 => Self::Hint {
                disk: Field::take(input)?,
                since: Field::take(input)?,
                now: Field::take(input)?,
                root: Field::take(input)?,
            },
            11 => Self::HoldAgainst {
                disk: Field::take(input)?,
                root: Field::take(input)?,
            },
            12 => Self::ForgetMaps {
                disk: Field::take(input)?,
            },
            13 => Self::DeleteDisk {
                disk: Field::take(input)?,
            },
            14 => Self::KeepMap {
                disk: Field::take(input)?,
                root: Field::take(input)?,
                identity: Field::take(input)?,
            },
            _ => return Err("unknown ControlTask"),
        })
    }
}

/// One byte for the kind, then its fields.
impl Field for ControlAnswer {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Done => 0_u8.put(out),
            Self::Power(power) => {
                1_u8.put(out);
                power.put(out);
            }
            Self::Granted { name } => {
                2_u8.put(out);
                name.put(out);
            }
            Self::Snapshots { names } => {
                3_u8.put(out);
                put_list(names, out);
            }
            Self::Identity { text } => {
                4_u8.put(out);
                text.put(out);
            }
            Self::Hinted { root, read } => {
                5_u8.put(out);
                root.put(out);
                read.put(out);
            }
            Self::Unhinted { why } => {
                6_u8.put(out);
                why.put(out);
            }
            Self::Held {
                read,
                is_equal,
                differing,
                first,
            } => {
                7_u8.put(out);
                read.put(out);
                is_equal.put(out);
                differing.put(out);
                put_list(first, out);
            }
        }
    }

    fn take(input: &mut HeadReader<'_>) -> Result<Self, Fault> {
        Ok(match u8::take(input)? {
            0 => Self::Done,
            1 => Self::Power(Field::take(input)?),
            2 => Self::Granted {
                name: Field::take(input)?,
            },
            3 => Self::Snapshots {
                names: take_list(input, CONTROL_SNAPSHOT_COUNT_MAX)?,
            },
            4 => Self::Identity {
                text: Field::take(input)?,
            },
            5 => Self::Hinted {
                root: Field::take(input)?,
                read: Field::take(input)?,
            },
            6 => Self::Unhinted {
                why: Field::take(input)?,
            },
            7 => Self::Held {
                read: Field::take(input)?,
                is_equal: Field::take(input)?,
                differing: Field::take(input)?,
                first: take_list(input, CONTROL_BLOCK_COUNT_MAX)?,
            },
            _ => return Err("unknown ControlAnswer"),
        })
    }
}

/// Its length in one byte, then what is in it.
fn put_list<T: Field>(list: &[T], out: &mut BytesMut) {
    u8::try_from(list.len())
        .expect("lists were checked against their limits")
        .put(out);
    list.iter().for_each(|one| one.put(out));
}

fn take_list<T: Field>(input: &mut HeadReader<'_>, count_max: u8) -> Result<Vec<T>, Fault> {
    let count = u8::take(input)?;
    if count > count_max {
        return Err("a list is too long");
    }
    (0..count).map(|_| T::take(input)).collect()
}
