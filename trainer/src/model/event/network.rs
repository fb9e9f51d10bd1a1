//! An event model on a backend: its flat vector of parameters, cut where some do not train, and the forms of it that
//! products read.

use super::super::network::{Network, Product};
use super::super::{Error, Result};
use super::{EventSpec, Places};
use kernels::Ops;
use std::path::Path;

/// An event model's parameters.
#[derive(Debug)]
pub struct EventNetwork<B: Ops> {
    pub(super) spec: EventSpec,
    pub(super) places: Places,
    /// The blocks; the head's weight is the reconstruction layer's.
    pub(super) trunk: Network<B>,
    pub(super) reconstruction_bias: B::Buf<f32>,
    pub(super) prediction: Option<Product<B>>,
    /// The parameters that do not train, the first ones.
    pub(super) frozen: B::Buf<f32>,
    /// Those that train.
    pub(super) params: B::Buf<f32>,
}

impl<B: Ops> EventNetwork<B> {
    /// A model of zeros, to be loaded.
    ///
    /// # Errors
    /// [`Error::Setting`] for a specification that is none; when the backend has no memory.
    pub fn new(backend: B, spec: EventSpec) -> Result<Self> {
        Self::partly(backend, spec, 0)
    }

    /// A model of zeros, whose lowest `frozen` blocks and what is below them stay as they are loaded when it trains whole.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Setting`] for more blocks than there are.
    pub fn partly(backend: B, spec: EventSpec, frozen: usize) -> Result<Self> {
        spec.validate()?;
        if frozen > spec.layers {
            let reason = format!("{frozen} of {} blocks", spec.layers);
            return Err(Error::setting(Path::new("event model"), "frozen_blocks", reason));
        }
        let places = Places::partly(&spec, frozen);
        let at = places.prediction;
        Ok(Self {
            reconstruction_bias: backend.alloc(spec.events())?,
            prediction: at.map(|at| Product::zeros(&backend, at.shape)).transpose()?,
            frozen: backend.alloc(places.frozen())?,
            params: backend.alloc(places.trained())?,
            trunk: Network::trainable(backend, spec.trunk(), frozen)?,
            places,
            spec,
        })
    }

    /// What the model is.
    pub fn spec(&self) -> &EventSpec {
        &self.spec
    }

    /// Where its parameters lie.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The blocks, as engine and adapters see them.
    pub fn trunk(&self) -> &Network<B> {
        &self.trunk
    }

    /// Takes all parameters.
    ///
    /// # Errors
    /// [`Error::Batch`] when there are not as many as the model has.
    pub fn load(&mut self, params: &[f32]) -> Result<()> {
        if params.len() != self.places.len() {
            let (got, expected) = (params.len(), self.places.len());
            return Err(Error::Batch {
                what: format!("{got} parameters, the model has {expected}"),
            });
        }
        let (frozen, trained) = params.split_at(self.places.frozen());
        self.trunk.backend.write(&mut self.frozen, 0, frozen)?;
        self.trunk.backend.write(&mut self.params, 0, trained)?;
        self.trunk.refresh_frozen(&self.frozen, &self.places.trunk)?;
        self.refresh()
    }

    /// Reads all parameters.
    ///
    /// # Errors
    /// When `params` is longer than the model.
    pub fn read(&self, params: &mut [f32]) -> Result<()> {
        let (frozen, trained) = params.split_at_mut(self.places.frozen().min(params.len()));
        self.trunk.backend.read(&self.frozen, 0, frozen)?;
        Ok(self.trunk.backend.read(&self.params, 0, trained)?)
    }

    /// Lets an optimiser change the parameters that train, then makes anew what products read of them.
    ///
    /// # Errors
    /// What the optimiser or the backend says.
    pub fn adamw(
        &mut self,
        step: impl FnOnce(&B, &mut B::Buf<f32>) -> kernels::Result<()>,
    ) -> Result<()> {
        step(&self.trunk.backend, &mut self.params)?;
        self.refresh()
    }

    /// Makes the forms that products read of the parameters that train.
    ///
    /// # Errors
    /// When the backend says so.
    fn refresh(&mut self) -> Result<()> {
        self.trunk.refresh(&self.params, &self.places.trunk)?;
        let at = self.places.reconstruction;
        let backend = &self.trunk.backend;
        backend.refresh(&mut self.trunk.head, &self.params, at.weight)?;
        backend.refresh_vector(&mut self.reconstruction_bias, &self.params, at.bias)?;
        match (&mut self.prediction, self.places.prediction) {
            (Some(product), Some(at)) => product.refresh(backend, &self.params, at),
            _ => Ok(()),
        }
    }
}
