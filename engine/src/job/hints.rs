//! What of a disk need not be read, because something knows that it has not changed since the last
//! pass. It is only a hint: what rests on it is read, all of it, before the target is accepted.

use super::host::{Hint, HintBase};
use super::journal::Fact;
use super::moving::Leg;
use super::online::{snapshot_name, snapshot_of, strategy_of};
use super::phase::Way;
use super::run::{Job, Run};
use super::spec::{DiskSpec, FinalCopy, JobSpec};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::map::CarriedMap;
use crate::operation::{Carried, Hinted};
use crate::plan::Strategy;
use crate::step::Step;
use crate::sync::Until;

impl Job {
    /// How each disk is moved from where it stands still now.
    pub(super) fn legs<'a>(
        &mut self,
        spec: &'a JobSpec,
        from: Vec<Endpoint>,
        (way, until): (Way, Until),
        run: &Run<'_>,
    ) -> Result<Vec<Leg<'a>>> {
        let step = run.step(&spec.name, "hint");
        let is_tracked = way == Way::Delta && self.sides.source.is_tracked(&step)?;
        let mut legs = Vec::new();
        for (disk, from) in spec.disks.iter().zip(from) {
            let strategy = strategy_of(disk, way);
            let carried = match strategy == Strategy::Delta && is_tracked {
                true => Some(self.carried(spec, disk, (&from, until), &step)?),
                // Of what the target will be: it tells what a guest wrote to it later, and is the
                // base's as well.
                false if until == Until::Sealed => Some(Carried {
                    target: self.map_of(disk, "map"),
                    left: None,
                    source: None,
                }),
                false => None,
            };
            legs.push(Leg {
                disk,
                from,
                strategy,
                until,
                carried,
                owner: Some(self.directory.clone()),
            });
        }
        Ok(legs)
    }

    /// What is carried from the last pass to this one.
    fn carried(
        &mut self,
        spec: &JobSpec,
        disk: &DiskSpec,
        (from, until): (&Endpoint, Until),
        step: &Step<'_>,
    ) -> Result<Carried> {
        let mut carried = Carried {
            target: self.map_of(disk, "map"),
            left: self.history().left(&disk.id),
            source: None,
        };
        let may_hint = until != Until::Sealed || spec.policy.final_copy == FinalCopy::Tracked;
        let Some(left) = carried.left.as_ref().filter(|_| may_hint) else {
            return Ok(carried);
        };
        let fact = match self.hint(spec, disk, (from, &left.root), step)? {
            Hint::Made { root, read, map } => {
                carried.source = Some(Hinted {
                    root: root.clone(),
                    map,
                });
                Fact::Hinted {
                    disk: disk.id.clone(),
                    root,
                    read,
                }
            }
            Hint::None(why) => Fact::HintRejected {
                disk: disk.id.clone(),
                reason: format!("hint_rejected:{why}"),
            },
        };
        self.journal.note(fact)?;
        Ok(carried)
    }

    fn hint(
        &self,
        spec: &JobSpec,
        disk: &DiskSpec,
        (from, root): (&Endpoint, &str),
        step: &Step<'_>,
    ) -> Result<Hint> {
        let passes = self.history().passes();
        let Some(last) = passes.last() else {
            return Ok(Hint::None("no_pass".to_owned()));
        };
        let is_frozen = *from != spec.source_of(disk)?;
        let now = is_frozen.then(|| snapshot_of(spec, &snapshot_name(self.next_pass())));
        let base = HintBase {
            since: snapshot_of(spec, &snapshot_name(last.number))?,
            root,
            now: now.transpose()?,
            at: from,
            left: &self.map_of(disk, "map"),
            made: &self.map_of(disk, "source.map"),
        };
        self.sides.source.hint(disk, &base, step)
    }

    /// Whether a target rests on a hint.
    pub(super) fn has_unread(&self) -> bool {
        self.history().has_unread()
    }

    /// Reads all of a stopped disk that was not read before the target was started. Whether there
    /// was one.
    pub(super) fn read_the_rest(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<bool> {
        let unread = spec.disks.iter().find_map(|disk| {
            let root = self.history().unproven(&disk.id)?;
            Some((disk, root.to_owned()))
        });
        let Some((disk, root)) = unread else {
            return Ok(false);
        };
        let made = self.map_of(disk, "source.map");
        let step = run.step(&spec.name, "scan");
        let host = self.sides.source.clone();
        let held = host.hold_against(disk, (&made, &root), &step)?;
        if !held.is_equal {
            let found = match held.first.first() {
                Some(first) => {
                    let named: Vec<_> = held.first.iter().map(u64::to_string).collect();
                    format!(
                        "{} blocks changed that the tracker did not name, from block {first} on \
                         ({})",
                        held.differing,
                        named.join(", ")
                    )
                }
                None => "more changed than the tracker named".to_owned(),
            };
            let message = format!(
                "disk `{}`: {found}: the target does not have them; undo is the way back",
                disk.id
            );
            return Err(Error::new(ErrorKind::VerifyFailed, message));
        }
        self.journal.note(Fact::Scanned {
            disk: disk.id.clone(),
            read: held.read,
        })?;
        Ok(true)
    }

    /// Leaves the map of what each disk was when the source was stopped with that disk: a way back
    /// reads of it only what differs.
    pub(super) fn keep_base_maps(&self, spec: &JobSpec, run: &Run<'_>) {
        let step = run.step(&spec.name, "keep-maps");
        for disk in &spec.disks {
            let history = self.history();
            let root = history.sealed(&disk.id).and_then(|it| it.root.as_deref());
            let (Some(root), Some(identity)) = (root, history.quiet(&disk.id)) else {
                continue;
            };
            let map = self.map_of(disk, "map");
            let kept = (self.sides.source).keep_map(disk, (&map, root), identity, &step);
            // Without one the base is read.
            if let Err(error) = kept {
                run.observer.event(&Event::Warning {
                    message: format!(
                        "disk `{}` of the source keeps no map, and a way back reads all of it: {}",
                        disk.id,
                        error.chain()
                    ),
                });
            }
        }
    }

    /// Removes the maps: no pass goes on from them any more.
    pub(super) fn drop_maps(&self, spec: &JobSpec, run: &Run<'_>) {
        let step = run.step(&spec.name, "forget");
        for disk in &spec.disks {
            self.map_of(disk, "map").remove();
            self.map_of(disk, "source.map").remove();
            // What stays is believed by nobody, and replaced by the next job.
            if let Err(error) = self.sides.source.forget_maps(disk, &step) {
                tracing::info!(error = error.chain(), "maps stay at the source");
            }
        }
    }

    pub(super) fn map_of(&self, disk: &DiskSpec, name: &str) -> CarriedMap {
        CarriedMap::at(&self.directory, &format!("{}.{name}", disk.id))
    }
}
