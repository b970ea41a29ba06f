//! The log (section 2.3): a ring in which changes to structures are durable before they are made.

mod entry;
mod replay;
mod writer;

pub(crate) use replay::replay;
pub(crate) use writer::LogWriter;
