//! The log (section 2.3): a ring in which changes to structures are durable before they are made.

mod entry;
mod replay;
mod writer;

pub(crate) use entry::{Descriptor, EntryHeader, restore_page};
pub(crate) use replay::{Ring, active_head, replay, scan, visit};
pub(crate) use writer::LogWriter;
