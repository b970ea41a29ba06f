//! libFuzzer shim of [`failback_fuzz::gpt_mbr`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| failback_fuzz::gpt_mbr(data));
