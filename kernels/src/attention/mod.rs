//! attention (contract to come)
