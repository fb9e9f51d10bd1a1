//! From a PITuning config as written to as meant.

use super::super::document::Document;
use super::super::error::Error;
use super::super::identity::{self, Difference, Hash};
use super::super::recipe::Recipe;
use super::super::resolve::{nested, recipe_values};
use super::super::value::Checker;
use super::keys::{METHODS, SECTIONS};
use super::resolved::{EventConfig, Method};
use serde::Deserialize as _;
use std::collections::BTreeMap;

/// The key that tells the kinds of runs apart.
pub(in crate::config) const METHOD: &str = "run.method";

impl Document {
    /// The method of the run; none for a run of adapters on a language model, which [`Document::resolve`] takes.
    ///
    /// # Errors
    /// A method that there is not.
    pub fn method(&self) -> Result<Option<Method>, Error> {
        let Some(given) = self.at(METHOD) else { return Ok(None) };
        let checker = Checker { document: self, sections: SECTIONS, variables: &BTreeMap::new() };
        let word = checker.value(METHOD, METHODS, given)?;
        Method::deserialize(word).map(Some).map_err(|e| Error::Unsayable { reason: e.to_string() })
    }

    /// The config of a PITuning run as meant; `variables` are as in [`Document::resolve`].
    ///
    /// What `[data.format]` and `[data.generator]` say is left to their readers. The shape of the adapters that
    /// unlearning begins is the individual stage's.
    ///
    /// # Errors
    /// As [`Document::resolve`].
    pub fn resolve_events(
        &self,
        variables: &BTreeMap<String, String>,
    ) -> Result<EventConfig, Error> {
        let mut config: EventConfig = self.sections(SECTIONS, variables)?;
        self.apart(&mut config.run.name, &mut config.run.out_dir);
        self.fitting_events(&mut config)?;
        Ok(config)
    }
}

/// A recipe as a section has it with no key written.
pub(super) fn recipe(name: &str, section: &str) -> Result<Recipe, Error> {
    let values = nested(&recipe_values(name, section)?);
    Recipe::deserialize(values).map_err(|e| Error::Unsayable { reason: e.to_string() })
}

impl EventConfig {
    /// The resolved config as TOML; reading it gives the same config.
    ///
    /// # Errors
    /// A value TOML cannot say (a path that is not UTF-8).
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::Unsayable { reason: e.to_string() })
    }

    /// The hash of every value.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn hash(&self) -> Result<Hash, Error> {
        identity::whole(self)
    }

    /// The hash of what can change results: without the run's name and folder, the paths of logs (whose bytes are
    /// hashed by their readers), checkpoints and the layout of the work.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn result_hash(&self) -> Result<Hash, Error> {
        identity::results(self, SECTIONS)
    }

    /// Where `self` and `other` differ, by key.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn differences(&self, other: &Self) -> Result<Vec<Difference>, Error> {
        identity::differences(self, other, SECTIONS)
    }
}
