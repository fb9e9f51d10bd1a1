//! Frozen products on every backend.

mod naive;
