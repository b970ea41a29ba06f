//! What the target becomes, beside it, until all of it is there.

mod compact;
mod index;
mod log;
mod overlay;
mod record;

pub(crate) use compact::compact;
pub(crate) use log::{Old, StageLog};
pub(crate) use overlay::{IsOld, Overlay};
pub(crate) use record::Record;
