//! libFuzzer shim of [`failback_fuzz::vhdx_write`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| failback_fuzz::vhdx_write(data));
