//! What the target becomes, beside it, until all of it is there.

mod log;
mod overlay;
mod record;

pub(crate) use log::{Old, StageLog};
pub(crate) use overlay::{IsOld, Overlay};
pub(crate) use record::Record;
