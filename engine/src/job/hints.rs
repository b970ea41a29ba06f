//! What of a disk need not be read, because something knows that it has not changed since the last
//! pass. It is only a hint: what rests on it is read, all of it, before the target is accepted.

use super::journal::Fact;
use super::moving::Leg;
use super::online::{snapshot_name, snapshot_of, strategy_of};
use super::phase::Way;
use super::run::{Job, Run};
use super::spec::{DiskSpec, FinalCopy, JobSpec};
use crate::abort::Abort;
use crate::disk::open_source;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::map::CarriedMap;
use crate::operation::{self, Carried};
use crate::plan::Strategy;
use crate::sync::Until;
use crate::track::Changed;

/// Blocks that an error names at most.
const NAMED_MAX: usize = 8;

impl Job {
    /// How each disk is moved from where it stands still now.
    pub(super) fn legs<'a>(
        &mut self,
        spec: &'a JobSpec,
        from: Vec<Endpoint>,
        (way, until): (Way, Until),
        run: &Run<'_>,
    ) -> Result<Vec<Leg<'a>>> {
        let mut legs = Vec::new();
        for (disk, from) in spec.disks.iter().zip(from) {
            let strategy = strategy_of(disk, way);
            let carried = match (strategy, spec.source.tracker) {
                (Strategy::Delta, Some(_)) => {
                    Some(self.carried(spec, disk, (&from, until), run)?)
                }
                _ => None,
            };
            legs.push(Leg {
                disk,
                from,
                strategy,
                until,
                carried,
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
        run: &Run<'_>,
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
        let made = self.map_of(disk, "source.map");
        let found = self.patched(spec, disk, from, (&carried.target, &left.root, &made), run)?;
        let fact = match found {
            Ok((root, read)) => {
                carried.source = Some((made, root.clone()));
                Fact::Hinted {
                    disk: disk.id.clone(),
                    root,
                    read,
                }
            }
            Err(why) => Fact::HintRejected {
                disk: disk.id.clone(),
                reason: format!("hint_rejected:{why}"),
            },
        };
        self.journal.note(fact)?;
        Ok(carried)
    }

    /// The map of the source as it is now, from that of the last pass and what is named as changed
    /// since; its root and the bytes that were read for it, or why there is none.
    fn patched(
        &self,
        spec: &JobSpec,
        disk: &DiskSpec,
        from: &Endpoint,
        (left, root, made): (&CarriedMap, &str, &CarriedMap),
        run: &Run<'_>,
    ) -> Result<std::result::Result<(String, u64), String>> {
        let step = run.step(&spec.name, "hint");
        let Some(last) = self.history().passes().pop() else {
            return Ok(Err("no_pass".to_owned()));
        };
        let Endpoint::Path(path) = from else {
            return Ok(Err("remote".to_owned()));
        };
        let since = snapshot_of(spec, &snapshot_name(last.number))?;
        let ranges = match self.sides.source.changed(disk, &since, from, &step)? {
            Changed::Ranges(ranges) => ranges,
            Changed::Unknown(why) => return Ok(Err(why.to_owned())),
        };
        let open = disk.open(disk.source_format.as_deref())?;
        let source = open_source(path, &open)?;
        let abort = Abort::with_cancel(run.cancel);
        match left.patch(root, source.as_ref(), &ranges, (made, &abort)) {
            Ok((root, read)) => Ok(Ok((root.to_string(), read))),
            Err(error) => match error.kind() {
                ErrorKind::MapRejected => Ok(Err("audit".to_owned())),
                ErrorKind::Damaged => Ok(Err("map".to_owned())),
                _ => Err(error),
            },
        }
    }

    /// Whether a target rests on a hint.
    pub(super) fn has_unread(&self) -> bool {
        let history = self.history();
        let disks = history.spec().disks.iter();
        disks
            .into_iter()
            .any(|disk| history.unproven(&disk.id).is_some())
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
        let Endpoint::Path(path) = spec.source_of(disk)? else {
            unreachable!("only what is here is hinted at");
        };
        let open = disk.open(disk.source_format.as_deref())?;
        let map = self.map_of(disk, "source.map");
        let (read, differing) =
            operation::hold_against(&path, &open, (&map, &root), run.observer, run.cancel)?;
        if let Some(first) = differing.first() {
            let named: Vec<_> = differing
                .iter()
                .take(NAMED_MAX)
                .map(u64::to_string)
                .collect();
            let message = format!(
                "disk `{}`: {} blocks changed that the tracker did not name, from block {} on \
                 ({}): the target does not have them; undo is the way back",
                disk.id,
                differing.len(),
                first,
                named.join(", ")
            );
            return Err(Error::new(ErrorKind::VerifyFailed, message).path(&path));
        }
        self.journal.note(Fact::Scanned {
            disk: disk.id.clone(),
            read,
        })?;
        Ok(true)
    }

    /// Removes the maps: no pass goes on from them any more.
    pub(super) fn drop_maps(&self, spec: &JobSpec) {
        for disk in &spec.disks {
            self.map_of(disk, "map").remove();
            self.map_of(disk, "source.map").remove();
        }
    }

    fn map_of(&self, disk: &DiskSpec, name: &str) -> CarriedMap {
        CarriedMap::at(&self.directory, &format!("{}.{name}", disk.id))
    }
}
