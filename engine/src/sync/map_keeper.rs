//! What a session leaves for the next one: the map of a side's disk as it is in the end.

use super::session::Session;
use crate::disk::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::identity::{Facts, seal};
use crate::map::MapWriter;

/// Keeps a map, or fails to, which is no reason for a job to fail.
#[derive(Debug)]
pub(super) struct MapKeeper<'a> {
    session: &'a Session,
    /// The disk when the session began; `None` where nothing was noted.
    before: Option<Facts>,
    /// What the format leaves undefined is zero in the end.
    is_target: bool,
}

impl<'a> MapKeeper<'a> {
    /// Begins a map, where one is to be kept. `disk` is locked and not yet looked at.
    pub(super) fn begin(
        session: &'a Session,
        disk: &dyn Source,
        is_target: bool,
    ) -> (Self, Option<MapWriter>) {
        let mut keeper = Self {
            session,
            before: None,
            is_target,
        };
        if !session.keeps_map() {
            return (keeper, None);
        }
        if let Some(carried) = &session.map.carried {
            let writer = carried.begin(session.geometry, session.options.hash);
            return (keeper, writer);
        }
        keeper.before = told(seal(disk)).flatten();
        let store = session.map.store.as_ref();
        let writer = store.and_then(|store| store.begin(session.geometry, session.options.hash));
        (keeper, writer)
    }

    /// Keeps none.
    pub(super) fn begin_none(session: &'a Session) -> (Self, Option<MapWriter>) {
        let keeper = Self {
            session,
            before: None,
            is_target: false,
        };
        (keeper, None)
    }

    /// Completes the map: the disk has `root`. `disk` is still locked. `is_changed`: the session
    /// wrote to it; else it has to be what it was when the session began.
    pub(super) fn keep(
        self,
        writer: Option<MapWriter>,
        root: Digest,
        disk: &dyn Source,
        is_changed: bool,
    ) {
        let map = &self.session.map;
        if let Some(carried) = &map.carried {
            if let Some(writer) = writer {
                told(carried.keep(writer, root));
            }
            return;
        }
        let (Some(writer), Some(store)) = (writer, &map.store) else {
            return;
        };
        let kept = seal(disk).and_then(|facts| {
            let images = |facts: &Option<Facts>| facts.as_ref().map(|facts| facts.images.clone());
            if !is_changed && images(&facts) != images(&self.before) {
                let message = "somebody else changed the disk meanwhile";
                return Err(Error::new(ErrorKind::Refused, message));
            }
            match facts {
                Some(facts) => {
                    let is_settled = self.is_target;
                    let facts = Facts {
                        is_settled,
                        ..facts
                    };
                    store.keep(writer, root, facts)
                }
                // Nothing would tell a later state of the disk from this one.
                None => Ok(()),
            }
        });
        told(kept);
    }
}

fn told<T>(result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::info!(error = error.chain(), "no map is kept"))
        .ok()
}
