//! What the crate promises, tested from outside: the codec against honest and hostile bytes, the
//! links against each other.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout
)]

mod bundle;
mod codec;
mod golden;
mod hostile;
mod kit;
mod link;
mod session;
mod shaped;
mod strategy;
mod throughput;
