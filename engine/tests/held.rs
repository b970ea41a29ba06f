//! Syncs that stop short of COMMIT: what they leave is gone on with by the next one, or by a
//! recovery.

#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::fs;
use std::path::{Path, PathBuf};

use failback_engine::disk::{Format, NewDisk, create};
use failback_engine::endpoint::Endpoint;
use failback_engine::operation::{self, Strategy, SyncRequest};
use failback_engine::report::{Outcome, Report};
use failback_engine::sync::Until;
use failback_engine::transport::{Apply, Container};
use failback_engine::{CancelToken, Silent};

const LEN: usize = 5 << 20;

struct Scene {
    dir: tempfile::TempDir,
    target: PathBuf,
    container: Container,
}

impl Scene {
    fn new(container: Container) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let suffix = if container == Container::Child {
            "vhdx"
        } else {
            "raw"
        };
        let target = dir.path().join(format!("target.{suffix}"));
        let scene = Self {
            dir,
            target,
            container,
        };
        fs::write(scene.source(), vec![7; LEN]).unwrap();
        match container {
            // The first sync makes it.
            Container::File => {}
            Container::Child => create(&scene.target, &vhdx()).unwrap(),
            _ => fs::write(&scene.target, vec![9; LEN]).unwrap(),
        }
        scene
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source.raw")
    }

    fn sync(&self, until: Until) -> Report {
        let is_new = self.container == Container::File;
        let request = SyncRequest {
            strategy: if is_new {
                Strategy::Full
            } else {
                Strategy::Delta
            },
            apply: Apply::StageKeepUndo,
            container: (!is_new).then_some(self.container),
            until,
            ..SyncRequest::new(path(&self.source()), path(&self.target))
        };
        let report = operation::sync(&request, &Silent, &CancelToken::new());
        assert!(report.error.is_none(), "{:?}", report.error);
        report
    }

    fn target_bytes(&self) -> Option<Vec<u8>> {
        fs::read(&self.target).ok()
    }

    fn is_equal(&self) -> bool {
        let request = operation::VerifyRequest {
            a: path(&self.source()),
            b: path(&self.target),
            a_open: Default::default(),
            b_open: Default::default(),
            hash: failback_engine::hash::HashKind::Blake3,
            block_size: failback_engine::units::BlockSize::DEFAULT,
            link: Default::default(),
        };
        let report = operation::verify(&request, &Silent, &CancelToken::new());
        report.outcome == Outcome::Equal
    }
}

fn path(path: &Path) -> Endpoint {
    Endpoint::Path(path.to_owned())
}

fn vhdx() -> NewDisk {
    NewDisk {
        format: Format::Vhdx,
        len: LEN as u64,
        sector_size: 512,
        block_size: Some(1 << 20),
        is_fixed: false,
    }
}

// Goal: passes add up, the target is not touched before COMMIT, and a seal needs nobody but this
// host to be applied, accepted or undone. Method: a source that changes between the passes; every
// container that any file system has.
#[test]
fn passes_add_up_and_leave_the_target_alone() {
    for container in [Container::Log, Container::File, Container::Child] {
        for goes_back in [false, true] {
            let scene = Scene::new(container);
            let old = scene.target_bytes();
            let first = scene.sync(Until::Staged);
            assert_eq!(
                (first.outcome, scene.target_bytes()),
                (Outcome::Staged, old.clone())
            );
            assert_eq!(first.root.source, first.root.target);
            overwrite(&scene.source(), 4096, 8);
            let second = scene.sync(Until::Staged);
            assert_eq!(scene.target_bytes(), old, "{container:?}");
            assert!(
                second.bytes.sent < 70_000,
                "{container:?}: {} sent",
                second.bytes.sent
            );
            assert!(second.reasons.contains(&"resumed"), "{:?}", second.reasons);
            overwrite(&scene.source(), LEN - 4096, 6);
            let last = scene.sync(Until::Sealed);
            assert_eq!(scene.target_bytes(), old, "{container:?}");
            assert!(
                last.bytes.sent < 70_000,
                "{container:?}: {} sent",
                last.bytes.sent
            );

            let recovered = operation::recover(&scene.target, None, &CancelToken::new()).unwrap();

            assert_eq!(recovered.before, Some("staged"), "{container:?}");
            assert_eq!(recovered.state, Some("new_verified"), "{container:?}");
            assert!(scene.is_equal(), "{container:?}");
            match goes_back {
                true => {
                    operation::roll_back(&scene.target, None, &CancelToken::new()).unwrap();
                    // What a VHDX holds is the same again, its file is not.
                    let is_file = container != Container::Child;
                    assert!(!is_file || scene.target_bytes() == old, "{container:?}");
                    assert!(!scene.target.exists() || !scene.is_equal());
                }
                false => {
                    operation::accept(&scene.target, None).unwrap();
                    assert!(scene.is_equal(), "{container:?}");
                }
            }
        }
    }
}

// Goal: where nothing differs there is a seal all the same: whoever asked for one goes on from it.
// Method: two equal disks, sealed with and without a map that says so.
#[test]
fn equal_disks_are_sealed_too() {
    for container in [Container::Log, Container::Child] {
        let scene = Scene::new(container);
        scene.sync(Until::End);
        operation::accept(&scene.target, None).unwrap();
        let sealed = scene.sync(Until::Sealed);
        assert_eq!(sealed.outcome, Outcome::Staged);
        let recovered = operation::recover(&scene.target, None, &CancelToken::new()).unwrap();
        assert_eq!(recovered.state, Some("new_verified"), "{container:?}");
        assert!(scene.is_equal());
    }
}

// Goal: no map says of a target what is only staged. Method: a map would make the next sync believe
// that nothing differs.
#[test]
fn what_is_staged_is_in_no_map() {
    let scene = Scene::new(Container::Log);
    scene.sync(Until::End);
    operation::accept(&scene.target, None).unwrap();
    overwrite(&scene.source(), 0, 1);
    scene.sync(Until::Staged);
    operation::roll_back(&scene.target, None, &CancelToken::new()).unwrap();
    let again = scene.sync(Until::End);
    assert_eq!(again.blocks.differing, 1);
    assert!(scene.is_equal());
}

fn overwrite(path: &Path, at: usize, byte: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + 4096].fill(byte);
    fs::write(path, bytes).unwrap();
}
