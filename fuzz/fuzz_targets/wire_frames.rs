//! libFuzzer shim of [`failback_fuzz::wire_frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| failback_fuzz::wire_frames(data));
