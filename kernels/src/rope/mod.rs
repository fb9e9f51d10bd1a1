//! rope (contract to come)
