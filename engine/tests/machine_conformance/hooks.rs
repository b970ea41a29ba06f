//! A machine by hooks: shell scripts around a process that stands for the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use failback_engine::ErrorKind;
use failback_engine::hook::Hook;
use failback_engine::machine::{HookMachine, Machine, Power};

use super::{Rig, in_step, keeps_the_contract};

struct HookRig {
    machine: HookMachine,
    dir: tempfile::TempDir,
    obeys: bool,
}

/// Prints what the process is: it may have ended, and wait for somebody to take notice.
const POWER: &str = r#"
pid=$(cat pid 2>/dev/null) || { echo off; exit; }
case $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) in
    ''|Z*) echo off ;;
    *) echo on ;;
esac"#;
const START: &str = r#"
setsid sh -c "trap '$ON_TERM' TERM; while :; do sleep 0.05; done" >/dev/null 2>&1 </dev/null &
echo $! >pid
echo started >>starts"#;

impl HookRig {
    fn new(obeys: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hook = |script: &str| sh(dir.path(), script);
        let mut start = hook(START);
        let on_term = if obeys { "exit 0" } else { "" };
        start.env = vec![("ON_TERM".into(), on_term.into())];
        let machine = HookMachine {
            shut_down: Some(hook("kill -TERM $(cat pid)")),
            power_off: Some(hook("kill -KILL $(cat pid)")),
            delete: Some(hook("rm -f pid")),
            ..HookMachine::new(hook(POWER), start)
        };
        Self {
            machine,
            dir,
            obeys,
        }
    }
}

fn sh(dir: &Path, script: &str) -> Hook {
    let script = format!("cd '{}' || exit 9\n{script}", dir.display());
    Hook::new(["sh", "-c", &script]).with_timeout(Duration::from_secs(5))
}

impl Rig for HookRig {
    fn machine(&self) -> &dyn Machine {
        &self.machine
    }

    fn runs(&self) -> bool {
        let pid = fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
        let stat = fs::read_to_string(stat).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.dir.path().join("starts"));
        starts.unwrap_or_default().lines().count()
    }

    fn obeys(&self) -> bool {
        self.obeys
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }
}

impl Drop for HookRig {
    fn drop(&mut self) {
        // A test that failed leaves no process behind.
        let _gone = in_step(|step| self.machine.power_off(step));
    }
}

#[test]
fn hooks_keep_the_contract() {
    keeps_the_contract(&HookRig::new(true));
}

#[test]
fn hooks_of_a_guest_that_ignores_acpi_keep_the_contract() {
    keeps_the_contract(&HookRig::new(false));
}

/// A machine whose power is what stands in the file `power`.
fn told_by_file(dir: &Path, start: &str) -> HookMachine {
    fs::write(dir.join("power"), "off").unwrap();
    let start = sh(dir, start).with_timeout(Duration::from_millis(1_500));
    HookMachine::new(sh(dir, "cat power"), start)
}

// Goal: a start that says it worked and did not is found. Method: a hook that does nothing.
#[test]
fn a_start_that_lies_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let machine = told_by_file(dir.path(), "true");
    let error = in_step(|step| machine.start(step)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(
        error.message(),
        "hook start ended well, yet the machine is off"
    );
}

// Goal: a machine that takes a while after its hook has ended is waited for. Method: one that is on
// a little later.
#[test]
fn a_start_may_take_effect_later() {
    let dir = tempfile::tempdir().unwrap();
    let late = "(sleep 0.2; echo on >power) >/dev/null 2>&1 &";
    let machine = told_by_file(dir.path(), late);
    in_step(|step| machine.start(step)).unwrap();
    assert_eq!(in_step(|step| machine.power(step)).unwrap(), Power::On);
}

// Goal: a power off that says it worked and did not is found, too.
#[test]
fn a_power_off_that_lies_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = told_by_file(dir.path(), "true");
    fs::write(dir.path().join("power"), "on").unwrap();
    let lies = sh(dir.path(), "true").with_timeout(Duration::from_secs(1));
    machine.power_off = Some(lies);
    let error = in_step(|step| machine.power_off(step)).unwrap_err();
    assert_eq!(
        error.message(),
        "hook power_off ended well, yet the machine is on"
    );
}

// Goal: what is no answer is never taken for `off`. Method: other words, none, a failing hook.
#[test]
fn only_off_is_off() {
    let dir = tempfile::tempdir().unwrap();
    let machine = told_by_file(dir.path(), "true");
    for text in [
        "", "OFF", "off on", "offline", "shut off", "off\noff", "paused",
    ] {
        fs::write(dir.path().join("power"), text).unwrap();
        let error = in_step(|step| machine.power(step)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{text:?}");
    }
    fs::remove_file(dir.path().join("power")).unwrap();
    let error = in_step(|step| machine.power(step)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error
            .message()
            .starts_with("hook power ended with exit code 1"),
        "{error}"
    );
}

// Goal: a hook that is needed and not there is named. Method: all that are optional.
#[test]
fn missing_hooks_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let machine = told_by_file(dir.path(), "true");
    let limit = Duration::from_secs(1);
    let missed = [
        (
            "shut_down",
            in_step(|step| machine.shut_down(step, limit)).map(drop),
        ),
        ("power_off", in_step(|step| machine.power_off(step))),
        ("delete", in_step(|step| machine.delete(step))),
    ];
    for (name, result) in missed {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.message().contains(&format!("no `{name}` hook")),
            "{error}"
        );
    }
}

// Goal: a shutdown hook that waits for the guest itself ends with the caller's limit, and that is
// no failure. Method: one that would wait longer.
#[test]
fn a_shutdown_that_waits_ends_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = told_by_file(dir.path(), "true");
    fs::write(dir.path().join("power"), "on").unwrap();
    machine.shut_down = Some(Hook::new(["sleep", "30"]));
    let limit = Duration::from_millis(400);
    let found = in_step(|step| machine.shut_down(step, limit)).unwrap();
    assert_eq!(found, Power::On);
}

// Goal: a definition is read as documented. Method: JSON stands for TOML.
#[test]
fn definitions_are_read() {
    let text = r#"{"power":["vm-power","web"],"start":{"run":["vm-start","web"],"timeout":"5m"}}"#;
    let machine: HookMachine = serde_json::from_str(text).unwrap();
    assert_eq!(machine.start.timeout, Duration::from_secs(300));
    assert_eq!(machine.shut_down, None);
    let saved = serde_json::to_string(&machine).unwrap();
    assert_eq!(
        serde_json::from_str::<HookMachine>(&saved).unwrap(),
        machine
    );
    assert!(serde_json::from_str::<HookMachine>(r#"{"power":["a"]}"#).is_err());
    assert!(serde_json::from_str::<HookMachine>(&text.replace("start", "begin")).is_err());
}
