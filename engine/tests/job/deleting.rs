//! What a commit deletes of the source, by machines that cannot be asked for anything once they are
//! gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_engine::agent::{Grants, Pair, PairDiskSpec, PairSpec};
use failback_engine::hook::Hook;
use failback_engine::job::{Ask, Job, LocalHost, MachineSpec, Sides, SourceHost};
use failback_engine::machine::HookMachine;
use failback_engine::{CancelToken, Silent, Step};

use super::fencing::{advance, host};
use super::scene::{Copies, Scene, ask, run};
use super::two_hosts::{ANYWHERE, agent_state, with_agent_of};

fn script(text: String) -> Hook {
    Hook::new(["sh".to_owned(), "-c".to_owned(), text])
}

/// A machine whose power is a file, which goes with it. It can be deleted once.
fn vanishing(power: &Path) -> HookMachine {
    let power = power.display();
    HookMachine {
        shut_down: Some(script(format!("echo off > {power}"))),
        delete: Some(script(format!("rm {power}"))),
        ..HookMachine::new(
            script(format!("cat {power}")),
            script(format!("echo on > {power}")),
        )
    }
}

fn deletes_disk() -> Hook {
    script("rm $FAILBACK_IMAGE".to_owned())
}

// Goal: a commit that deletes machine and disks ends, although nothing tells the power of a machine
// that is gone. Method: hooks of which `power` fails once `delete` was run; a machine that is not
// deleted, whose disks stay while it cannot be asked.
#[test]
fn disks_go_after_their_machine_is_gone() {
    for deletes_machine in [true, false] {
        let scene = Scene::new(&["os", "data"]);
        let power: PathBuf = scene.dir.path().join("power");
        fs::write(&power, "on\n").unwrap();
        let machine = vanishing(&power);
        let source = LocalHost::new(Arc::new(machine), Some(Arc::new(Copies)));
        let sides = Sides {
            source: Arc::new(source.deleting_by(deletes_disk())),
            ..scene.sides()
        };
        let mut spec = scene.spec();
        spec.policy.delete_source_machine = deletes_machine;
        spec.policy.delete_source_disks = true;
        let mut job = Job::start(&scene.jobs(), spec, None, sides).unwrap();
        run(&mut job);
        ask(&mut job, Ask::Complete);
        if !deletes_machine {
            fs::remove_file(&power).unwrap();
        }
        ask(&mut job, Ask::Commit);
        let report = job.report();
        let wanted = match deletes_machine {
            true => ("finished", false),
            false => ("releasing", true),
        };
        assert_eq!((report.phase, report.suspended), wanted, "{report:?}");
        let are_there = scene
            .disks
            .iter()
            .any(|disk| scene.source_of(disk).exists());
        assert_eq!(are_there, !deletes_machine);
    }
}

// Goal: the same behind an agent, which remembers what it deleted, for the epoch in which it did.
// Method: a machine that is deleted twice, as by a job that did not hear the answer, then its disk;
// the same disk in a later epoch.
#[test]
fn an_agent_remembers_that_the_machine_is_gone() {
    let scene = Scene::new(&["os"]);
    let image = scene.source_of("os");
    let power = scene.dir.path().join("power");
    fs::write(&power, "off\n").unwrap();
    let disk = PairDiskSpec {
        id: "os".to_owned(),
        path: image.clone(),
        format: None,
        follow_parents: false,
        skip_sibling_check: false,
    };
    let pair = PairSpec {
        side: "recovery".to_owned(),
        machine: MachineSpec::Hooks(vanishing(&power)),
        snapshots: None,
        tracker: None,
        probe: None,
        delete_disk: Some(deletes_disk()),
        disks: vec![disk],
    };
    let mut grants = Grants::new();
    let pair = Pair::of(&pair).unwrap();
    grants.add_pair("web", pair, &agent_state(&scene)).unwrap();
    with_agent_of(&grants, ANYWHERE, |address| {
        let host = host(address);
        let spec = scene.spec();
        let step = Step {
            job: "web",
            name: "delete-source",
            observer: &Silent,
            cancel: &CancelToken::new(),
        };
        let delete_disk = || host.delete_disk(&spec.disks[0], true, &step);
        advance(&host, 1, Some("primary"), 1).unwrap();
        host.machine().delete(&step).unwrap();
        host.machine().delete(&step).unwrap();
        delete_disk().unwrap();
        assert!(!image.exists());

        fs::write(&image, b"another one").unwrap();
        advance(&host, 2, Some("primary"), 1).unwrap();
        delete_disk().unwrap_err();
        assert!(image.exists());
    });
}
