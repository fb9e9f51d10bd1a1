//! The templates that are shipped: the files of `trainer/templates`, by name.

use super::Template;

macro_rules! shipped {
    ($($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("../../templates/", $file, ".toml")))),*]
    };
}

/// Name and text of each; a file is named as its template.
static SHIPPED: [(&str, &str); 32] = shipped![
    "citation",
    "email_subject",
    "headline",
    "lamp/citation",
    "lamp/email_subject",
    "lamp/headline",
    "lamp/movie_tag",
    "lamp/news_category",
    "lamp/rating",
    "lamp/scholarly_title",
    "lamp/tweet_paraphrase",
    "movie_tag",
    "news_category",
    "oppu/citation",
    "oppu/email_subject",
    "oppu/headline",
    "oppu/movie_tag",
    "oppu/news_category",
    "oppu/rating",
    "oppu/scholarly_title",
    "oppu/tweet_paraphrase",
    "rating",
    "scholarly_title",
    "study/citation",
    "study/email_subject",
    "study/headline",
    "study/movie_tag",
    "study/news_category",
    "study/rating",
    "study/scholarly_title",
    "study/tweet_paraphrase",
    "tweet_paraphrase",
];

impl Template {
    /// The names of the built-in templates, sorted: `LAYOUT/TASK` for `oppu`, `lamp` and `study`, and
    /// the task alone for the layout that puts the instruction first.
    pub fn builtins() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in template as it is in its file, to start one's own from.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        SHIPPED.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
    }

    /// The built-in template of a name.
    pub fn builtin(name: &str) -> Option<Self> {
        Self::builtin_text(name).and_then(|text| Self::from_toml(text).ok())
    }
}

#[cfg(test)]
#[path = "builtin_tests.rs"]
mod tests;
