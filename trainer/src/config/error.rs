//! What can be wrong with a config, always with the place to mend.

use super::keys::Kind;
use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    File {
        /// The file.
        file: PathBuf,
        /// The line, from 1; none for what the file does not say at all.
        line: Option<usize>,
    },
    /// In a `--set`.
    Set {
        /// Its text.
        assignment: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Place::File { file, line: None } => write!(f, "{}", file.display()),
            Place::Set { assignment } => write!(f, "--set {assignment}"),
        }
    }
}

/// What a wrong key might have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suggestion {
    /// Nothing is near.
    Nothing,
    /// A key of the same table.
    Name(String),
    /// The same name in another section.
    Section(String),
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suggestion::Nothing => Ok(()),
            Suggestion::Name(name) => write!(f, "; did you mean `{name}`?"),
            Suggestion::Section(section) => write!(f, "; it belongs in [{section}]"),
        }
    }
}

/// Why a config could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: cannot read the config: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not UTF-8.
    #[error("{place}: not UTF-8 text")]
    NotUtf8 {
        /// The line with the first bad byte.
        place: Place,
    },
    /// The file is not TOML.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        reason: String,
    },
    /// A `--set` is not `section.key=value`.
    #[error("--set {assignment}: expected section.key=value")]
    Assignment {
        /// Its text.
        assignment: String,
    },
    /// A key that no config has.
    #[error("{place}: unknown key `{key}`{suggestion}")]
    Unknown {
        /// Where.
        place: Place,
        /// The key with its section.
        key: Box<str>,
        /// What it might have been.
        suggestion: Suggestion,
    },
    /// A key that must be written is not.
    #[error("{place}: `{key}` must be set: {help}")]
    Missing {
        /// The file, or the line of the table that lacks it.
        place: Place,
        /// The key with its section.
        key: Box<str>,
        /// What it is.
        help: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{place}: `{key}` = {given}: allowed is {allowed}{suggestion}")]
    Value {
        /// Where.
        place: Place,
        /// The key with its section.
        key: Box<str>,
        /// The value as TOML.
        given: Box<str>,
        /// What it may be.
        allowed: Box<str>,
        /// What it might have been.
        suggestion: Suggestion,
    },
    /// A `${NAME}` that the launcher does not know, or one that is not closed.
    #[error("{place}: `{key}` = {given}: no variable `{name}`; known are {known}")]
    Variable {
        /// Where.
        place: Place,
        /// The key with its section.
        key: Box<str>,
        /// The value as TOML.
        given: Box<str>,
        /// The name that is unknown.
        name: String,
        /// The names there are.
        known: Box<str>,
    },
    /// A variant that the config does not have.
    #[error("{}: no variant `{name}`; there are: {known}{suggestion}", file.display())]
    NoVariant {
        /// The config.
        file: PathBuf,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Box<str>,
        /// What it might have been.
        suggestion: Suggestion,
    },
    /// Two keys that do not go together.
    #[error("{place}: `{key}`: {reason}")]
    Conflict {
        /// Where the key stands, or the file if it is not written.
        place: Place,
        /// The key with its section.
        key: Box<str>,
        /// What does not fit.
        reason: String,
    },
    /// A cell of a study that is no good run.
    #[error("cell {cell}: {source}")]
    Cell {
        /// The cell.
        cell: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// No recipe of this name.
    #[error("no recipe is called {name:?}{suggestion}")]
    NoRecipe {
        /// The name.
        name: Box<str>,
        /// A near one.
        suggestion: Suggestion,
    },
    /// A value that TOML or JSON cannot say.
    #[error("the resolved config cannot be written: {reason}")]
    Unsayable {
        /// The cause.
        reason: String,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words =
            |list: &[&str]| list.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
        match self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Int(from, to) => write!(f, "a whole number from {from} to {to}"),
            Kind::Float(from, to) => write!(f, "a number from {from} to {to}"),
            Kind::FloatBelow(from, to) => write!(f, "a number from {from} to below {to}"),
            Kind::PairBelow(from, to) => write!(f, "two numbers from {from} to below {to}"),
            Kind::Text => f.write_str("a text that is not empty"),
            Kind::Path => f.write_str("a path that is not empty; `~` is not expanded, ${NAME} is"),
            Kind::NameOrPath => f.write_str("a builtin name, or a path that ends in `.toml`"),
            Kind::OneOf(list) => write!(f, "one of {}", words(list)),
            Kind::ListOf(list) => write!(f, "a list, without repeats, of {}", words(list)),
            Kind::Texts => f.write_str("a list, without repeats, of texts that are not empty"),
            Kind::Recipe => {
                let names: Vec<&str> = super::recipe_names().collect();
                write!(f, "a recipe's name: {}", words(&names))
            }
            Kind::EventRecipe => {
                let names: Vec<&str> = super::pituning::recipe_names().collect();
                write!(f, "a recipe's name: {}", words(&names))
            }
            Kind::Paths => f.write_str("a list, without repeats, of paths that are not empty"),
            Kind::Table => f.write_str("a table; its numbers are finite"),
        }
    }
}
