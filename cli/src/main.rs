//! The `failback` command.
fn main() {}
