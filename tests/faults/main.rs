//! What goes wrong, and what becomes of the copy then: crashes, lines, servers, disks, odd input.

#[path = "../support/mod.rs"]
mod support;

/// So that the targets of cargo-fuzz find their macro.
#[cfg(feature = "fuzzing")]
extern crate self as libfuzzer_sys;

/// The fuzzer's, without the fuzzer: what a target does with its bytes.
#[cfg(feature = "fuzzing")]
#[macro_export]
macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:block) => {
        pub fn target($bytes: &[u8]) {
            $body
        }
    };
}

mod atlas_refuses;
#[cfg(feature = "crash-points")]
mod crash_points;
mod elections;
mod fault_matrix;
mod hosts_and_lines;
mod lost_history;
mod many;
mod memory_of_the_unit;
mod names_behind_a_gap;
mod nothing_is_left_behind;
#[cfg(feature = "crash-points")]
mod outbox_crash_points;
mod postgres_behind_a_pooler;
mod postgres_put_back;
mod postgres_target;
mod power_cut;
mod queue_memory;
mod queue_of_another_build;
mod queue_trouble;
#[cfg(feature = "fuzzing")]
mod random_input;
mod servers_change;
mod soak;
mod the_stream_goes_on;
