//! A small Linux that boots from its own disk and writes numbered records all the time. How it goes
//! about it stands in `tests/guest/init`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools;

/// Longest time that a machine lives, whatever becomes of the test, seconds.
const LIFETIME: u32 = 600;

/// A virtual machine in a folder: its images, its script, its console.
#[derive(Debug)]
pub struct Guest {
    dir: PathBuf,
    disks: Vec<PathBuf>,
}

/// What the guest found on its disks when it came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Up {
    /// Number of the last record.
    pub last: u64,
    /// Records that are there.
    pub count: u64,
    /// Number of the oldest of them.
    pub first: u64,
}

impl Guest {
    /// A machine with these disks, the first of which it boots from, kept in `dir`.
    ///
    /// # Panics
    ///
    /// When its script cannot be written.
    pub fn new(dir: &Path, disks: &[PathBuf]) -> Self {
        let guest = Self {
            dir: dir.to_owned(),
            disks: disks.to_vec(),
        };
        fs::write(guest.script(), guest.script_text()).expect("script of the machine");
        guest
    }

    /// Makes the disk that it boots from, raw.
    ///
    /// # Panics
    ///
    /// When that cannot be made.
    pub fn build(into: &Path) -> PathBuf {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh");
        tools::run("bash", [Path::new(script), into]);
        into.join("disk.raw")
    }

    /// The command that starts it, and returns when it runs.
    pub fn script(&self) -> PathBuf {
        self.dir.join("start.sh")
    }

    /// Its monitor.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("qmp")
    }

    /// What it says.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.console_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where that is written.
    pub fn console_path(&self) -> PathBuf {
        self.dir.join("console")
    }

    fn script_text(&self) -> String {
        let mut drives = String::new();
        for (number, disk) in self.disks.iter().enumerate() {
            let format = match disk.extension().is_some_and(|suffix| suffix == "vhdx") {
                true => "vhdx",
                false => "raw",
            };
            let disk = disk.display();
            drives += &format!(
                " -blockdev driver=file,filename={disk},node-name=f{number} \
                 -blockdev driver={format},file=f{number},node-name=d{number} \
                 -device virtio-blk-pci,drive=d{number},bootindex={number}"
            );
        }
        let (qmp, console) = (self.socket(), self.console_path());
        let (qmp, console) = (qmp.display(), console.display());
        let (pid, log) = (self.dir.join("pid"), self.dir.join("log"));
        // Not a daemon of its own making: that would outlive a test that is killed.
        format!(
            "#!/bin/sh\n\
             rm -f {qmp}\n\
             timeout -s KILL {LIFETIME} qemu-system-x86_64 -M pc,usb=off -accel tcg -m 128 -smp 1 \
             -nodefaults -no-user-config -display none -no-reboot -pidfile {pid} \
             -serial file:{console} -qmp unix:{qmp},server=on,wait=off{drives} \
             </dev/null >>{log} 2>&1 &\n\
             timer=$!\n\
             until test -S {qmp}; do\n\
             kill -0 $timer 2>/dev/null || {{ cat {log} >&2; exit 1; }}\n\
             sleep 0.02\n\
             done\n",
            pid = pid.display(),
            log = log.display(),
        )
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(&self) {
        tools::run("sh", [self.script()]);
    }

    /// Takes its power away.
    pub fn kill(&self) {
        let Some(id) = self.process().filter(|_| self.is_running()) else {
            return;
        };
        tools::output("kill", ["-9", &id.to_string()]);
        let until = Instant::now() + Duration::from_secs(10);
        while self.is_running() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        // What it said before must not be taken for what it says next.
        drop(fs::remove_file(self.console_path()));
    }

    /// Waits until it has said so.
    ///
    /// # Panics
    ///
    /// When it does not within two minutes.
    pub fn wait_for(&self, words: &str) {
        let until = Instant::now() + Duration::from_mins(2);
        while !self.console().contains(words) {
            let console = self.console();
            assert!(Instant::now() < until, "no `{words}` in: {console}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Number of the last record that it called written.
    pub fn acknowledged(&self) -> u64 {
        let console = self.console();
        // The last line may be half written.
        let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let numbers = whole
            .lines()
            .filter_map(|line| line.trim().split_once(" ACK "));
        numbers
            .filter_map(|(_, number)| number.parse().ok())
            .max()
            .unwrap_or(0)
    }

    /// What it found when it came up.
    pub fn up(&self) -> Option<Up> {
        let console = self.console();
        let line = console.lines().find(|line| line.contains(" UP "))?;
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(Up {
            last: field("last=")?,
            count: field("count=")?,
            first: field("first=")?,
        })
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.process()
            .is_some_and(|id| Path::new(&format!("/proc/{id}")).exists())
    }

    fn process(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("pid")).ok()?;
        text.trim().parse().ok()
    }
}

/// The machine ends with the test. Its folder has to be there still.
impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}
