//! norm (contract to come)
