//! The emulator on sample kernels: results, every kind of finding, fragment layouts.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]
#![expect(clippy::cast_possible_truncation, reason = "sizes of the samples are small")]
#![expect(clippy::cast_precision_loss, reason = "sizes of the samples are small")]
#![expect(clippy::float_cmp, reason = "integers of few bits: every product and sum is exact")]

mod faults;
mod harness;
mod layouts;
mod samples;
