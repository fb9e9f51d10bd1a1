//! Counter-based random numbers (to come).
