//! What a block device is called that outlives a reboot: its number does not.
//!
//! ```text
//! dm-uuid    of a mapped device (LVM, LUKS, multipath)
//! wwid       of a disk (SCSI, SATA, NVMe)
//! serial     of a disk (virtio, NVMe, MMC)
//! partuuid   of a partition whose disk has none of these; else the disk's, and its number
//! by-id      whatever else udev found
//! ```
//! The first that is there counts. Two devices can share a name (a serial that was given twice), so
//! that it comes with the length, and what is written over is looked at as well.

use std::fs;
use std::path::Path;

/// Links of udev that say what a device is, and not where it is plugged in, best first.
const LINK_KINDS: &[&str] = &[
    "wwn-", "nvme-", "scsi-", "ata-", "virtio-", "dm-", "md-", "usb-",
];

/// The name of the device with this number, as far as `sys` (/sys) and `dev` (/dev) know one.
pub(super) fn lasting_name(sys: &Path, dev: &Path, (major, minor): (u64, u64)) -> Option<String> {
    let device = sys.join(format!("dev/block/{major}:{minor}"));
    let of_disk = |disk: &Path| {
        let files = [
            ("dm-uuid", "dm/uuid"),
            ("wwid", "wwid"),
            ("wwid", "device/wwid"),
            ("serial", "serial"),
            ("serial", "device/serial"),
        ];
        let mut known = files
            .iter()
            .filter_map(|(kind, file)| Some(format!("{kind}:{}", text_in(&disk.join(file))?)));
        known.next()
    };
    let from_sys = match text_in(&device.join("partition")) {
        None => of_disk(&device),
        // The link is followed first: the directory above is the disk's.
        Some(number) => of_disk(&device.join(".."))
            .map(|disk| format!("{disk}:part{number}"))
            .or_else(|| part_uuid(&device)),
    };
    from_sys.or_else(|| {
        let node = dev.join(fs::canonicalize(&device).ok()?.file_name()?);
        let id = best_link(&dev.join("disk/by-id"), &node);
        let partition = || best_link(&dev.join("disk/by-partuuid"), &node);
        id.map(|id| format!("by-id:{id}"))
            .or_else(|| partition().map(|id| format!("partuuid:{id}")))
    })
}

/// The words of a file of one line; `None` where there are none.
fn text_in(file: &Path) -> Option<String> {
    let bytes = fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c == '\0')
        .filter(|word| !word.is_empty())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn part_uuid(device: &Path) -> Option<String> {
    let events = fs::read_to_string(device.join("uevent")).ok()?;
    let uuid = events
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="))?;
    Some(format!("partuuid:{uuid}"))
}

/// The best name in `directory` that leads to `node`.
fn best_link(directory: &Path, node: &Path) -> Option<String> {
    let node = fs::canonicalize(node).ok()?;
    let names = fs::read_dir(directory).ok()?.flatten();
    let leads_there = |path: &Path| fs::canonicalize(path).is_ok_and(|found| found == node);
    let names = names.filter(|entry| leads_there(&entry.path()));
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let rank = |name: &String| {
        let kind = LINK_KINDS.iter().position(|kind| name.starts_with(kind));
        (kind.unwrap_or(LINK_KINDS.len()), name.clone())
    };
    names.min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A host with a disk 8:0 that has these files, and its first partition.
    struct Host(tempfile::TempDir);

    impl Host {
        fn with(files: &[(&str, &str)]) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            for (name, number) in [("sda", "8:0"), ("sda/sda1", "8:1")] {
                host.put(&format!("sys/devices/{name}/uevent"), "DEVTYPE=x\n");
                let link = host.path("sys/dev/block").join(number);
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                symlink(host.path("sys/devices").join(name), link).unwrap();
            }
            host.put("sys/devices/sda/sda1/partition", "1\n");
            host.put("dev/sda", "");
            host.put("dev/sda1", "");
            files.iter().for_each(|(file, text)| host.put(file, text));
            host
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn put(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        fn link(self, name: &str, node: &str) -> Self {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            symlink(self.path(node), self.path(name)).unwrap();
            self
        }

        fn names(&self) -> [Option<String>; 2] {
            let name = |minor| lasting_name(&self.path("sys"), &self.path("dev"), (8, minor));
            [name(0), name(1)]
        }
    }

    fn both(disk: &str, partition: &str) -> [Option<String>; 2] {
        [Some(disk.to_owned()), Some(partition.to_owned())]
    }

    // Goal: a device is called by what stays with it. Method: hosts that know more and less of a
    // disk and its partition.
    #[test]
    fn a_device_is_called_by_the_best_that_is_known() {
        let serial = ("sys/devices/sda/serial", "disk-7\n");
        let wwid = ("sys/devices/sda/device/wwid", "t10.ATA     Model   S1\n");
        let uuid = (
            "sys/devices/sda/sda1/uevent",
            "PARTNAME=x\nPARTUUID=ab-01\n",
        );
        let empty = ("sys/devices/sda/wwid", "\0\n");
        let by_id = |host: Host| {
            host.link("dev/disk/by-id/usb-x", "dev/sda")
                .link("dev/disk/by-id/wwn-0x5", "dev/sda")
                .link("dev/disk/by-id/wwn-0x4-part1", "dev/sda1")
        };

        assert_eq!(
            Host::with(&[serial, wwid, uuid, empty]).names(),
            both("wwid:t10.ATA Model S1", "wwid:t10.ATA Model S1:part1")
        );
        assert_eq!(
            Host::with(&[serial]).names(),
            both("serial:disk-7", "serial:disk-7:part1")
        );
        assert_eq!(
            by_id(Host::with(&[uuid])).names(),
            both("by-id:wwn-0x5", "partuuid:ab-01")
        );
        assert_eq!(
            by_id(Host::with(&[])).names(),
            both("by-id:wwn-0x5", "by-id:wwn-0x4-part1")
        );
        let alone = Host::with(&[]).link("dev/disk/by-partuuid/cd-02", "dev/sda1");
        assert_eq!(alone.names(), [None, Some("partuuid:cd-02".to_owned())]);
    }
}
