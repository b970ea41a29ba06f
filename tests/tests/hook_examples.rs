//! Goal: the commands that the operator's guide prints for hypervisors do what a job needs of
//! hooks, also once the machine is gone. Method: each block of the guide, with programs in place of
//! the hypervisor's that keep a machine as a file; what PowerShell would do with its words is not
//! looked at.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use failback_engine::hook::Hook;
use failback_engine::machine::{HookMachine, Machine, Power};
use failback_engine::{CancelToken, Result, Silent, Step};
use failback_tests::source;
use tempfile::TempDir;

const VIRSH: &str = r#"
case $1 in
domstate) [ -e web ] || exit 1; [ $(cat web) = on ] && echo running || echo "shut off";;
list) [ ! -e web ] || echo web; echo other;;
shutdown | destroy) echo off > web;;
start) echo on > web;;
undefine) rm web;;
esac
"#;

const SSH: &str = r#"
case $2 in
*Remove-VM*) rm -f web;;
*Stop-VM*) echo off > web;;
*Start-VM*) echo on > web;;
*Get-VM*'exit 4'*)
    [ -e web ] || exit 4
    [ $(cat web) = on ] && printf 'Saved\r\n' || printf 'Off\r\n';;
esac
"#;

const AZ: &str = r#"
[ -e web ] || exit 3
case $2 in
show) [ $(cat web) = on ] && echo "VM stopped" || echo "VM deallocated";;
deallocate) echo off > web;;
start) echo on > web;;
delete) rm web;;
esac
"#;

/// The block of hooks that follows a line of the guide.
fn printed(after: &str) -> String {
    let guide = fs::read_to_string(source::root().join("docs/operating.md")).expect("guide");
    let lines = guide.lines().skip_while(|line| !line.starts_with(after));
    let block = lines.skip(1).skip_while(|line| !line.starts_with("    "));
    let block: Vec<_> = block.map_while(|line| line.strip_prefix("    ")).collect();
    block.join("\n")
}

/// The machine that the guide prints, of which `program` in `dir` is the hypervisor.
fn machine(dir: &Path, after: &str, (program, does): (&str, &str)) -> HookMachine {
    let mut machine: HookMachine = toml::from_str(&printed(after)).expect("the guide's TOML");
    let at = dir.join(program);
    let text = format!("#!/bin/sh\ncd '{}' || exit 9\n{does}", dir.display());
    fs::write(&at, text).expect("program");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&at, mode).expect("mode");
    let path = std::env::var("PATH").expect("PATH");
    let path = format!("{}:{path}", dir.display());
    let hooks = [
        Some(&mut machine.power),
        Some(&mut machine.start),
        machine.shut_down.as_mut(),
        machine.power_off.as_mut(),
        machine.delete.as_mut(),
    ];
    for hook in hooks {
        let hook: &mut Hook = hook.expect("all are printed");
        hook.env = vec![("PATH".to_owned(), path.clone())];
    }
    machine
}

fn in_step<T>(name: &str, act: impl FnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
    act(&Step {
        job: "web",
        name,
        observer: &Silent,
        cancel: &CancelToken::new(),
    })
}

#[test]
fn machines_of_the_guide_are_hooks() {
    for (after, fake) in [
        ("libvirt (", ("virsh", VIRSH)),
        ("Hyper-V by ssh", ("ssh", SSH)),
        ("Azure (", ("az", AZ)),
    ] {
        let dir = TempDir::new().expect("folder");
        let machine = machine(dir.path(), after, fake);
        let power = |step: &str| in_step(step, |step| machine.power(step));
        let delete = || in_step("delete-source", |step| machine.delete(step));
        let is = |found: Result<Power>, wanted| assert_eq!(found.expect(after), wanted);
        fs::write(dir.path().join("web"), "off\n").expect("machine");
        is(power("preflight"), Power::Off);
        in_step("start-source", |step| machine.start(step)).expect(after);
        is(power("preflight"), Power::On);
        delete().expect_err(after);
        let limit = Duration::from_secs(5);
        is(
            in_step("stop", |step| machine.shut_down(step, limit)),
            Power::Off,
        );
        in_step("start-source", |step| machine.start(step)).expect(after);
        in_step("stop", |step| machine.power_off(step)).expect(after);
        is(power("seal"), Power::Off);
        // What was deleted may be asked for once more, by a job that did not hear that it was done.
        for _ in 0..2 {
            delete().expect(after);
            assert!(!dir.path().join("web").exists());
            is(power("delete-source"), Power::Off);
        }
        // At any other time it is a name that was typed wrong.
        power("preflight").expect_err(after);
    }
}
