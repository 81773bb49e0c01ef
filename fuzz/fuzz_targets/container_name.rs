//! Runs `refit::fuzzing::container_name`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| refit::fuzzing::container_name(data));
