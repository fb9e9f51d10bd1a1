//! The device code on the emulator, operation by operation, against `f64` and the CPU.
#![allow(clippy::unwrap_used, reason = "a test panics when wrong")]
#![allow(unreachable_pub, reason = "seen by one test binary, exported by none")]

#[path = "../attention_case/mod.rs"]
mod attention_case;
#[path = "../naive/mod.rs"]
mod naive;
#[path = "../tolerance/mod.rs"]
mod tolerance;

mod attention;
