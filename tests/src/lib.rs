//! The test kit: what a scenario needs to play an operator of `failback`.
//!
//! Scenarios (`tests/*.rs`) start the command as a user would and let foreign programs (qemu-img,
//! 7-Zip) judge what it wrote. They hold no branches: each decision is made here.
//!
//! ```text
//!   tools     is the foreign program there? CI fails without it, a developer is told
//!   images    the real images beside the checkout, unpacked
//!   disk      contents from a seed; changes; the naive `apply`
//!   qemu      foreign writer and judge        sevenzip   second judge
//!   cli       one run of the command: exit code, report, error line, peak memory
//!   guest     a small Linux in QEMU, which writes all the time
//!   agent     `failback serve` as a child     peer       what is no failback at all
//!   middleman cuts a connection, flips its bits
//!   scene     a target between old and new       state      its word, journal and root
//!   scripted  a machine of scripts, and a job of it
//!   kill      syncs that are killed, and when      trace      faults at system calls
//!   liar      a medium that keeps other bytes than it was given
//!   place     file systems that are full or read-only; locks held by others
//!   power     power cuts under a real file system
//!   shim      system calls that do less than asked for
//!   report    every field that product reports promise
//! ```
//!
//! The kit runs the release build (`cargo build --release -p failback-cli`; `tests/run.sh` does
//! it): what is tested is what ships.
#![cfg(unix)]
#![forbid(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod disk;
pub mod guest;
pub mod images;
pub mod kill;
#[cfg(target_os = "linux")]
pub mod liar;
pub mod middleman;
pub mod peer;
pub mod place;
pub mod power;
pub mod qemu;
pub mod report;
pub mod scene;
pub mod schema;
pub mod scripted;
pub mod sevenzip;
pub mod sha256;
pub mod shim;
pub mod source;
pub mod state;
pub mod tools;
pub mod trace;
