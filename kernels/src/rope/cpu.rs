//! CPU implementation (to come).
