//! activation (contract to come)
