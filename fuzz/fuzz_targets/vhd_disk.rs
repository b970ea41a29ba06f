//! libFuzzer shim of [`failback_fuzz::vhd_disk`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| failback_fuzz::vhd_disk(data));
