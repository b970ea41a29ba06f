//! Goal: disks that Windows, QEMU and Disk2vhd wrote are read right, and not one byte of their
//! files changes. Method: unpack each image of `shared/images`, sync it to a raw file, compare with
//! the sums written down beside the images; what this release does not read is refused by name.
#![cfg(unix)]

use std::fs;

use failback_tests::{cli, images, place, report, sha256};

macro_rules! reads {
    ($($name:ident: $image:literal)+) => {$(
        #[test]
        fn $name() {
            assert_reads($image);
        }
    )+};
}

reads! {
    blocks_of_32_mib_are_read: "iotest-dynamic-1G.vhdx"
    a_dirty_log_is_replayed_in_memory: "iotest-dirtylog-10G-4M.vhdx"
    three_chunks_are_read: "swap.vhdx"
    unmapped_blocks_and_stale_log_entries_are_read: "lvm2.vhdx"
    a_block_larger_than_the_disk_is_read: "ntfs-dynamic.vhdx"
    stray_entries_past_the_end_are_read: "ext2.vhdx"
    a_parent_is_read_as_a_disk_of_its_own: "fat-parent.vhdx"
    a_vhd_of_qemu_has_the_size_of_its_geometry: "ext2.vhd"
    a_fixed_vhd_is_not_taken_for_raw: "fat-parent.vhd"
    a_dynamic_vhd_of_windows_10_is_read: "ntfs-dynamic.vhd"
}

// The list has no sum of its 127 GiB of zeros.
#[test]
fn an_empty_vhd_of_hyper_v_is_read() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let Some((image, path)) = images::unpack("hyperv2012r2-dynamic.vhd", dir.path()) else {
        return;
    };
    let target = dir.path().join("out.vhdx");

    let run = cli::sync(&path, &target).exits(0);

    report::assert_done(&run.json());
    assert_eq!(
        report::count(&run.json(), "/source/virtual_size"),
        image.virtual_size
    );
    assert_eq!(report::count(&run.json(), "/blocks/hashed"), 0);
    assert_eq!(sha256::of_file(&path), image.file_sha256);
}

#[test]
fn a_differencing_vhd_is_described() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let Some((_, path)) = images::unpack("fat-differential.vhd", dir.path()) else {
        return;
    };

    let run = cli::failback(["info".as_ref(), path.as_os_str(), "--json".as_ref()]);

    let vhd = &run.exits(0).json()["vhd"];
    assert_eq!(vhd["kind"], "differencing");
    assert_eq!(vhd["parent_paths"][1], ".\\fat-parent.vhd");
}

fn assert_reads(name: &str) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let Some((image, path)) = images::unpack(name, dir.path()) else {
        return;
    };
    assert_eq!(sha256::of_file(&path), image.file_sha256);
    let target = dir.path().join("out.raw");

    let run = cli::sync(&path, &target).exits(0);

    report::assert_done(&run.json());
    assert_eq!(
        report::count(&run.json(), "/source/virtual_size"),
        image.virtual_size
    );
    assert_eq!(
        fs::metadata(&target).expect("target").len(),
        image.virtual_size
    );
    assert_eq!(sha256::of_file(&target), image.content_sha256);
    assert_eq!(
        sha256::of_file(&path),
        image.file_sha256,
        "the source file changed"
    );
    assert_eq!(place::names(dir.path()).len(), 2, "source and target only");
}
