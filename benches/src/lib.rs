//! What is measured: disks of every kind of content, made from a seed.
//!
//! ```text
//!   suites/hash     one thread: leaf digests, zero detection, sums of sub-blocks
//!   suites/map      a scan of a whole disk with its tree: memory, raw file, VHDX
//!   suites/codec    messages to frames and back
//!   suites/sync     whole local syncs
//!   peers           failback beside its peers and floors measured there, on one disk
//! ```
//! `docs/benchmarks.md` says how to run them and what they gave on which machine.

mod content;

pub use content::{Content, SAMPLE_SEED, change_pages, disk, fill};
