//! embedding (contract to come)
