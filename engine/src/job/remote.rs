//! The side of a source that is on another host, behind an agent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fence::{Authority, Charge};
use super::host::{Hint, HintBase, SourceHost};
use super::spec::DiskSpec;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::hash::Digest;
use crate::machine::{Machine, Power};
use crate::map::CarriedMap;
use crate::operation::{Held, call};
use crate::snapshot::SnapshotId;
use crate::step::Step;
use crate::sync::SessionLink;
use crate::transport::link::HANDSHAKE_LIMIT;
use crate::transport::{
    ControlAnswer, ControlAsk, ControlInfo, ControlPower, ControlRequest, ControlTask, Message,
};

/// A source whose machine and disks are behind an agent.
///
/// Each question has a link of its own: one that broke tells nothing of the next, and nothing is
/// asked twice unless the job asks twice. A link that breaks before the answer is `PeerGone`;
/// whether the agent did what it was asked is not known then, and asking again has the same effect.
#[derive(Debug)]
pub struct RemoteHost {
    endpoint: Endpoint,
    side: String,
    charge: Mutex<Charge>,
}

impl RemoteHost {
    /// The source that is called `side`, behind the agent of `endpoint`, whose name is the pair.
    ///
    /// # Errors
    /// `Usage` for a path.
    pub fn new(endpoint: Endpoint, side: impl Into<String>) -> Result<Self> {
        if let Endpoint::Path(path) = &endpoint {
            return Err(Error::new(ErrorKind::Usage, "a path has no agent").path(path));
        }
        Ok(Self {
            endpoint,
            side: side.into(),
            charge: Mutex::default(),
        })
    }

    fn charge(&self) -> MutexGuard<'_, Charge> {
        self.charge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks on a link of its own.
    fn ask(&self, what: ControlTask, limit: Duration, step: &Step<'_>) -> Result<ControlAnswer> {
        let ask = ControlAsk {
            step: step.name.to_owned(),
            what,
        };
        self.visit(step, |link, _| {
            link.say(&Message::Ask(ask))?;
            match link.hear(limit)? {
                Message::Told(answer) => Ok(answer),
                _ => Err(out_of_place()),
            }
        })
    }

    fn visit<T>(
        &self,
        step: &Step<'_>,
        talk: impl FnOnce(&mut SessionLink, ControlInfo) -> Result<T>,
    ) -> Result<T> {
        step.check()?;
        let charge = *self.charge();
        let request = Message::Control(ControlRequest {
            name: self.endpoint.name().unwrap_or_default().to_owned(),
            job: step.job.to_owned(),
            epoch: charge.epoch,
            token: charge.token.into(),
        });
        let mut link = call(&self.endpoint, &request)?;
        let talked = while_not_cancelled(&mut link, step, |link| {
            let Message::Controlled(info) = link.hear(HANDSHAKE_LIMIT)? else {
                return Err(out_of_place());
            };
            if info.side != self.side {
                let message = format!(
                    "the agent's side is called `{}`, the job's source `{}`",
                    one_line(&info.side),
                    self.side
                );
                return Err(Error::new(ErrorKind::Refused, message));
            }
            talk(link, info)
        });
        if talked.is_ok() {
            // A courtesy, and lost with the link.
            drop(link.say(&Message::Bye));
        }
        match talked {
            Err(_) if step.cancel.is_cancelled() => step.check().and(talked),
            // Not by this job: it can be asked again.
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                let message = "the agent gave the question up";
                Err(Error::new(ErrorKind::PeerGone, message).caused_by(error))
            }
            talked => talked,
        }
    }

    fn ask_done(&self, what: ControlTask, step: &Step<'_>) -> Result<()> {
        match self.ask(what, ANSWER_MAX, step)? {
            ControlAnswer::Done => Ok(()),
            _ => Err(out_of_place()),
        }
    }

    fn ask_power(&self, what: ControlTask, limit: Duration, step: &Step<'_>) -> Result<Power> {
        match self.ask(what, limit, step)? {
            ControlAnswer::Power(ControlPower::On) => Ok(Power::On),
            ControlAnswer::Power(ControlPower::Off) => Ok(Power::Off),
            _ => Err(out_of_place()),
        }
    }
}

impl SourceHost for RemoteHost {
    fn machine(&self) -> &dyn Machine {
        self
    }

    fn snapshot(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<Endpoint> {
        let what = ControlTask::Snapshot {
            disk: disk.id.clone(),
            snapshot: id.name().to_owned(),
        };
        match self.ask(what, ANSWER_MAX, step)? {
            ControlAnswer::Granted { name } if !name.chars().any(char::is_control) => {
                Ok(self.endpoint.with_name(name))
            }
            _ => Err(out_of_place()),
        }
    }

    fn release(&self, disk: &DiskSpec, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        let what = ControlTask::Release {
            disk: disk.id.clone(),
            snapshot: id.name().to_owned(),
        };
        self.ask_done(what, step)
    }

    fn snapshots(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        let what = ControlTask::List {
            disk: disk.id.clone(),
        };
        let ControlAnswer::Snapshots { names } = self.ask(what, ANSWER_MAX, step)? else {
            return Err(out_of_place());
        };
        let ids = names.into_iter();
        ids.map(|name| SnapshotId::new(step.job, name)).collect()
    }

    fn disks(&self, step: &Step<'_>) -> Result<Option<Vec<String>>> {
        self.visit(step, |_, info| {
            let names = info.disks.iter();
            Ok(Some(names.map(|name| one_line(name)).collect()))
        })
    }

    fn is_tracked(&self, step: &Step<'_>) -> Result<bool> {
        self.visit(step, |_, info| Ok(info.is_tracked))
    }

    fn hint(&self, disk: &DiskSpec, base: &HintBase<'_>, step: &Step<'_>) -> Result<Hint> {
        let what = ControlTask::Hint {
            disk: disk.id.clone(),
            since: base.since.name().to_owned(),
            now: base.now.as_ref().map(|now| now.name().to_owned()),
            root: digest(base.root)?,
        };
        match self.ask(what, ANSWER_MAX, step)? {
            ControlAnswer::Hinted { root, read } => Ok(Hint::Made {
                root: root.to_string(),
                read,
                map: None,
            }),
            ControlAnswer::Unhinted { why } => Ok(Hint::None(one_line(&why))),
            _ => Err(out_of_place()),
        }
    }

    fn hold_against(
        &self,
        disk: &DiskSpec,
        (_, root): (&CarriedMap, &str),
        step: &Step<'_>,
    ) -> Result<Held> {
        let what = ControlTask::HoldAgainst {
            disk: disk.id.clone(),
            root: digest(root)?,
        };
        match self.ask(what, SCAN_MAX, step)? {
            ControlAnswer::Held {
                read,
                is_equal,
                differing,
                first,
            } => Ok(Held {
                read,
                is_equal,
                differing,
                first,
            }),
            _ => Err(out_of_place()),
        }
    }

    fn delete_disk(&self, disk: &DiskSpec, _is_gone: bool, step: &Step<'_>) -> Result<()> {
        let what = ControlTask::DeleteDisk {
            disk: disk.id.clone(),
        };
        self.ask_done(what, step)
    }

    fn forget_maps(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<()> {
        let what = ControlTask::ForgetMaps {
            disk: disk.id.clone(),
        };
        self.ask_done(what, step)
    }

    fn prove_quiet(&self, disk: &DiskSpec, step: &Step<'_>) -> Result<String> {
        let what = ControlTask::ProveQuiet {
            disk: disk.id.clone(),
        };
        match self.ask(what, ANSWER_MAX, step)? {
            ControlAnswer::Identity { text } => Ok(one_line(&text)),
            _ => Err(out_of_place()),
        }
    }

    fn keep_map(
        &self,
        disk: &DiskSpec,
        (_, root): (&CarriedMap, &str),
        identity: &str,
        step: &Step<'_>,
    ) -> Result<()> {
        let what = ControlTask::KeepMap {
            disk: disk.id.clone(),
            root: digest(root)?,
            identity: identity.to_owned(),
        };
        self.ask_done(what, step)
    }

    fn fence(&self, step: &Step<'_>) -> Result<Option<Authority>> {
        self.visit(step, |_, info| {
            Ok(Some(Authority {
                epoch: info.epoch,
                side: info.authority.map(|side| one_line(&side)),
            }))
        })
    }

    fn act_for(&self, charge: Charge) {
        *self.charge() = charge;
    }

    fn advance(&self, epoch: u64, authority: Option<&str>, step: &Step<'_>) -> Result<()> {
        let authority = authority.map(str::to_owned);
        self.ask_done(ControlTask::Advance { epoch, authority }, step)
    }
}

impl Machine for RemoteHost {
    fn power(&self, step: &Step<'_>) -> Result<Power> {
        self.ask_power(ControlTask::Power, ANSWER_MAX, step)
    }

    fn shut_down(&self, step: &Step<'_>, limit: Duration) -> Result<Power> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let what = ControlTask::ShutDown { limit_ms };
        self.ask_power(what, limit.saturating_add(ANSWER_MAX), step)
    }

    fn power_off(&self, step: &Step<'_>) -> Result<()> {
        self.ask_done(ControlTask::PowerOff, step)
    }

    fn start(&self, step: &Step<'_>) -> Result<()> {
        let epoch = self.charge().epoch;
        self.ask_done(ControlTask::Start { epoch }, step)
    }

    fn delete(&self, step: &Step<'_>) -> Result<()> {
        self.ask_done(ControlTask::Delete, step)
    }
}

/// Talks, and hangs up when the step is cancelled meanwhile.
fn while_not_cancelled<T>(
    link: &mut SessionLink,
    step: &Step<'_>,
    talk: impl FnOnce(&mut SessionLink) -> Result<T>,
) -> Result<T> {
    let closer = link.closer.clone();
    let (done, is_done) = crossbeam::channel::bounded::<()>(0);
    let cancel = step.cancel;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let timeout = Err(crossbeam::channel::RecvTimeoutError::Timeout);
            while is_done.recv_timeout(POLL) == timeout {
                if cancel.is_cancelled() {
                    return closer.close();
                }
            }
        });
        let talked = talk(link);
        drop(done);
        talked
    })
}

/// A root out of the job's journal.
fn digest(root: &str) -> Result<Digest> {
    root.parse()
        .map_err(|message: &str| Error::new(ErrorKind::Damaged, message))
}

fn out_of_place() -> Error {
    Error::new(ErrorKind::Protocol, "peer: a message out of place")
}

/// Hooks of the agent's operator have limits of their own; this one is for an agent that only says
/// that it lives.
const ANSWER_MAX: Duration = Duration::from_hours(6);
/// How often a cancel is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How long an agent may read a whole disk: 64 TiB at 200 MB/s take four days.
const SCAN_MAX: Duration = Duration::from_hours(10 * 24);
