//! Real QEMU processes: a guest without an operating system, and one of thirty bytes that obeys the
//! power button.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use failback_engine::ErrorKind;
use failback_engine::hook::Hook;
use failback_engine::machine::{Machine, Power, QmpMachine};
use failback_engine::system::{Access, HostFile};

use super::{Rig, in_step, keeps_the_contract};

const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is there; with `CI` set it has to be.
#[allow(clippy::print_stderr, reason = "a skipped test has to be heard")]
fn has_qemu() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|dir| dir.join(QEMU).is_file());
    assert!(
        found || env::var_os("CI").is_none(),
        "{QEMU} is missing: run tests/setup.sh"
    );
    if !found {
        eprintln!("SKIP: {QEMU} is missing; tests/setup.sh installs it");
    }
    found
}

/// A boot sector: lets the power button be heard, waits for it, and switches off.
const OBEDIENT: &[u8] = &[
    0xfa, // cli
    0xba, 0x02, 0x06, // mov dx, PM1_EN
    0xb8, 0x00, 0x01, // mov ax, PWRBTN_EN
    0xef, // out dx, ax
    0xba, 0x00, 0x06, // mov dx, PM1_STS
    0xed, // again: in ax, dx
    0xf6, 0xc4, 0x01, // test ah, PWRBTN_STS >> 8
    0x74, 0xfa, // jz again
    0xba, 0x04, 0x06, // mov dx, PM1_CNT
    0xb8, 0x00, 0x20, // mov ax, SLP_EN, soft off
    0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp $ - 1
];

struct QemuRig {
    machine: QmpMachine,
    dir: tempfile::TempDir,
    obeys: bool,
}

impl QemuRig {
    /// `extra`: more of QEMU's arguments.
    fn new(obeys: bool, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.raw");
        let mut sector = vec![0; 512];
        if obeys {
            sector[..OBEDIENT.len()].copy_from_slice(OBEDIENT);
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
        }
        sector.resize(1 << 20, 0);
        fs::write(&disk, sector).unwrap();
        let machine = QmpMachine {
            delete: Some(Hook::new(["true"])),
            ..QmpMachine::new(dir.path().join("qmp"), start_hook(dir.path(), extra))
        };
        Self {
            machine,
            dir,
            obeys,
        }
    }

    fn pid(&self) -> Option<String> {
        let pid = fs::read_to_string(self.dir.path().join("pid")).ok()?;
        let pid = pid.trim().to_owned();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_alive = !stat.rsplit(") ").next()?.starts_with('Z');
        (is_alive && stat.contains("qemu")).then_some(pid)
    }
}

fn start_hook(dir: &Path, extra: &[&str]) -> Hook {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let qmp = format!("unix:{},server=on,wait=off", at("qmp"));
    let file = format!("file={},format=raw,if=ide", at("disk.raw"));
    let pid = at("pid");
    let arguments = [
        QEMU,
        "-M",
        "pc",
        "-accel",
        "tcg",
        "-m",
        "32",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-qmp",
        &qmp,
        "-drive",
        &file,
        "-pidfile",
        &pid,
        "-daemonize",
    ];
    // Each start leaves a line, which the test counts.
    let script = format!("echo started >>'{}'; exec \"$@\"", at("starts"));
    let mut command = vec!["sh", "-c", &script, "sh"];
    command.extend(arguments);
    command.extend(extra);
    Hook::new(command).with_timeout(Duration::from_secs(30))
}

impl Rig for QemuRig {
    fn machine(&self) -> &dyn Machine {
        &self.machine
    }

    fn runs(&self) -> bool {
        // It closes its socket a moment before it ends.
        let from = Instant::now();
        let is_off = || in_step(|step| self.machine.power(step)).is_ok_and(|p| p == Power::Off);
        while self.pid().is_some() && is_off() && from.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
        self.pid().is_some()
    }

    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.dir.path().join("starts"));
        starts.unwrap_or_default().lines().count()
    }

    fn obeys(&self) -> bool {
        self.obeys
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

impl Drop for QemuRig {
    fn drop(&mut self) {
        // A test that failed leaves no process behind.
        if let Some(pid) = self.pid() {
            let _gone = Command::new("kill").args(["-KILL", &pid]).status();
        }
    }
}

#[test]
fn qemu_keeps_the_contract() {
    if has_qemu() {
        keeps_the_contract(&QemuRig::new(true, &[]));
    }
}

#[test]
fn qemu_that_stays_after_the_guest_keeps_the_contract() {
    if has_qemu() {
        keeps_the_contract(&QemuRig::new(true, &["-action", "shutdown=pause"]));
    }
}

#[test]
fn qemu_without_a_guest_keeps_the_contract() {
    if has_qemu() {
        keeps_the_contract(&QemuRig::new(false, &[]));
    }
}

#[test]
fn qemu_that_waits_to_be_let_go_keeps_the_contract() {
    if has_qemu() {
        keeps_the_contract(&QemuRig::new(true, &["-S"]));
    }
}

// Goal: off is off: its disks can be locked at once. Method: lock them for writing the moment that
// each way to stop a machine returns; the process stays after the guest in one of them.
#[test]
fn a_machine_that_is_off_has_let_go_of_its_disks() {
    if !has_qemu() {
        return;
    }
    for extra in [&["-action", "shutdown=pause"][..], &[]] {
        let rig = QemuRig::new(true, extra);
        let disk = rig.dir.path().join("disk.raw");
        for round in 0..6 {
            in_step(|step| rig.machine.start(step)).unwrap();
            let held = HostFile::open(&disk, Access::Write).unwrap_err();
            assert_eq!(held.kind(), ErrorKind::InUse);
            match round {
                0 => assert_eq!(
                    in_step(|step| rig.machine.shut_down(step, rig.patience())).unwrap(),
                    Power::Off
                ),
                _ => in_step(|step| rig.machine.power_off(step)).unwrap(),
            }
            HostFile::open(&disk, Access::Write).unwrap();
        }
    }
}

// Goal: a machine whose process was killed is off, though its socket is there. Method: SIGKILL.
#[test]
fn a_socket_of_a_dead_process_is_off() {
    if !has_qemu() {
        return;
    }
    let rig = QemuRig::new(false, &[]);
    in_step(|step| rig.machine.start(step)).unwrap();
    let pid = rig.pid().unwrap();
    assert!(
        Command::new("kill")
            .args(["-KILL", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(!rig.runs());
    let from = Instant::now();
    while in_step(|step| rig.machine.power(step)).unwrap() == Power::On {
        assert!(from.elapsed() < Duration::from_secs(5), "never off");
    }
    assert!(rig.machine.socket.exists(), "the file is left");
    in_step(|step| rig.machine.start(step)).unwrap();
    in_step(|step| rig.machine.power_off(step)).unwrap();
}

/// A monitor of nobody: answers with these bytes and keeps the line open.
fn listener(dir: &Path, answer: &'static [u8]) -> PathBuf {
    let path = dir.join("other");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let mut open: Vec<UnixStream> = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _gone = stream.write_all(answer);
            match answer.is_empty() {
                true => open.push(stream),
                false => drop(stream.read(&mut [0; 64])),
            }
        }
    });
    path
}

fn power_at(socket: PathBuf) -> failback_engine::Result<Power> {
    let machine = QmpMachine::new(socket, Hook::new(["true"]));
    in_step(|step| machine.power(step))
}

// Goal: nobody there is off; whoever is there and does not answer, or not as a monitor does, is
// never off, and ends within bounds. Method: each of them. Needs no QEMU.
#[test]
fn what_is_no_monitor_is_never_off() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(power_at(dir.path().join("none")).unwrap(), Power::Off);
    assert!(power_at(dir.path().join("no/folder/here")).is_err());
    assert!(power_at(dir.path().to_owned()).is_err(), "no socket");
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(power_at(dir.path().join("file")).is_err(), "no socket");
    for answer in [
        &b"hello\n"[..],
        b"{}\n",
        b"{\"QMP\":{}}\n{\"return\":{}}\n",
        b"\xff\xff\n",
    ] {
        let sub = tempfile::tempdir().unwrap();
        let error = power_at(listener(sub.path(), answer)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    }
    let from = Instant::now();
    let silent = tempfile::tempdir().unwrap();
    let error = power_at(listener(silent.path(), b"")).unwrap_err();
    assert!(error.message().contains("one client at a time"), "{error}");
    assert!(
        from.elapsed() < Duration::from_secs(15),
        "{:?}",
        from.elapsed()
    );
}

// Goal: a process that ends in the middle of a conversation is off, and no error: it did what it
// was asked, a moment before it was asked again. Method: a monitor that greets and hangs up on the
// first command, or on the greeting, and lets go of its socket a moment later. Needs no QEMU.
#[test]
fn a_monitor_that_ends_while_it_is_asked_is_off() {
    for greets in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ending");
        let listener = UnixListener::bind(&path).unwrap();
        let ending = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            if greets {
                let version = r#"{"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}"#;
                let greeting =
                    format!("{{\"QMP\": {{\"version\": {version}, \"capabilities\": []}}}}\n");
                stream.write_all(greeting.as_bytes()).unwrap();
                assert!(stream.read(&mut [0; 256]).unwrap() > 0, "qmp_capabilities");
                stream.write_all(b"{\"return\": {}}\n").unwrap();
                assert!(stream.read(&mut [0; 256]).unwrap() > 0, "query-status");
            }
            drop(stream);
            thread::sleep(Duration::from_millis(300));
        });
        let machine = QmpMachine::new(path, Hook::new(["true"]));
        let limit = Duration::from_secs(5);

        let power = in_step(|step| machine.shut_down(step, limit)).unwrap();

        assert_eq!(power, Power::Off);
        ending.join().unwrap();
    }
}
