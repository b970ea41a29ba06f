//! Paths that an operator wrote: whole ones alone mean the same to every process that reads them.

use std::path::{Path, PathBuf};

use super::spec::{JobSpec, MachineSpec, SideSpec, SnapshotSpec};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::hook::Hook;

/// Told of each path: what it is called to the operator, and where it stands.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&str, &mut PathBuf) -> Result<()>;

impl JobSpec {
    /// The same with each relative path taken from `base`, which is absolute itself.
    ///
    /// # Errors
    /// `Usage` for a base that is not, and for a path that no definition can have.
    pub fn with_paths_from(mut self, base: &Path) -> Result<Self> {
        each_path(&mut self, &mut from_base(base)?)?;
        Ok(self)
    }

    /// A job lives longer than the process that began it, and the next one stands elsewhere.
    pub(super) fn refuse_relative_paths(&self) -> Result<()> {
        each_path(&mut self.clone(), &mut refuse_relative)
    }
}

fn each_path(spec: &mut JobSpec, visit: Visit<'_>) -> Result<()> {
    for disk in &mut spec.disks {
        visit(&format!("target of disk `{}`", disk.id), &mut disk.target)?;
        if let Some(source) = &mut disk.source
            && let Endpoint::Path(_) = source.parse()?
        {
            each_text(&format!("source of disk `{}`", disk.id), source, visit)?;
        }
    }
    if let Some(directory) = &mut spec.policy.export_on_undo {
        visit("export_on_undo", directory)?;
    }
    for (name, side) in [("source", &mut spec.source), ("target", &mut spec.target)] {
        let SideSpec {
            machine,
            snapshots,
            probe,
            delete_disk,
            ..
        } = side;
        let (machine, snapshots) = (machine.as_mut(), snapshots.as_mut());
        let own = [
            ("probe", probe.as_mut()),
            ("delete_disk", delete_disk.as_mut()),
        ];
        of_side(name, (machine, snapshots), own, visit)?;
    }
    Ok(())
}

/// A hook of a side that is none of its machine's, and its name.
pub(crate) type OwnHook<'a> = (&'static str, Option<&'a mut Hook>);

/// What a side says of its machine: `name` is what the side is called to the operator.
pub(crate) fn of_side(
    name: &str,
    (machine, snapshots): (Option<&mut MachineSpec>, Option<&mut SnapshotSpec>),
    own: [OwnHook<'_>; 2],
    visit: Visit<'_>,
) -> Result<()> {
    let mut hooks: Vec<(&str, &mut Hook)> = Vec::new();
    match machine {
        Some(MachineSpec::Qmp(qmp)) => {
            visit(&format!("socket of {name}"), &mut qmp.socket)?;
            hooks.push(("start", &mut qmp.start));
            hooks.extend(qmp.delete.as_mut().map(|hook| ("delete", hook)));
        }
        Some(MachineSpec::Hooks(machine)) => {
            hooks.push(("power", &mut machine.power));
            hooks.push(("start", &mut machine.start));
            hooks.extend(machine.shut_down.as_mut().map(|hook| ("shut_down", hook)));
            hooks.extend(machine.power_off.as_mut().map(|hook| ("power_off", hook)));
            hooks.extend(machine.delete.as_mut().map(|hook| ("delete", hook)));
        }
        None => {}
    }
    if let Some(SnapshotSpec::Hooks(snapshots)) = snapshots {
        hooks.push(("create", &mut snapshots.create));
        hooks.push(("release", &mut snapshots.release));
        hooks.extend(snapshots.list.as_mut().map(|hook| ("list", hook)));
    }
    hooks.extend(
        own.into_iter()
            .filter_map(|(name, hook)| Some((name, hook?))),
    );
    for (hook, command) in hooks {
        // A name without a folder is looked for in the search path.
        let program = command.command.first_mut();
        if let Some(program) = program.filter(|program| Path::new(program).iter().count() > 1) {
            each_text(&format!("program of hook {hook} of {name}"), program, visit)?;
        }
    }
    Ok(())
}

fn each_text(what: &str, text: &mut String, visit: Visit<'_>) -> Result<()> {
    let mut path = PathBuf::from(&*text);
    visit(what, &mut path)?;
    *text = path.into_os_string().into_string().map_err(|path| {
        let message = format!("{what}: has a name that no definition can have: it is not Unicode");
        Error::new(ErrorKind::Usage, message).path(Path::new(&path))
    })?;
    Ok(())
}

/// Takes relative paths from `base`.
///
/// # Errors
/// `Usage` unless that is absolute.
pub(crate) fn from_base(base: &Path) -> Result<impl FnMut(&str, &mut PathBuf) -> Result<()>> {
    refuse_relative("base of paths", &mut base.to_owned())?;
    Ok(|_: &str, path: &mut PathBuf| {
        // An empty one is refused where it is read.
        if !path.as_os_str().is_empty() && !path.is_absolute() {
            // Without the `.` that a path may have in it.
            *path = base.join(&*path).components().collect();
        }
        Ok(())
    })
}

/// # Errors
/// `Usage` for a relative path.
#[expect(clippy::ptr_arg, reason = "the signature is that of all visits")]
pub(crate) fn refuse_relative(what: &str, path: &mut PathBuf) -> Result<()> {
    match path.is_absolute() {
        true => Ok(()),
        false => {
            let message = format!(
                "{what}: a relative path is another place to the next process: it has to be whole"
            );
            Err(Error::new(ErrorKind::Usage, message).path(path))
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
name = "web"
[policy]
export_on_undo = "/var/undone"
[source.machine]
kind = "qmp"
socket = "/run/web.qmp"
start = ["/etc/start"]
[source.snapshots]
kind = "hooks"
create = ["/etc/create"]
release = ["/etc/release"]
[target]
probe = ["/etc/probe"]
[target.machine]
kind = "hooks"
power = ["/etc/power"]
start = ["virsh", "../start"]
[[disk]]
id = "os"
source = "/cloud/os.vhdx"
target = "/vm/os.vhdx"
"#;
    const WHOLE: [&str; 9] = [
        "/var/undone",
        "/run/web.qmp",
        "/etc/start",
        "/etc/create",
        "/etc/release",
        "/etc/probe",
        "/etc/power",
        "/cloud/os.vhdx",
        "/vm/os.vhdx",
    ];

    // Goal: no path of a job depends on where a process stands: a relative one is refused, each of
    // them. Method: one after the other without its first slash, and behind a `./`.
    #[test]
    fn relative_paths_are_refused() {
        JobSpec::from_toml(FILE).unwrap();
        for path in WHOLE {
            for relative in [&path[1..], &format!(".{path}")] {
                let text = FILE.replacen(&format!("\"{path}\""), &format!("\"{relative}\""), 1);
                let error = JobSpec::from_toml(&text).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Usage, "{relative}");
                assert!(error.chain().contains(relative), "{}", error.chain());
            }
        }
    }

    // Goal: relative paths are taken from the folder that the caller names, and nothing else
    // changes. Method: the same definition with all paths relative; a base that is no place.
    #[test]
    fn relative_paths_are_taken_from_a_base() {
        let text = WHOLE.iter().fold(FILE.to_owned(), |text, path| {
            text.replacen(&format!("\"{path}\""), &format!("\".{path}\""), 1)
        });
        let at = |base: &str| JobSpec::from_toml_at(&text, Path::new(base));
        assert_eq!(at("/").unwrap(), JobSpec::from_toml(FILE).unwrap());
        let spec = at("/srv/op").unwrap();
        assert_eq!(spec.disks[0].target, Path::new("/srv/op/vm/os.vhdx"));
        assert_eq!(
            spec.disks[0].source.as_deref(),
            Some("/srv/op/cloud/os.vhdx")
        );
        let Some(MachineSpec::Hooks(machine)) = &spec.target.machine else {
            panic!("it has hooks: {spec:?}");
        };
        assert_eq!(machine.start.command, ["virsh", "../start"]);
        assert_eq!(at("home").unwrap_err().kind(), ErrorKind::Usage);
    }
}
