//! What holds the new disk of a job until the target becomes it.

use std::sync::Arc;

use super::exchange::Exchange;
use super::merging::{Merging, make_child, open_child};
use crate::abort::Abort;
use crate::disk::{Layers, NewFile, Target, TargetAccess};
use crate::error::Result;
use crate::hash::Digest;
use crate::state::{Barriers, Container, Folder, Journal, remove_needless};
use crate::sync::{Session, Until};

/// See the module's head.
#[derive(Debug)]
pub(super) enum Holder {
    /// A file that takes the target's place.
    NewFile(Box<dyn NewFile>),
    /// A child that is merged into the target.
    Child(Box<dyn Layers>),
}

/// What a holder is not told again for each step.
pub(super) struct Context<'a> {
    pub(super) folder: &'a dyn Folder,
    pub(super) barriers: Barriers,
    pub(super) session: &'a Session,
    pub(super) abort: &'a Abort,
}

impl Holder {
    pub(super) fn make(&self, container: Container) -> Result<Arc<dyn Target>> {
        match self {
            Self::NewFile(file) => file.make(container),
            Self::Child(layers) => make_child(layers.as_ref()),
        }
    }

    /// What an earlier run made.
    pub(super) fn open(&self) -> Result<Option<Arc<dyn Target>>> {
        match self {
            Self::NewFile(file) => file.open(),
            Self::Child(layers) => open_child(layers.as_ref()),
        }
    }

    pub(super) fn remove(&self, folder: &dyn Folder) -> Result<()> {
        if let Self::NewFile(file) = self {
            file.remove()?;
        }
        remove_needless(folder)
    }

    /// From `staging`, as far as the session goes: the new disk is closed, proven, and has
    /// `new_root`.
    pub(super) fn commit(
        &self,
        context: &Context<'_>,
        journal: &mut Journal,
        old: Option<&dyn TargetAccess>,
        new_root: Option<Digest>,
    ) -> Result<()> {
        let until = context.session.options.until;
        match self {
            // Its bytes are durable and read back.
            _ if until == Until::Staged => Ok(()),
            Self::NewFile(file) => {
                let exchange = context.exchange(file.as_ref());
                exchange.seal(journal, old, new_root)?;
                match until {
                    Until::End => exchange.go_on(journal),
                    Until::Sealed | Until::Staged => Ok(()),
                }
            }
            Self::Child(layers) => {
                let old = old.expect("a child stands on a target");
                let merging = context.merging(layers.as_ref());
                merging.seal(journal, old, new_root)?;
                match until {
                    Until::End => merging.go_on(journal, old).map(drop),
                    Until::Sealed | Until::Staged => Ok(()),
                }
            }
        }
    }

    pub(super) fn abandon(&self, context: &Context<'_>, journal: &mut Journal) -> Result<()> {
        match self {
            Self::NewFile(file) => context.exchange(file.as_ref()).abandon(journal),
            Self::Child(layers) => context.merging(layers.as_ref()).abandon(journal),
        }
    }
}

impl<'a> Context<'a> {
    fn exchange(&self, new_file: &'a dyn NewFile) -> Exchange<'a> {
        Exchange {
            folder: self.folder,
            new_file,
            barriers: self.barriers,
            abort: self.abort,
        }
    }

    pub(super) fn merging(&self, layers: &'a dyn Layers) -> Merging<'a> {
        Merging {
            layers,
            folder: self.folder,
            barriers: self.barriers,
            session: self.session,
            abort: self.abort,
        }
    }
}
