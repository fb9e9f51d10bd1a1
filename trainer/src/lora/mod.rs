//! What a LoRA adapter is: which products it adapts, where its parameters lie, how it begins, what PEFT
//! calls it.
//!
//! Owns [`Target`] (the adaptable products of both families), [`SiteList`] (the sites of an adapter in
//! their one fixed order, and where each lies in the flat parameter vector), [`SiteLists`] (the lists that users of one
//! run differ in), [`AdapterSpec`] (rank, alpha, dropout), the initialisation, and [`Slabs`] (which slot of the device slabs is whose). Must never know
//! a file, an MPI rank or a device buffer. Start reading at [`SiteList`].

mod init;
mod lists;
mod of_base;
mod sites;
mod slabs;
mod spec;
mod target;

pub use crate::model::spec::Family;
pub use init::initialise;
pub use lists::SiteLists;
pub use of_base::Merge;
pub use sites::{Half, SiteEntry, SiteList, SiteRange, SiteSpec, WholeTensor};
pub use slabs::Slabs;
pub use spec::AdapterSpec;
pub use target::Target;

use crate::ids::Slot;

/// What can be wrong with an adapter's description.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// No product of that name.
    #[error("unknown LoRA target {name:?}: expected one of {expected}")]
    UnknownTarget {
        /// The name as written.
        name: String,
        /// All names.
        expected: String,
    },
    /// A target of another model family than the base.
    #[error("target {target} is not of this base, which is of the family {base:?}")]
    WrongFamily {
        /// Path of the target in its block.
        target: &'static str,
        /// Family of the base.
        base: Family,
    },
    /// A module path no adapter of ours has.
    #[error("{path:?} is not the path of an adaptable product of Llama or GPT-2")]
    UnknownPath {
        /// The path as written.
        path: String,
    },
    /// Targets that no list of the run has.
    #[error("the targets {targets} are not among this run's")]
    UnknownTargets {
        /// Their names.
        targets: String,
    },
    /// A site that the base does not have, or has of another width.
    #[error("the base has no product {path} of that width")]
    NotOfBase {
        /// Its module path.
        path: String,
    },
    /// An adapter without a site.
    #[error("an adapter needs at least one site")]
    NoSites,
    /// The same product twice.
    #[error("site {path} is given twice")]
    DuplicateSite {
        /// Its module path.
        path: String,
    },
    /// Targets of Llama and GPT-2 in one adapter.
    #[error("site {path} is of another model family than the sites before it")]
    MixedFamilies {
        /// Its module path.
        path: String,
    },
    /// A width that is zero or too large to address.
    #[error("site {path} has a width out of bounds: {in_dim} -> {out_dim}")]
    Width {
        /// Its module path.
        path: String,
        /// Input width.
        in_dim: usize,
        /// Output width.
        out_dim: usize,
    },
    /// A number of the recipe out of its range.
    #[error("{field} is {got}, expected {expected}")]
    Range {
        /// Field name.
        field: &'static str,
        /// Value found.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A parameter vector of the wrong length.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Values expected.
        expected: usize,
        /// Values found.
        got: usize,
    },
    /// A slot given back that nobody holds, or that does not exist.
    #[error("slot {slot:?} is not in use")]
    SlotNotHeld {
        /// The slot.
        slot: Slot,
    },
}
