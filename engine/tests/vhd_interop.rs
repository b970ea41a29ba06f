//! Goal: QEMU, 7-Zip, libvhdi and this engine read and write each other's VHDs. Method: random
//! changes on one side, the sum of the whole disk on the other.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod vhd_support;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use failback_engine::disk::vhd::{CreateOptions, SizeRule, VhdImage};
use failback_vhdx::FileAt;
use vhd_support::{NAMES, Random, SECTOR, empty, has, mend_sums, read_all, run, sha256, span};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Random writes and zeros through an image, and the disk that comes of them.
fn scribbled(image: &VhdImage) -> Vec<u8> {
    let mut random = Random(0x5eed_0100);
    let mut model = read_all(image);
    let sectors = image.virtual_size() / 512;
    for step in 0..200_u8 {
        let first = random.below(sectors);
        let count = (1 + random.below(300)).min(sectors - first);
        let range = first * 512..(first + count) * 512;
        let fill = if step % 4 == 0 { 0 } else { step };
        match fill {
            0 => image.zero(range.clone()).unwrap(),
            byte => {
                let data = vec![byte; usize::try_from(count).unwrap() * SECTOR];
                image.write_at(range.start, &data).unwrap();
            }
        }
        model[span(&range)].fill(fill);
    }
    image.close().unwrap();
    model
}

fn new_file(path: &Path) -> Arc<File> {
    let mut options = File::options();
    Arc::new(
        options
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap(),
    )
}

fn seven_zip_sum(path: &Path) -> String {
    let output = run("7zz", &["x", "-so", "-tvhd", path.to_str().unwrap()]);
    sha256(&output.stdout)
}

fn qemu_sum(path: &Path) -> String {
    let raw = path.with_extension("qemu.raw");
    let [from, to] = [path, &raw].map(|path| path.to_str().unwrap());
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", from, to]);
    sha256(&fs::read(raw).unwrap())
}

#[test]
fn qemu_and_seven_zip_read_what_is_written_here() {
    if !has("qemu-img") || !has("7zz") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (is_fixed, len, block_size) in [
        (false, 20 * MIB, 2 << 20),
        (false, 9 * MIB + 512, 512 << 10),
        (false, 9 * MIB, 4 << 20),
        (true, 5 * MIB, 2 << 20),
        (true, 5 * MIB + 1536, 2 << 20),
    ] {
        let path = dir.path().join(format!("{len}-{is_fixed}.vhd"));
        let options = CreateOptions {
            block_size: Some(block_size),
            ..CreateOptions::new(len, is_fixed)
        };
        let sum = sha256(&scribbled(
            &VhdImage::create(new_file(&path), &options).unwrap(),
        ));
        assert_eq!(qemu_sum(&path), sum, "QEMU: {len} {is_fixed} {block_size}");
        assert_eq!(
            seven_zip_sum(&path),
            sum,
            "7-Zip: {len} {is_fixed} {block_size}"
        );
    }
}

#[test]
fn what_qemu_writes_is_read_and_written_here() {
    if !has("qemu-img") || !has("qemu-io") || !has("7zz") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for subformat in [
        "dynamic",
        "fixed",
        "dynamic,force_size=on",
        "fixed,force_size=on",
    ] {
        let path = dir.path().join(format!("{subformat}.vhd"));
        let text = path.to_str().unwrap();
        let option = format!("subformat={subformat}");
        run(
            "qemu-img",
            &["create", "-q", "-f", "vpc", "-o", &option, text, "10M"],
        );
        let writes = ["write -P 3 1M 3M", "write -P 4 512 4k", "write -P 5 9M 64k"];
        for write in writes {
            run("qemu-io", &["-f", "vpc", "-c", write, text]);
        }
        let open = || Arc::new(File::options().read(true).write(true).open(&path).unwrap());
        let image = VhdImage::open_rw(open()).unwrap();
        let is_forced = subformat.contains("force");
        let rule = if is_forced {
            SizeRule::CurrentSize
        } else {
            SizeRule::Geometry
        };
        assert_eq!(image.size_rule(), rule);
        assert_eq!(
            image.virtual_size(),
            if is_forced { 10 * MIB } else { 10_514_432 }
        );
        assert_eq!(sha256(&read_all(&image)), qemu_sum(&path), "{subformat}");
        let sum = sha256(&scribbled(&image));
        assert_eq!(qemu_sum(&path), sum, "{subformat}");
        assert_eq!(seven_zip_sum(&path), sum, "{subformat}");
    }
}

// Goal: QEMU takes the size that is meant, for sizes that no geometry can express, and the same as
// we do of other programs' images. Method: its own account of images made here, under each name.
#[test]
fn qemu_agrees_on_sizes() {
    if !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for len in [
        512,
        MIB,
        10 * MIB + 512,
        100 * GIB + 1024,
        128 * GIB,
        2040 * GIB,
    ] {
        let path = dir.path().join(format!("{len}.vhd"));
        drop(VhdImage::create(new_file(&path), &CreateOptions::new(len, false)).unwrap());
        assert!(qemu_says_size(&path, len), "{len}");
    }
    let path = dir.path().join("creators.vhd");
    for creator in [
        b"win ", b"qem2", b"d2v ", b"vs  ", b"none", b"vpc ", b"qemu",
    ] {
        let file = empty(100 * GIB + 1024, false, 2 << 20);
        file.write_at(28, creator).unwrap();
        mend_sums(&file);
        fs::write(&path, file.to_bytes()).unwrap();
        let size = VhdImage::open(file).unwrap().virtual_size();
        assert!(qemu_says_size(&path, size), "{creator:?} {size}");
    }
}

fn qemu_says_size(path: &Path, len: u64) -> bool {
    let args = ["info", "--output=json", "-f", "vpc", path.to_str().unwrap()];
    let said = String::from_utf8(run("qemu-img", &args).stdout).unwrap();
    said.contains(&format!("\"virtual-size\": {len},"))
}

#[test]
fn seven_zip_reads_a_chain_made_here() {
    if !has("7zz") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [parent_path, child_path] = ["parent.vhd", "child.vhd"].map(|name| dir.path().join(name));
    let options = CreateOptions::new(10 * MIB, false);
    let parent = VhdImage::create(new_file(&parent_path), &options).unwrap();
    scribbled(&parent);
    drop(parent);
    let parent = VhdImage::open(Arc::new(File::open(&parent_path).unwrap())).unwrap();
    let file = new_file(&child_path);
    let child = VhdImage::create_child(file, Arc::new(parent), NAMES, None).unwrap();
    for at in [0, 3 * MIB + 512, 9 * MIB] {
        child.write_at(at, &[250; 70 * SECTOR]).unwrap();
        child.zero(at + MIB / 2..at + MIB / 2 + 9 * 512).unwrap();
    }
    child.close().unwrap();
    assert_eq!(seven_zip_sum(&child_path), sha256(&read_all(&child)));
}

// Goal: a third reader agrees. Method: libvhdi's Python module reads disks without parent.
#[test]
fn libvhdi_reads_what_is_written_here() {
    let python = "/usr/bin/python3";
    let program = "import sys, hashlib, pyvhdi\n\
                   f = pyvhdi.file(); f.open(sys.argv[1])\n\
                   print(hashlib.sha256(f.read_buffer(f.get_media_size())).hexdigest())";
    if !has("vhdiinfo") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for is_fixed in [false, true] {
        let path = dir.path().join(format!("{is_fixed}.vhd"));
        let options = CreateOptions::new(9 * MIB, is_fixed);
        let sum = sha256(&scribbled(
            &VhdImage::create(new_file(&path), &options).unwrap(),
        ));
        let said = run(python, &["-c", program, path.to_str().unwrap()]).stdout;
        assert_eq!(
            String::from_utf8(said).unwrap().trim(),
            sum,
            "fixed: {is_fixed}"
        );
    }
}
