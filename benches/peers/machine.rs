//! What the numbers were measured on.

use std::fs::{self, File};
use std::io::{Error, Result, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::contender::succeed;

/// Names and values for the head of a record.
pub(crate) fn facts(dir: &Path, failback: &Path) -> Vec<(&'static str, String)> {
    let first_line = |command: &[&str]| {
        let output = Command::new(command[0]).args(&command[1..]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let line = text
            .ok()
            .and_then(|text| text.lines().next().map(str::to_string));
        line.unwrap_or_else(|| "not here".to_string())
    };
    let of = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(
            || "unknown".to_string(),
            |(_, value)| value.trim().to_string(),
        )
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let failback = failback.to_string_lossy();
    let vector = of("/proc/cpuinfo", "flags");
    let has = |flag: &str| vector.split(' ').any(|word| word == flag);
    vec![
        ("date", first_line(&["date", "--utc", "+%F"])),
        (
            "commit",
            first_line(&["git", "describe", "--always", "--dirty"]),
        ),
        ("cpu", of("/proc/cpuinfo", "model name")),
        ("avx2", has("avx2").to_string()),
        ("avx512", has("avx512f").to_string()),
        ("cores", cores.to_string()),
        ("memory", of("/proc/meminfo", "MemTotal")),
        ("kernel", first_line(&["uname", "-r"])),
        (
            "file system",
            first_line(&["stat", "-f", "-c", "%T", &dir.to_string_lossy()]),
        ),
        ("rustc", first_line(&["rustc", "-V"])),
        ("failback", first_line(&[&failback, "--version"])),
        ("rsync", first_line(&["rsync", "--version"])),
        ("qemu-img", first_line(&["qemu-img", "--version"])),
        ("nbdcopy", first_line(&["nbdcopy", "--version"])),
        ("casync", first_line(&["casync", "--version"])),
        ("rdiff", first_line(&["rdiff", "--version"])),
    ]
}

/// Whether a command can be had.
pub(crate) fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// The release build of the command.
pub(crate) fn build_failback() -> Result<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let cargo = |arguments: &[&str]| {
        succeed(
            Command::new(env!("CARGO"))
                .args(arguments)
                .args(["--manifest-path", manifest]),
        )
    };
    cargo(&["build", "--release", "-p", "failback-cli"])?;
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let target = metadata["target_directory"].as_str();
    let target = target.ok_or(Error::other("no target directory"))?;
    Ok(Path::new(target).join("release/failback"))
}

/// A file in the page cache, to be let go of just before a run.
///
/// A virtual machine gets a page from its host when it first touches it, and many a host takes back
/// what was free for two seconds. Writing 2.7 GB into such pages took 5.8 s here, and 0.6 s into
/// pages that had just been let go of. Without this a contender that writes much is measured by
/// what the machine did before. It helps what ends in two seconds more than what takes five.
/// Anonymous memory in its place was taken back while it was let go of.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// Writes the file.
    pub(crate) fn new(dir: &Path, mib: u64) -> Result<Self> {
        let path = dir.join("ballast");
        let mut file = File::create(&path)?;
        let piece = vec![1; 1 << 20];
        (0..mib).try_for_each(|_| file.write_all(&piece))?;
        file.sync_all()?;
        Ok(Self { path })
    }

    pub(crate) fn let_go(self) -> Result<()> {
        fs::remove_file(self.path)
    }
}

/// Waits until less than a quarter of a processor is busy, so many seconds at most. How many
/// processors were busy last.
pub(crate) fn settle(limit_seconds: u64) -> f64 {
    let deadline = Instant::now() + Duration::from_secs(limit_seconds);
    loop {
        let before = busy_ticks();
        let started = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        // A tick is a hundredth of a second on every Linux.
        let ticks = u32::try_from(busy_ticks().saturating_sub(before)).unwrap_or(u32::MAX);
        let busy = f64::from(ticks) / 100.0 / started.elapsed().as_secs_f64();
        if busy < 0.25 || Instant::now() >= deadline {
            return busy;
        }
    }
}

/// Of all processors, in all modes but idle and waiting.
fn busy_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(1).map(|field| field.parse().unwrap_or(0));
    let is_busy = |(field, _): &(usize, u64)| ![3, 4].contains(field) && *field < 8;
    ticks
        .enumerate()
        .filter(is_busy)
        .map(|(_, ticks)| ticks)
        .sum()
}
