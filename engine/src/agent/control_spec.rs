//! What an agent may be asked of machines, as data: written by hand as TOML, or built by a program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Format, OpenOptions};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::hook::Hook;
use crate::job::{
    MachineSpec, SnapshotSpec, TrackerSpec, from_base, from_toml, is_name, of_side, refuse_relative,
};

/// The machines that jobs of other hosts may control.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSpec {
    /// Each by the name of its pair: letters, digits, `-` and `_`, 64 at most.
    #[serde(rename = "pair")]
    pub pairs: BTreeMap<String, PairSpec>,
}

/// This host's side of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSpec {
    /// What this side is called, the same as in every job of the pair.
    #[serde(default = "recovery")]
    pub side: String,
    /// How the machine is stopped and started.
    pub machine: MachineSpec,
    /// How its disks are frozen while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotSpec>,
    /// What knows which parts of a disk changed since a snapshot; `None`: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<TrackerSpec>,
    /// Runs after the machine was started, and says by its exit whether it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Hook>,
    /// Deletes one of its disks, `FAILBACK_IMAGE`; ends well when it is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_disk: Option<Hook>,
    /// Its disks.
    #[serde(rename = "disk")]
    pub disks: Vec<PairDiskSpec>,
}

/// One disk of a machine that is controlled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairDiskSpec {
    /// What it is called, the same as in every job of the pair.
    pub id: String,
    /// The image that the machine runs from.
    pub path: PathBuf,
    /// Its format, where its magic is not to be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Parents of differencing images are taken from where the images name them.
    #[serde(default)]
    pub follow_parents: bool,
    /// Images that seem to stand on it do not.
    #[serde(default)]
    pub skip_sibling_check: bool,
}

impl ControlSpec {
    /// Reads what was written as TOML, with whole paths.
    ///
    /// # Errors
    /// `Usage` with the line that is wrong.
    pub fn from_toml(text: &str) -> Result<Self> {
        let spec: Self = from_toml(text, "control file")?;
        spec.check()?;
        Ok(spec)
    }

    /// The same, with relative paths taken from `base`, which is absolute.
    ///
    /// # Errors
    /// As [`ControlSpec::from_toml`].
    pub fn from_toml_at(text: &str, base: &Path) -> Result<Self> {
        let mut spec: Self = from_toml(text, "control file")?;
        spec.each_path(&mut from_base(base)?)?;
        spec.check()?;
        Ok(spec)
    }

    fn each_path(&mut self, visit: &mut dyn FnMut(&str, &mut PathBuf) -> Result<()>) -> Result<()> {
        for (name, pair) in &mut self.pairs {
            for disk in &mut pair.disks {
                visit(
                    &format!("disk `{}` of pair `{name}`", disk.id),
                    &mut disk.path,
                )?;
            }
            let own = [
                ("probe", pair.probe.as_mut()),
                ("delete_disk", pair.delete_disk.as_mut()),
            ];
            let parts = (Some(&mut pair.machine), pair.snapshots.as_mut());
            of_side(&format!("pair `{name}`"), parts, own, visit)?;
        }
        Ok(())
    }

    /// Whether it makes sense by itself. Its paths are whole.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        for (name, pair) in &self.pairs {
            let ids = pair.disks.iter().map(|disk| &disk.id);
            for name in [name, &pair.side].into_iter().chain(ids) {
                if !is_name(name) {
                    let shown = one_line(name);
                    return usage(format!(
                        "`{shown}` is no name: 1 to 64 letters, digits, `-` and `_`"
                    ));
                }
            }
            if pair.disks.is_empty() {
                return usage(format!("pair `{name}` has no disk"));
            }
            for (at, disk) in pair.disks.iter().enumerate() {
                let before = &pair.disks[..at];
                if before.iter().any(|other| other.id == disk.id) {
                    return usage(format!(
                        "two disks of pair `{name}` are called `{}`",
                        disk.id
                    ));
                }
                disk.open()?;
            }
        }
        self.clone().each_path(&mut refuse_relative)?;
        // A path of two machines would be stopped by one and written by the other.
        let mut paths: Vec<_> = self.pairs.values().flat_map(|pair| &pair.disks).collect();
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        match paths.windows(2).find(|two| two[0].path == two[1].path) {
            Some(two) => usage(format!("two disks are `{}`", two[0].path.display())),
            None => Ok(()),
        }
    }
}

impl PairDiskSpec {
    pub(super) fn open(&self) -> Result<OpenOptions> {
        if self.path.as_os_str().is_empty() {
            return usage(format!("disk `{}` has no path", self.id));
        }
        let format: Option<Format> = self.format.as_deref().map(str::parse).transpose()?;
        Ok(OpenOptions {
            format,
            follow_parents: self.follow_parents,
            skip_sibling_check: self.skip_sibling_check,
            ..OpenOptions::default()
        })
    }
}

fn usage<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Usage, message))
}

fn recovery() -> String {
    "recovery".to_owned()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[pair.web]
probe = ["true"]
[pair.web.machine]
kind = "hooks"
power = ["power"]
start = ["start"]
[pair.web.snapshots]
kind = "reflink"
[[pair.web.disk]]
id = "os"
path = "/vm/os.vhdx"
[[pair.web.disk]]
id = "data"
path = "/vm/data.raw"
format = "raw"
"#;

    // Goal: a control file means what was written. Method: all of its keys.
    #[test]
    fn a_control_file_is_read() {
        let spec = ControlSpec::from_toml(FILE).unwrap();
        let pair = &spec.pairs["web"];
        assert_eq!(pair.side, "recovery");
        assert_eq!(pair.snapshots, Some(SnapshotSpec::Reflink {}));
        assert_eq!(pair.disks[1].open().unwrap().format, Some(Format::Raw));
    }

    // Goal: in doubt nothing can be controlled. Method: one near miss after the other.
    #[test]
    fn a_bad_control_file_is_refused() {
        let misses = [
            ("[pair.web]", "[pair.\"we b\"]"),
            ("[pair.web]", "[pair.web]\nside = \"a/b\""),
            ("id = \"data\"", "id = \"os\""),
            ("id = \"data\"", "id = \"../os\""),
            ("/vm/data.raw", "/vm/os.vhdx"),
            ("/vm/data.raw", ""),
            ("/vm/data.raw", "vm/data.raw"),
            ("[\"true\"]", "[\"bin/true\"]"),
            ("format = \"raw\"", "format = \"rar\""),
            ("kind = \"hooks\"", "kind = \"prayer\""),
            ("\"reflink\"", "\"reflink\"\ncreate = [\"true\"]"),
            ("\"reflink\"", "\"reflink\"\ntracker = \"extents\""),
            ("probe =", "prob ="),
        ];
        for (from, to) in misses {
            let text = FILE.replacen(from, to, 1);
            assert_ne!(text, FILE, "{from}");
            let error = ControlSpec::from_toml(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{to}: {error}");
        }
        let text = FILE.replacen("/vm/data.raw", "vm/data.raw", 1);
        let spec = ControlSpec::from_toml_at(&text, Path::new("/")).unwrap();
        assert_eq!(spec, ControlSpec::from_toml(FILE).unwrap());
        let text = FILE.replacen("probe =", "prob =", 1);
        let error = ControlSpec::from_toml(&text).unwrap_err();
        assert!(error.message().ends_with("(line 3)"), "{error}");
    }
}
