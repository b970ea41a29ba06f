//! The saved maps of the two sides of a job: which are asked for, and what became of each.

use std::path::Path;

use failback_transport as wire;
use serde::Serialize;

use crate::disk::Source;
use crate::error::Result;
use crate::hash::{Digest, HashKind};
use crate::identity::{Facts, Refusal};
use crate::map::{Audit, CarriedMap, MapStore, MapWish, TrustedMap, miss_probability};
use crate::sync::SideMap;
use crate::units::BlockSize;

/// What a job asks of the saved maps of its disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapUse {
    pub(crate) wish: MapWish,
    /// Whether they may stand for reads; else they are only made anew.
    pub(crate) trust: bool,
}

impl MapUse {
    pub(crate) fn to_wire(self) -> wire::MapWish {
        wire::MapWish {
            hash: match self.wish.hash {
                HashKind::Blake3 => wire::HashKind::Blake3,
                HashKind::Xxh3 => wire::HashKind::Xxh3,
            },
            block_size: self.wish.block_size.as_u32(),
            trust: self.trust,
            full_audit: self.wish.audit == Audit::Full,
        }
    }

    /// # Errors
    /// `Usage` for a block size that there is not.
    pub(crate) fn from_wire(wish: &wire::MapWish) -> Result<Self> {
        Ok(Self {
            wish: MapWish {
                hash: match wish.hash {
                    wire::HashKind::Blake3 => HashKind::Blake3,
                    wire::HashKind::Xxh3 => HashKind::Xxh3,
                },
                block_size: BlockSize::new(wish.block_size.into())?,
                audit: match wish.full_audit {
                    true => Audit::Full,
                    false => Audit::Quick,
                },
            },
            trust: wish.trust,
        })
    }
}

/// What became of the saved map of one side.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapStanding {
    pub(crate) root: Option<Digest>,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) audited: u64,
    pub(crate) data_blocks: u64,
    /// When roots are equal, nothing is left to do to this disk.
    pub(crate) is_settled: bool,
}

impl MapStanding {
    pub(crate) fn to_wire(self) -> wire::MapState {
        let number = |refusal| Refusal::ALL.iter().position(|known| *known == refusal);
        wire::MapState {
            root: self.root,
            refusal: self
                .refusal
                .and_then(number)
                .and_then(|number| u8::try_from(number).ok()),
            audited_blocks: self.audited,
            data_blocks: self.data_blocks,
            is_settled: self.is_settled,
        }
    }

    pub(crate) fn from_wire(state: &wire::MapState) -> Self {
        // One that a later release knows is a refusal all the same.
        let refusal = |number: u8| Refusal::ALL.get(usize::from(number)).copied();
        Self {
            root: state.root,
            refusal: state
                .refusal
                .map(|number| refusal(number).unwrap_or(Refusal::Format)),
            audited: state.audited_blocks,
            data_blocks: state.data_blocks,
            is_settled: state.is_settled,
        }
    }

    /// For the report; `vouched`: bytes that were not read because of it.
    pub(super) fn report(&self, vouched: u64) -> SideMapReport {
        SideMapReport {
            state: match (self.root, self.refusal) {
                (Some(_), _) => TRUSTED,
                (None, Some(_)) => "rejected",
                (None, None) => "none",
            },
            reason: self.refusal.map(Refusal::code),
            audited_blocks: self.audited,
            miss_probability: self
                .root
                .map(|_| miss_probability(self.audited, self.data_blocks)),
            vouched_bytes: vouched,
        }
    }
}

/// The saved map of one side, in a report.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SideMapReport {
    /// `trusted`, `rejected`, `none`.
    pub state: &'static str,
    /// Why it was rejected.
    pub reason: Option<&'static str>,
    /// Blocks that were read to hold it against the disk.
    pub audited_blocks: u64,
    /// The chance that these missed lies about one block in a hundred; `null` without a map.
    pub miss_probability: Option<f64>,
    /// Bytes with data that were not read because of it.
    pub vouched_bytes: u64,
}

impl SideMapReport {
    /// Whether it stood for reads.
    pub(crate) fn is_trusted(&self) -> bool {
        self.state == TRUSTED
    }
}

/// State of a map that stands for reads.
const TRUSTED: &str = "trusted";

impl Default for SideMapReport {
    fn default() -> Self {
        MapStanding::default().report(0)
    }
}

/// The saved map of the disk at `path`, whose state is kept below `state` or beside it, and what is
/// known of it.
pub(crate) fn side_map(
    path: &Path,
    state: Option<&Path>,
    wanted: Option<&MapUse>,
    load: impl FnOnce(&MapStore, &MapWish) -> std::result::Result<Option<TrustedMap>, Refusal>,
) -> (SideMap, MapStanding) {
    let none = || (SideMap::default(), MapStanding::default());
    let Some(wanted) = wanted else {
        return none();
    };
    let Ok(store) = MapStore::of(path, state) else {
        return none();
    };
    let loaded = match wanted.trust {
        true => load(&store, &wanted.wish),
        false => Ok(None),
    };
    let standing = standing_of(&loaded);
    let map = SideMap {
        trusted: loaded.ok().flatten().map(Box::new),
        store: Some(store),
        carried: None,
    };
    (map, standing)
}

/// A map that the caller carries on, and vouches for.
///
/// # Errors
/// `Damaged`, `Io` for a map that is not the one that was left.
pub(crate) fn carried_map(map: &CarriedMap, root: Option<&str>) -> Result<(SideMap, MapStanding)> {
    let trusted = root.map(|root| map.load(root)).transpose()?;
    let standing = match &trusted {
        Some(trusted) => MapStanding {
            root: Some(trusted.map.root()),
            data_blocks: trusted.map.data_count(),
            ..MapStanding::default()
        },
        None => MapStanding::default(),
    };
    let side = SideMap {
        trusted: trusted.map(Box::new),
        store: None,
        carried: Some(map.clone()),
    };
    Ok((side, standing))
}

fn standing_of(loaded: &std::result::Result<Option<TrustedMap>, Refusal>) -> MapStanding {
    match loaded {
        Ok(Some(trusted)) => MapStanding {
            root: Some(trusted.map.root()),
            refusal: None,
            audited: trusted.audited,
            data_blocks: trusted.map.data_count(),
            is_settled: trusted.map.facts().is_some_and(is_settled),
        },
        Ok(None) => MapStanding::default(),
        Err(refusal) => MapStanding {
            refusal: Some(*refusal),
            ..MapStanding::default()
        },
    }
}

/// Removes a saved map that was found to lie, where a sync begins without it: another audit might
/// find nothing. Whoever only looks leaves it, and so does who could not read its key: what that
/// does not tell is no lie.
pub(crate) fn forget_liar(map: &SideMap, standing: &MapStanding) {
    let Some(store) = &map.store else {
        return;
    };
    let is_liar = match standing.refusal {
        Some(Refusal::Audit) => true,
        Some(Refusal::Mac) => store.has_key(),
        _ => false,
    };
    if is_liar {
        store.remove();
    }
}

/// What is known of the saved map of a disk that is open for reading. Changes nothing.
pub(crate) fn look_at_map(
    path: &Path,
    state: Option<&Path>,
    wanted: Option<&MapUse>,
    disk: &dyn Source,
) -> MapStanding {
    let Some(wanted) = wanted.filter(|wanted| wanted.trust) else {
        return MapStanding::default();
    };
    match MapStore::of(path, state) {
        Ok(store) => standing_of(&store.load(disk, &wanted.wish)),
        Err(_) => MapStanding::default(),
    }
}

/// Only a VHDX has blocks that are left undefined.
fn is_settled(facts: &Facts) -> bool {
    let is_vhdx = facts.images.iter().any(|image| image.format == "vhdx");
    facts.is_settled || !is_vhdx
}

/// The same of a disk that is open for reading.
pub(crate) fn source_map(
    path: &Path,
    state: Option<&Path>,
    wanted: Option<&MapUse>,
    disk: &dyn Source,
) -> (SideMap, MapStanding) {
    side_map(path, state, wanted, |store, wish| store.load(disk, wish))
}
