//! Runs `refit::fuzzing::image_reference`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| refit::fuzzing::image_reference(data));
