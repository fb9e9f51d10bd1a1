//! loss (contract to come)
