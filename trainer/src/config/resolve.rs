//! From as written to as meant: known keys only, every value checked, recipes and defaults underneath.

use super::document::{Document, VARIANT};
use super::error::{Error, Place, Suggestion};
use super::keys::{Default, Key, Kind, OVERRIDE, OVERRIDES, RECIPE, SECTIONS, Section};
use super::pituning::METHOD;
use super::recipe::{EVENT_RECIPES, RECIPES, ROOT, Recipe};
use super::resolved::{Arm, Config, Data, ProfileSource, Source};
use super::study::STUDY;
use super::value::{Checker, nearest};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use toml::{Table, Value};

/// Values by the name of their key, dots and all.
pub(super) type Values = BTreeMap<&'static str, Value>;

impl Document {
    /// The config as meant. `variables` are what `${NAME}` in texts and paths may name.
    ///
    /// # Errors
    /// Unknown keys, missing keys, values out of range, unknown variables, keys that do not go together.
    pub fn resolve(&self, variables: &BTreeMap<String, String>) -> Result<Config, Error> {
        let config = self.meant(variables)?;
        self.fitting(&config)?;
        Ok(config)
    }

    /// [`Self::resolve`] before the keys are held against each other.
    pub(super) fn meant(&self, variables: &BTreeMap<String, String>) -> Result<Config, Error> {
        if self.method()?.is_some() {
            let reason = "is \"pituning\"; here a run without a method is expected".to_owned();
            return Err(Error::Conflict { place: self.place(METHOD), key: METHOD.into(), reason });
        }
        let mut config: Config = self.sections(SECTIONS, variables)?;
        for o in &mut config.individual.overrides {
            o.users.sort();
        }
        self.apart(&mut config.run.name, &mut config.run.out_dir);
        Ok(config)
    }

    /// Every one of the sections, whole, and no other.
    pub(super) fn sections<C: DeserializeOwned>(
        &self,
        sections: &'static [Section],
        variables: &BTreeMap<String, String>,
    ) -> Result<C, Error> {
        let checker = Checker { document: self, sections, variables };
        self.known_sections(sections)?;
        let mut whole = Table::new();
        for section in sections {
            let values = checker.section(section)?;
            whole.insert(section.name.to_owned(), Value::Table(values));
        }
        C::deserialize(whole).map_err(|e| Error::Unsayable { reason: e.to_string() })
    }

    /// Puts the chosen variants behind the run's name and folder.
    pub(super) fn apart(&self, run: &mut String, out_dir: &mut PathBuf) {
        let free = |key: &str| !matches!(self.place(key), Place::Set { .. });
        let suffix: String = self.chosen.iter().map(|name| format!("-{name}")).collect();
        if free("run.name") {
            run.push_str(&suffix);
        }
        if free("run.out_dir") {
            out_dir.as_mut_os_string().push(suffix);
        }
    }

    fn known_sections(&self, sections: &[Section]) -> Result<(), Error> {
        for (name, value) in self.table.iter().filter(|(name, _)| *name != VARIANT) {
            if name == STUDY {
                let reason = "makes this a study of several runs, not a run".to_owned();
                return Err(Error::Conflict { place: self.place(name), key: STUDY.into(), reason });
            }
            let known = sections.iter().any(|s| s.name == name);
            if !known {
                let suggestion = match owner(sections, name, "") {
                    Suggestion::Nothing => nearest(name, sections.iter().map(|s| s.name)),
                    found => found,
                };
                let place = self.place(name);
                return Err(Error::Unknown { place, key: name.as_str().into(), suggestion });
            }
            if !value.is_table() {
                return Err(Error::Value {
                    place: self.place(name),
                    key: name.as_str().into(),
                    given: value.to_string().into(),
                    allowed: format!("a section: [{name}]").into(),
                    suggestion: Suggestion::Nothing,
                });
            }
        }
        Ok(())
    }

    /// What no single key can say.
    pub(super) fn fitting(&self, config: &Config) -> Result<(), Error> {
        let conflict = |key: &str, reason: &str| {
            Err(Error::Conflict {
                place: self.place(key),
                key: key.into(),
                reason: reason.to_owned(),
            })
        };
        let data = &config.data;
        let stage = config.population.enabled;
        if let Some((key, reason)) = misplaced(data, stage) {
            return conflict(key, &reason);
        }
        if data.max_history.is_some_and(|most| most < data.min_history) {
            return conflict("data.max_history", "is below data.min_history: no user is left");
        }
        if config.run.arms.contains(&Arm::Population) && !stage {
            return conflict("run.arms", "has \"population\", but population.enabled = false");
        }
        let shown = config.prompt.retrieved > 0 || config.prompt.retrieved_share > 0.0;
        if config.run.arms.contains(&Arm::Rag) && !shown {
            return conflict("run.arms", "has \"rag\", but prompt.retrieved = 0");
        }
        if config.run.arms.contains(&Arm::Pag) && config.profile.source == ProfileSource::None {
            return conflict("run.arms", "has \"pag\", but profile.source = \"none\"");
        }
        if let (ProfileSource::File, Some(reason)) = (config.profile.source, no_profiles(data)) {
            return conflict("profile.source", reason);
        }
        let mut seen = BTreeSet::new();
        for (i, o) in config.individual.overrides.iter().enumerate() {
            if let Some(user) = o.users.iter().find(|u| !seen.insert((*u).clone())) {
                let key = format!("individual.override[{i}].users");
                return conflict(&key, &format!("user {user:?} is in an earlier override"));
            }
        }
        Ok(())
    }
}

/// Why the users of a source cannot have profile texts; a JSONL file may have them or not.
fn no_profiles(data: &Data) -> Option<&'static str> {
    match data.source {
        Source::Jsonl => None,
        Source::Ml100k => Some("is \"file\", but users of ml-100k have no profile texts"),
        Source::Lamp | Source::Oppu if data.personal_profiles.is_none() => {
            Some("is \"file\", but data.personal_profiles is not set")
        }
        Source::Lamp | Source::Oppu => None,
    }
}

/// The first key of `[data]` that its source needs and lacks, or has and does not know.
fn misplaced(data: &Data, population: bool) -> Option<(&'static str, String)> {
    let (source, benchmark) = match data.source {
        Source::Jsonl => ("jsonl", false),
        Source::Ml100k => ("ml-100k", false),
        Source::Lamp => ("lamp", true),
        Source::Oppu => ("oppu", true),
    };
    let ml100k = data.source == Source::Ml100k;
    // Key, whether it is set, whether it must be, whether it may be.
    let rules = [
        ("data.path", data.path.is_some(), ml100k, ml100k),
        ("data.task", data.task.is_some(), benchmark, benchmark),
        ("data.personal", data.personal.is_some(), !ml100k, !ml100k),
        ("data.population", data.population.is_some(), !ml100k && population, !ml100k),
        ("data.personal_outputs", data.personal_outputs.is_some(), false, benchmark),
        (
            "data.population_outputs",
            data.population_outputs.is_some(),
            false,
            data.source == Source::Lamp,
        ),
        ("data.personal_profiles", data.personal_profiles.is_some(), false, benchmark),
        ("data.population_profiles", data.population_profiles.is_some(), false, benchmark),
    ];
    rules.into_iter().find_map(|(key, set, must, may)| match (set, must, may) {
        (false, true, _) if key == "data.population" => Some((
            key,
            format!("must be set with source = \"{source}\" unless population.enabled = false"),
        )),
        (false, true, _) => Some((key, format!("must be set with source = \"{source}\""))),
        (true, _, false) => Some((key, format!("has no meaning with source = \"{source}\""))),
        _ => None,
    })
}

impl Checker<'_> {
    /// One section, whole.
    fn section(&self, section: &Section) -> Result<Table, Error> {
        let empty = Table::new();
        let written = self.document.table.get(section.name).and_then(Value::as_table);
        let written = written.unwrap_or(&empty);
        let recipe_keys: &[Key] = if section.recipe { RECIPE } else { &[] };
        let mut overrides = None;
        let mut plain = written.clone();
        if section.overrides {
            overrides = plain.remove(OVERRIDES);
        }
        let keys: Vec<&Key> = section.keys.iter().chain(recipe_keys).collect();
        let values = self.table(section.name, &keys, &plain)?;
        let recipe = values.get("recipe").and_then(Value::as_str);
        let fallback = match (section.recipe, recipe) {
            (false, _) => Values::new(),
            (true, Some(name)) => recipe_values(name, section.name)?,
            (true, None) => recipe_values(default_recipe(section), section.name)?,
        };
        let values = self.complete(section.name, &keys, values, &fallback)?;
        let mut table = nested(&values);
        if let Some(overrides) = overrides {
            let list = self.overrides(&overrides, &values)?;
            table.insert(OVERRIDES.to_owned(), Value::Array(list));
        }
        Ok(table)
    }

    /// The overrides, each a whole recipe over the section's.
    fn overrides(&self, given: &Value, section: &Values) -> Result<Vec<Value>, Error> {
        let path = format!("individual.{OVERRIDES}");
        let not_tables = || Error::Value {
            place: self.document.place(&path),
            key: path.as_str().into(),
            given: given.to_string().into(),
            allowed: format!("a list of tables: [[{path}]]").into(),
            suggestion: Suggestion::Nothing,
        };
        let keys: Vec<&Key> = OVERRIDE.iter().chain(RECIPE).collect();
        let mut list = Vec::new();
        for (i, item) in given.as_array().ok_or_else(not_tables)?.iter().enumerate() {
            let at = format!("{path}[{i}]");
            let written = item.as_table().ok_or_else(not_tables)?;
            let values = self.table(&at, &keys, written)?;
            let whole = self.complete(&at, &keys, values, section)?;
            list.push(Value::Table(nested(&whole)));
        }
        Ok(list)
    }

    /// The written values of a table, checked.
    fn table(&self, path: &str, keys: &[&Key], written: &Table) -> Result<Values, Error> {
        let mut values = Values::new();
        self.level(path, "", keys, written, &mut values)?;
        Ok(values)
    }

    /// One level of a table; `inside` is the way from the section to here, with a dot at its end, or empty.
    fn level(
        &self,
        section: &str,
        inside: &str,
        keys: &[&Key],
        written: &Table,
        values: &mut Values,
    ) -> Result<(), Error> {
        for (name, value) in written {
            let full = format!("{inside}{name}");
            let path = format!("{section}.{full}");
            let deeper = format!("{full}.");
            if let Some(key) = keys.iter().find(|k| k.name == full) {
                values.insert(key.name, self.value(&path, key.kind, value)?);
            } else if keys.iter().any(|k| k.name.starts_with(&deeper)) {
                let Some(table) = value.as_table() else {
                    return Err(Error::Value {
                        place: self.document.place(&path),
                        key: path.into(),
                        given: value.to_string().into(),
                        allowed: "a table".into(),
                        suggestion: Suggestion::Nothing,
                    });
                };
                self.level(section, &deeper, keys, table, values)?;
            } else {
                let here = keys.iter().filter_map(|k| k.name.strip_prefix(inside));
                let suggestion = match owner(self.sections, name, section) {
                    Suggestion::Nothing => nearest(name, here),
                    found => found,
                };
                return Err(Error::Unknown {
                    place: self.document.place(&path),
                    key: path.into(),
                    suggestion,
                });
            }
        }
        Ok(())
    }

    /// The written values with defaults and the fallback (a recipe) for the rest.
    fn complete(
        &self,
        path: &str,
        keys: &[&Key],
        mut values: Values,
        fallback: &Values,
    ) -> Result<Values, Error> {
        for key in keys {
            if values.contains_key(key.name) {
                continue;
            }
            let value = match key.default {
                Default::Unset => continue,
                Default::Is(text) => Some(self.value(key.name, key.kind, &literal(text)?)?),
                Default::FromRecipe => fallback.get(key.name).cloned(),
                Default::Required => None,
            };
            let missing = || Error::Missing {
                place: self.document.place(path),
                key: format!("{path}.{}", key.name).into(),
                help: format!("{} ({})", key.help, key.kind),
            };
            values.insert(key.name, value.ok_or_else(missing)?);
        }
        Ok(values)
    }
}

/// The other section that has a key of this name, if exactly one has.
fn owner(sections: &[Section], name: &str, section: &str) -> Suggestion {
    let has = |s: &&Section| {
        s.name != section && s.keys.iter().any(|k| k.name == name && !names_recipe(k))
    };
    let mut owners = sections.iter().filter(has);
    match (owners.next(), owners.next()) {
        (Some(one), None) => Suggestion::Section(one.name.to_owned()),
        _ => Suggestion::Nothing,
    }
}

fn names_recipe(key: &Key) -> bool {
    matches!(key.kind, Kind::Recipe | Kind::EventRecipe)
}

fn default_recipe(section: &Section) -> &'static str {
    let recipe = section.keys.iter().find(|k| names_recipe(k));
    match recipe.map(|k| k.default) {
        Some(Default::Is(text)) => text.trim_matches('"'),
        _ => "",
    }
}

impl Recipe {
    /// A recipe by its name, as the individual stage has it with no key set.
    ///
    /// # Errors
    /// [`Error::NoRecipe`].
    pub fn named(name: &str) -> Result<Self, Error> {
        if !RECIPES.iter().any(|recipe| recipe.name == name) {
            let suggestion = nearest(name, RECIPES.iter().map(|recipe| recipe.name));
            return Err(Error::NoRecipe { name: name.into(), suggestion });
        }
        let values = nested(&recipe_values(name, "individual")?);
        Self::deserialize(values).map_err(|e| Error::Unsayable { reason: e.to_string() })
    }
}

/// A recipe's values for the stage of a section.
pub(super) fn recipe_values(name: &str, section: &str) -> Result<Values, Error> {
    let mut values = Values::new();
    let recipe = RECIPES.iter().chain(EVENT_RECIPES).find(|r| r.name == name);
    let over = recipe.map(|r| [r.all, r.stage(section)]);
    for text in std::iter::once(ROOT).chain(over.into_iter().flatten()) {
        let table = table_of(text)?;
        for key in RECIPE {
            if let Some(value) = at(&table, key.name) {
                values.insert(key.name, value.clone());
            }
        }
    }
    Ok(values)
}

fn table_of(text: &str) -> Result<Table, Error> {
    text.parse::<Table>().map_err(|e| Error::Unsayable { reason: e.to_string() })
}

/// A default as a value.
fn literal(text: &str) -> Result<Value, Error> {
    let missing = || Error::Unsayable { reason: format!("default {text}") };
    table_of(&format!("v = {text}"))?.remove("v").ok_or_else(missing)
}

/// The value at a dotted name.
fn at<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        None => table.get(name),
        Some((first, rest)) => at(table.get(first)?.as_table()?, rest),
    }
}

/// Dotted names as tables inside tables.
pub(super) fn nested(values: &Values) -> Table {
    let mut table = Table::new();
    for (name, value) in values {
        match name.split_once('.') {
            None => {
                table.insert((*name).to_owned(), value.clone());
            }
            Some((first, rest)) => {
                let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
                if let Some(inner) = inner.as_table_mut() {
                    inner.insert(rest.to_owned(), value.clone());
                }
            }
        }
    }
    table
}
