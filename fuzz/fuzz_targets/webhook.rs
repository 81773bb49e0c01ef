//! Runs `refit::fuzzing::webhook`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| refit::fuzzing::webhook(data));
