//! QEMU's image tools: the foreign writer, and the first judge.

use std::path::Path;

use crate::tools;

/// How a disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain bytes.
    Raw,
    /// Dynamic VHDX with blocks of so many MiB.
    Dynamic(u32),
    /// Fixed VHDX.
    Fixed,
    /// Dynamic VHD.
    VhdDynamic,
    /// Fixed VHD.
    VhdFixed,
}

impl Format {
    /// The name that failback's reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Dynamic(_) | Self::Fixed => "vhdx",
            Self::VhdDynamic | Self::VhdFixed => "vhd",
        }
    }

    /// The name that `qemu-img -f` uses.
    fn driver(self) -> &'static str {
        match self.name() {
            "vhd" => "vpc",
            name => name,
        }
    }

    fn options(self) -> Vec<String> {
        let options = match self {
            Self::Raw => return Vec::new(),
            Self::Dynamic(mib) => format!("subformat=dynamic,block_size={}", u64::from(mib) << 20),
            Self::Fixed => "subformat=fixed".into(),
            // Without it the size is rounded to a geometry.
            Self::VhdDynamic => "subformat=dynamic,force_size=on".into(),
            Self::VhdFixed => "subformat=fixed,force_size=on".into(),
        };
        vec!["-o".into(), options]
    }
}

/// Makes an empty image of `len` bytes.
///
/// # Panics
///
/// When qemu-img fails.
pub fn create(path: &Path, format: Format, len: u64) {
    let mut args = vec![
        "create".into(),
        "-q".into(),
        "-f".into(),
        format.driver().into(),
    ];
    args.extend(format.options());
    args.extend([text(path), len.to_string()]);
    tools::run("qemu-img", args);
}

/// Writes the content of a raw disk into a new image.
///
/// # Panics
///
/// When qemu-img fails.
pub fn convert(raw: &Path, image: &Path, format: Format) {
    let mut args: Vec<String> = ["convert", "-f", "raw", "-O", format.driver()]
        .map(Into::into)
        .into();
    args.extend(format.options());
    args.extend([text(raw), text(image)]);
    tools::run("qemu-img", args);
}

/// Fails unless QEMU reads the same content from both.
///
/// # Panics
///
/// When the contents differ or cannot be read.
pub fn assert_identical(a: (&Path, Format), b: (&Path, Format)) {
    let said = compare(a, b);
    assert!(said.is_ok(), "{said:?}");
}

/// Whether QEMU reads the same content from both; what it said, if not.
///
/// # Errors
///
/// As said.
pub fn compare(a: (&Path, Format), b: (&Path, Format)) -> Result<(), String> {
    let args = [
        "compare",
        "-f",
        a.1.driver(),
        "-F",
        b.1.driver(),
        &text(a.0),
        &text(b.0),
    ];
    let done = tools::output("qemu-img", args);
    let said = [&done.stdout, &done.stderr].map(|said| String::from_utf8_lossy(said));
    match done.status.success() && said[0].contains("identical") {
        true => Ok(()),
        false => Err(said.concat()),
    }
}

/// Fails unless QEMU finds the structure sound. A raw disk has none, a VHD is not checked by QEMU.
///
/// # Panics
///
/// When the check fails.
pub fn assert_clean(path: &Path, format: Format) {
    if matches!(format, Format::Dynamic(_) | Format::Fixed) {
        let said = tools::run("qemu-img", ["check", "-f", format.driver(), &text(path)]);
        assert!(said.contains("No errors were found"), "{said}");
    }
}

/// Runs commands of qemu-io (`write -P 7 0 64k`) on an image, one after the other.
///
/// # Panics
///
/// When one of them fails.
pub fn io(path: &Path, format: Format, commands: &[String]) {
    let mut args = vec!["-f".to_owned(), format.driver().into()];
    args.extend(
        commands
            .iter()
            .flat_map(|command| ["-c".to_owned(), command.clone()]),
    );
    args.push(text(path));
    tools::run("qemu-io", args);
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths of tests are UTF-8").to_owned()
}
