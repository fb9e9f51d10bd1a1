//! optim (contract to come)
