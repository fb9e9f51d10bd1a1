//! The eight LaMP tasks: names, ids, fields, labels. One list for the whole program.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A task of the LaMP benchmark, under this program's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LampTask {
    /// Which of two papers a paper cites (LaMP-1).
    Citation,
    /// Which of 15 tags the user gives a film (LaMP-2, in OPPU LaMP-2M).
    MovieTag,
    /// Which of 15 categories a journalist's article is in (LaMP-2 of the first release, LaMP-2N).
    NewsCategory,
    /// How many stars a review gives (LaMP-3).
    Rating,
    /// The headline of an article (LaMP-4).
    Headline,
    /// The title of a paper from its abstract (LaMP-5).
    ScholarlyTitle,
    /// The subject of an e-mail (LaMP-6).
    EmailSubject,
    /// A tweet in the user's own manner (LaMP-7).
    TweetParaphrase,
}

/// Why a text names no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Nothing is called so.
    #[error("no task is called {name:?}; tasks: {}", LampTask::ALL.map(LampTask::name).join(", "))]
    Unknown {
        /// The text.
        name: String,
    },
    /// `LaMP_2` is news categories in the first release and film tags in the present one.
    #[error("{name:?} names two tasks: write LaMP_2M (movie_tag) or LaMP_2N (news_category)")]
    Ambiguous {
        /// The text.
        name: String,
    },
}

/// What is fixed for a task.
struct Facts {
    name: &'static str,
    lamp_id: &'static str,
    oppu_name: Option<&'static str>,
    /// Further names, without those that name two tasks.
    aliases: &'static [&'static str],
    required: &'static [&'static str],
    optional: &'static [&'static str],
    input_field: &'static str,
    answer_field: Option<&'static str>,
    payload_fields: &'static [&'static str],
    labels: &'static [&'static str],
}

/// The ids that files of two tasks carry.
const TWO_TASKS: &str = "lamp2";

const CITATION: Facts = Facts {
    name: "citation",
    lamp_id: "LaMP_1",
    oppu_name: Some("citation"),
    aliases: &["citation_identification"],
    required: &["title"],
    optional: &["abstract", "citation", "date"],
    input_field: "title",
    answer_field: Some("citation"),
    payload_fields: &["title", "option_1", "option_2"],
    labels: &["[1]", "[2]"],
};

const MOVIE_TAG: Facts = Facts {
    name: "movie_tag",
    lamp_id: "LaMP_2M",
    oppu_name: Some("movie_tagging"),
    aliases: &["LaMP_8"],
    required: &["description", "tag"],
    optional: &["date"],
    input_field: "description",
    answer_field: Some("tag"),
    payload_fields: &["description"],
    labels: &[
        "sci-fi",
        "based on a book",
        "comedy",
        "action",
        "twist ending",
        "dystopia",
        "dark comedy",
        "classic",
        "psychology",
        "fantasy",
        "romance",
        "thought-provoking",
        "social commentary",
        "violence",
        "true story",
    ],
};

const NEWS_CATEGORY: Facts = Facts {
    name: "news_category",
    lamp_id: "LaMP_2N",
    oppu_name: Some("news_categorize"),
    aliases: &["news_categorization", "LaMP_2_old"],
    required: &["text", "category"],
    optional: &["title", "date"],
    input_field: "text",
    answer_field: Some("category"),
    payload_fields: &["text"],
    labels: &[
        "travel",
        "education",
        "parents",
        "style & beauty",
        "entertainment",
        "food & drink",
        "science & technology",
        "business",
        "sports",
        "healthy living",
        "women",
        "politics",
        "crime",
        "culture & arts",
        "religion",
    ],
};

const RATING: Facts = Facts {
    name: "rating",
    lamp_id: "LaMP_3",
    oppu_name: Some("product_rating"),
    aliases: &[],
    required: &["text", "score"],
    optional: &["date"],
    input_field: "text",
    answer_field: Some("score"),
    payload_fields: &["text"],
    labels: &["1", "2", "3", "4", "5"],
};

const HEADLINE: Facts = Facts {
    name: "headline",
    lamp_id: "LaMP_4",
    oppu_name: Some("news_headline"),
    aliases: &[],
    required: &["text", "title"],
    optional: &["date"],
    input_field: "text",
    answer_field: Some("title"),
    payload_fields: &["text"],
    labels: &[],
};

const SCHOLARLY_TITLE: Facts = Facts {
    name: "scholarly_title",
    lamp_id: "LaMP_5",
    oppu_name: Some("scholarly_title"),
    aliases: &[],
    required: &["abstract", "title"],
    optional: &["date"],
    input_field: "abstract",
    answer_field: Some("title"),
    payload_fields: &["abstract"],
    labels: &[],
};

const EMAIL_SUBJECT: Facts = Facts {
    name: "email_subject",
    lamp_id: "LaMP_6",
    oppu_name: None,
    aliases: &["email"],
    required: &["text", "title"],
    optional: &["date"],
    input_field: "text",
    answer_field: Some("title"),
    payload_fields: &["text"],
    labels: &[],
};

const TWEET_PARAPHRASE: Facts = Facts {
    name: "tweet_paraphrase",
    lamp_id: "LaMP_7",
    oppu_name: Some("tweet_paraphrase"),
    aliases: &["tweet"],
    required: &["text"],
    optional: &["date"],
    input_field: "text",
    answer_field: None,
    payload_fields: &["text"],
    labels: &[],
};

/// Letters and digits alone, in lower case: `LaMP-2N` and `lamp_2n` are one name.
fn bare(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl LampTask {
    /// All tasks, in the benchmark's order; of the two LaMP-2 the older first.
    pub const ALL: [Self; 8] = [
        Self::Citation,
        Self::NewsCategory,
        Self::MovieTag,
        Self::Rating,
        Self::Headline,
        Self::ScholarlyTitle,
        Self::EmailSubject,
        Self::TweetParaphrase,
    ];

    fn facts(self) -> &'static Facts {
        match self {
            Self::Citation => &CITATION,
            Self::MovieTag => &MOVIE_TAG,
            Self::NewsCategory => &NEWS_CATEGORY,
            Self::Rating => &RATING,
            Self::Headline => &HEADLINE,
            Self::ScholarlyTitle => &SCHOLARLY_TITLE,
            Self::EmailSubject => &EMAIL_SUBJECT,
            Self::TweetParaphrase => &TWEET_PARAPHRASE,
        }
    }

    /// The name in configs and messages, such as `movie_tag`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The benchmark's id, such as `LaMP_2M`; `task` of the files written here.
    pub fn lamp_id(self) -> &'static str {
        self.facts().lamp_id
    }

    /// The name of the task's folder in OPPU; e-mail subjects have none.
    pub fn oppu_name(self) -> Option<&'static str> {
        self.facts().oppu_name
    }

    /// Every name of the task but those that name two.
    fn names(self) -> impl Iterator<Item = &'static str> {
        let facts = self.facts();
        let one = [facts.name, facts.lamp_id];
        one.into_iter().chain(facts.oppu_name).chain(facts.aliases.iter().copied())
    }

    /// The task of a name, an id or an alias; case and `_`, `-`, spaces do not count.
    ///
    /// # Errors
    /// [`TaskError`]: an unknown name, or `LaMP_2`, which names two tasks.
    pub fn parse(name: &str) -> Result<Self, TaskError> {
        let wanted = bare(name);
        if wanted == TWO_TASKS {
            return Err(TaskError::Ambiguous { name: name.to_owned() });
        }
        let mut all = Self::ALL.into_iter();
        let found = all.find(|task| task.names().any(|n| bare(n) == wanted));
        found.ok_or_else(|| TaskError::Unknown { name: name.to_owned() })
    }

    /// Whether `task` of an outputs or label file may mean this task; `LaMP_2` may mean both of its tasks.
    pub fn is_called(self, name: &str) -> bool {
        let wanted = bare(name);
        let both = wanted == TWO_TASKS && matches!(self, Self::MovieTag | Self::NewsCategory);
        both || self.names().any(|n| bare(n) == wanted)
    }

    /// Fields that every history item must have.
    pub fn required_fields(self) -> &'static [&'static str] {
        self.facts().required
    }

    /// Further fields that the released items have.
    pub fn optional_fields(self) -> &'static [&'static str] {
        self.facts().optional
    }

    /// The field of a history item that a question asks about.
    pub fn input_field(self) -> &'static str {
        self.facts().input_field
    }

    /// The field of a history item that is its answer: none for tweets, `citation` (not in every
    /// release) for citations.
    pub fn answer_field(self) -> Option<&'static str> {
        self.facts().answer_field
    }

    /// The fields taken out of a question's text.
    pub fn payload_fields(self) -> &'static [&'static str] {
        self.facts().payload_fields
    }

    /// The possible answers in the benchmark's order; empty when the answer is free text.
    pub fn labels(self) -> &'static [&'static str] {
        self.facts().labels
    }

    /// Whether the answer is free text.
    pub fn is_free_text(self) -> bool {
        self.labels().is_empty()
    }
}

impl fmt::Display for LampTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn no_name_means_two_tasks_and_every_published_one_is_known() {
        let mut owners = BTreeMap::new();
        for task in LampTask::ALL {
            let mut own: Vec<String> = task.names().map(bare).collect();
            own.dedup();
            own.sort();
            own.dedup();
            for name in own {
                assert_eq!(owners.insert(name.clone(), task), None, "{name}");
            }
        }
        let published = [
            ("LaMP_1", LampTask::Citation),
            ("LaMP_2M", LampTask::MovieTag),
            ("LaMP_2N", LampTask::NewsCategory),
            ("LaMP-2-old", LampTask::NewsCategory),
            ("LaMP-3", LampTask::Rating),
            ("lamp 4", LampTask::Headline),
            ("LaMP_5", LampTask::ScholarlyTitle),
            ("LaMP_6", LampTask::EmailSubject),
            ("LaMP_7", LampTask::TweetParaphrase),
            ("LaMP_8", LampTask::MovieTag),
            ("movie_tagging", LampTask::MovieTag),
            ("news_categorize", LampTask::NewsCategory),
            ("product_rating", LampTask::Rating),
            ("news_headline", LampTask::Headline),
            ("tweet_paraphrase", LampTask::TweetParaphrase),
            ("Scholarly_Title", LampTask::ScholarlyTitle),
        ];
        for (name, task) in published {
            assert_eq!(LampTask::parse(name), Ok(task), "{name}");
            assert!(task.is_called(name));
        }
        assert!(matches!(LampTask::parse("LaMP_2"), Err(TaskError::Ambiguous { .. })));
        assert!(LampTask::parse("LaMP_9").unwrap_err().to_string().contains("tweet_paraphrase"));
        let meant = LampTask::ALL.into_iter().filter(|t| t.is_called("LaMP_2"));
        assert_eq!(meant.collect::<Vec<_>>(), [LampTask::NewsCategory, LampTask::MovieTag]);
        assert!(!LampTask::MovieTag.is_called("LaMP_2N") && LampTask::MovieTag.is_called("LaMP_8"));
    }

    #[test]
    fn names_are_serde_names_and_fields_agree() {
        for task in LampTask::ALL {
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
            assert!(task.payload_fields().contains(&task.input_field()));
            assert!(task.required_fields().contains(&task.input_field()));
            assert_eq!(task.is_free_text(), task.labels().is_empty());
        }
        let counts = LampTask::ALL.map(|t| t.labels().len());
        assert_eq!(counts, [2, 15, 15, 5, 0, 0, 0, 0]);
        for task in LampTask::ALL {
            let distinct: BTreeSet<_> = task.labels().iter().collect();
            assert_eq!(distinct.len(), task.labels().len(), "{task} has a label twice");
        }
        let ends = |t: LampTask| (t.labels()[0], t.labels()[14]);
        assert_eq!(ends(LampTask::MovieTag), ("sci-fi", "true story"));
        assert_eq!(ends(LampTask::NewsCategory), ("travel", "religion"));
    }
}
