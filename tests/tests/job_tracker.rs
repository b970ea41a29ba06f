//! Goal: with a tracker of extents the downtime reads what changed, and never less. Method:
//! `failback job` on XFS with machines that are files, VHDX images that QEMU writes to; a small
//! disk and a large one with the same changes; a staged clone that rots between the passes and the
//! stop.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{Run, failback};
use failback_tests::place::Mount;
use failback_tests::qemu::{self, Format};
use failback_tests::{skip_without, tools};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Bytes that change between the last pass and the stop, in pieces of 1 MiB.
const CHANGED: u64 = 64 * MIB;

struct Scene {
    mount: Mount,
}

impl Scene {
    /// Two equal disks of so many GiB with 192 MiB of data, spread evenly.
    fn new(gib: u64) -> Self {
        let scene = Self {
            mount: Mount::in_file("xfs", 3072),
        };
        let cloud = scene.at("cloud.vhdx");
        let size = format!("{gib}G");
        let args = [
            "create",
            text(&cloud),
            "--size",
            &size,
            "--block-size",
            "1M",
        ];
        assert_eq!(failback(args).exits(0).stderr, "");
        scene.write(0x11, 0, 192, gib);
        fs::copy(&cloud, scene.at("home.vhdx")).expect("copy");
        fs::write(scene.at("cloud.power"), "on\n").expect("power");
        fs::write(scene.at("home.power"), "off\n").expect("power");
        fs::write(scene.at("web.toml"), scene.definition()).expect("definition");
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// The guest writes so many pieces of 1 MiB from `first` on, spread evenly over the disk.
    fn write(&self, pattern: u8, first: u64, pieces: u64, gib: u64) {
        let step = (gib << 30) / pieces;
        let commands: Vec<_> = (0..pieces)
            .map(|piece| first + (piece * step) / MIB * MIB)
            .map(|at| format!("write -P {pattern} {at} 1M"))
            .collect();
        qemu::io(&self.at("cloud.vhdx"), Format::Dynamic(1), &commands);
    }

    /// Hooks of a machine: its power is a file.
    fn machine(&self, side: &str) -> String {
        let power = self.at(&format!("{side}.power")).display().to_string();
        format!(
            "kind = \"hooks\"\npower = [\"cat\", \"{power}\"]\n\
             start = [\"sh\", \"-c\", \"echo on > {power}\"]\n\
             shut_down = [\"sh\", \"-c\", \"echo off > {power}\"]\n\
             power_off = [\"sh\", \"-c\", \"echo off > {power}\"]\n"
        )
    }

    /// An agent that controls the cloud's machine, and the definition that goes by it.
    fn serve(&self) -> Agent {
        let control = format!(
            "[pair.web]\ntracker = \"extents\"\n[pair.web.machine]\n{}\
             [pair.web.snapshots]\nkind = \"reflink\"\n\
             [[pair.web.disk]]\nid = \"os\"\npath = \"{}\"\n",
            self.machine("cloud"),
            self.at("cloud.vhdx").display()
        );
        fs::write(self.at("control.toml"), control).expect("control file");
        let [control, state] = ["control.toml", "agent-state"].map(|name| self.at(name));
        let more = ["--control", text(&control), "--state-dir", text(&state)];
        let agent = Agent::start_with::<String>(Via::Tcp, self.mount.path(), &[], &more);
        let definition = format!(
            "name = \"web\"\n[policy]\nstrategy = \"delta\"\n\
             [source]\ncontrol = \"{}\"\n[target.machine]\n{}\
             [[disk]]\nid = \"os\"\ntarget = \"{}\"\n",
            agent.endpoint("web"),
            self.machine("home"),
            self.at("home.vhdx").display()
        );
        fs::write(self.at("web.toml"), definition).expect("definition");
        agent
    }

    fn definition(&self) -> String {
        let (cloud, home) = (self.at("cloud.vhdx"), self.at("home.vhdx"));
        format!(
            "name = \"web\"\n[policy]\nstrategy = \"delta\"\n\
             [source]\ntracker = \"extents\"\n[source.machine]\n{}\
             [source.snapshots]\nkind = \"reflink\"\n[target.machine]\n{}\
             [[disk]]\nid = \"os\"\nsource = \"{}\"\ntarget = \"{}\"\n",
            self.machine("cloud"),
            self.machine("home"),
            cloud.display(),
            home.display()
        )
    }

    fn job(&self, args: &[&str]) -> Run {
        let state = self.at("state");
        let place = ["--state-dir", text(&state), "--json"];
        failback(["job"].iter().chain(args).chain(&place).copied())
    }

    /// Passes, changes, stop, start; what the job tells then.
    fn come_home(&self, gib: u64, between: impl FnOnce(&Self)) -> Value {
        let definition = self.at("web.toml");
        let started = self
            .job(&["start", text(&definition), "--no-wait"])
            .exits(0);
        assert_eq!(started.json()["phase"], "waiting");
        self.write(0x22, 0, CHANGED / MIB, gib);
        between(self);
        let report = self.job(&["complete", "web"]).exits(0).json();
        assert_eq!(report["phase"], "commit_pending");
        let images = [self.at("cloud.vhdx"), self.at("home.vhdx")];
        let [cloud, home] = images
            .each_ref()
            .map(|image| (image.as_path(), Format::Dynamic(1)));
        qemu::assert_identical(cloud, home);
        report
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn copied(report: &Value) -> &Value {
    &report["disks"][0]["final_copy"]
}

// Goal: what is read while nothing runs grows with the changes and not with the disk. Method: the
// same changes on 4 GiB and on 64 GiB.
#[test]
fn the_downtime_reads_what_changed() {
    skip_without!("root", "mkfs.xfs", "qemu-img", "qemu-io");
    for gib in [4, 64] {
        let scene = Scene::new(gib);
        let report = scene.come_home(gib, |_| {});
        assert_reads_what_changed(&report);
        let timeline = report["timeline"].to_string();
        assert!(timeline.contains("\"scanned\""), "{timeline}");
        let downtime = &report["downtime"]["measured"];
        tools::say(&format!("{gib} GiB, 64 MiB changed: downtime {downtime} s"));
        assert_eq!(
            scene.job(&["commit", "web"]).exits(0).json()["phase"],
            "finished"
        );
    }
}

fn assert_reads_what_changed(report: &Value) {
    let last = copied(report);
    assert_eq!(last["hinted"], true, "{report}");
    let read = last["source_read"].as_u64().expect("bytes");
    assert!((CHANGED..CHANGED + 4 * MIB).contains(&read), "{read} read");
}

// Goal: so it is when the source is on another host. Method: the same through an agent, which keeps
// nothing of it afterwards.
#[test]
fn the_downtime_reads_what_changed_behind_an_agent() {
    skip_without!("root", "mkfs.xfs", "qemu-img", "qemu-io");
    let scene = Scene::new(64);
    let _agent = scene.serve();
    let report = scene.come_home(64, |_| {});
    assert_reads_what_changed(&report);
    let timeline = report["timeline"].to_string();
    assert!(timeline.contains("\"scanned\""), "{timeline}");
    let downtime = &report["downtime"]["measured"];
    tools::say(&format!("behind an agent: downtime {downtime} s"));
    assert_eq!(
        scene.job(&["commit", "web"]).exits(0).json()["phase"],
        "finished"
    );
    let kept = fs::read_dir(scene.at("agent-state").join("pairs/web")).expect("folder");
    let names = kept.map(|entry| entry.expect("entry").file_name());
    let maps: Vec<_> = names
        .filter(|name| name.to_string_lossy().ends_with(".map"))
        .collect();
    assert!(maps.is_empty(), "{maps:?}");
}

// Goal: a map speaks of what was staged; when that is gone, nobody believes it. Method: the headers
// of the staged clone rot on the medium, below the file system, so that no time and no size tells
// of it.
#[test]
fn a_staged_clone_that_rots_is_not_taken_for_whole() {
    skip_without!("root", "mkfs.xfs", "qemu-img", "qemu-io", "filefrag");
    let scene = Scene::new(4);
    // Staged in the passes. The last copy has no reason to look there: what it changes is
    // elsewhere.
    scene.write(0x33, 2 * MIB, 8, 4);
    let report = scene.come_home(4, |scene| {
        let entries = fs::read_dir(scene.mount.path()).expect("folder");
        let clone = entries
            .map(|entry| entry.expect("entry").path())
            .find(|path| path.to_string_lossy().contains(".failback-new."))
            .expect("a clone stands beside the target");
        for header in [64 << 10, 128 << 10] {
            scene.mount.rot(&clone, header, &[0xff; 4096]);
        }
    });
    assert_eq!(copied(&report)["hinted"], Value::Null, "{report}");
}
