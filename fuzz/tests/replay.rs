//! Goal: what once broke a target, and what shows its ways, holds on stable. Method: every file of
//! `corpus/TARGET` goes through the target's function; each corpus is there and small.

use std::fs;
use std::path::Path;

/// Bytes of all corpora together: they are cloned with the project.
const CORPORA_LEN_MAX: usize = 200 << 10;

#[test]
fn vhdx_open_holds() {
    replay("vhdx_open", failback_fuzz::vhdx_open);
}

#[test]
fn vhdx_log_replay_holds() {
    replay("vhdx_log_replay", failback_fuzz::vhdx_log_replay);
}

#[test]
fn vhdx_metadata_holds() {
    replay("vhdx_metadata", failback_fuzz::vhdx_metadata);
}

#[test]
fn vhdx_write_holds() {
    replay("vhdx_write", failback_fuzz::vhdx_write);
}

#[test]
fn vhd_disk_holds() {
    replay("vhd_disk", failback_fuzz::vhd_disk);
}

#[test]
fn gpt_mbr_holds() {
    replay("gpt_mbr", failback_fuzz::gpt_mbr);
}

#[test]
fn wire_frames_hold() {
    replay("wire_frames", failback_fuzz::wire_frames);
}

// Goal: targets take any bytes. Method: every prefix and every single flipped byte of small inputs.
#[test]
fn broken_inputs_hold() {
    for (target, run) in TARGETS {
        for mut input in inputs(target).into_iter().filter(|input| input.len() < 600) {
            for len in 0..input.len() {
                run(&input[..len]);
            }
            for at in 0..input.len() {
                input[at] ^= 0x81;
                run(&input);
                input[at] ^= 0x81;
            }
        }
    }
}

#[test]
fn corpora_are_small() {
    let lens = TARGETS
        .iter()
        .flat_map(|(target, _)| inputs(target))
        .map(|input| input.len());
    assert!(lens.sum::<usize>() <= CORPORA_LEN_MAX);
}

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("vhdx_open", failback_fuzz::vhdx_open),
    ("vhdx_log_replay", failback_fuzz::vhdx_log_replay),
    ("vhdx_metadata", failback_fuzz::vhdx_metadata),
    ("vhdx_write", failback_fuzz::vhdx_write),
    ("vhd_disk", failback_fuzz::vhd_disk),
    ("gpt_mbr", failback_fuzz::gpt_mbr),
    ("wire_frames", failback_fuzz::wire_frames),
];

fn replay(target: &str, run: Target) {
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "no corpus for {target}");
    inputs.iter().for_each(|input| run(input));
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("entry").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("input"))
        .collect()
}
