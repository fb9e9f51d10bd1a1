//! Task templates: data that says how an item becomes a prompt and an answer.

use super::PromptError;
use serde::{Deserialize, Serialize};

/// A task as data; TOML and JSON, unknown keys refused. [`super::Task::new`] checks it.
///
/// In texts *with placeholders* `{field}` stands for an item's field, `{field?}` for one that may be
/// missing, `{{` and `}}` for braces; all other texts are taken as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Name in configurations and reports.
    pub name: String,
    /// Raised with every change of wording; adapters of different versions do not mix.
    pub version: u32,
    /// The benchmark task it is for (`movie_tag`, `rating`, …); none for a task of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Where earlier items and the profile stand.
    #[serde(default)]
    pub layout: Layout,
    /// What to do, the same for all items; only in [`Layout::InstructionFirst`]. May be empty.
    #[serde(default)]
    pub instruction: String,
    /// The question, with placeholders; ends where the answer goes on after one space. In
    /// [`Layout::Merged`] an item's own field `input` goes before it.
    pub prompt: String,
    /// The answer, with placeholders. An item's own field `gold` goes before it.
    pub answer: String,
    /// The possible answers, if they are few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// The field that an item is about: cut where there is no room, kept by `only_input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_field: Option<String>,
    /// The field that a history item adds as its output: kept by `only_output`, swapped by mixed
    /// retrieval. None where the history has no outputs of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_field: Option<String>,
    /// An earlier item in a prompt, with placeholders.
    pub history_line: String,
    /// Longest generated answer in tokens.
    pub max_new_tokens: u32,
    /// Longest field in the question in words; more are cut off. None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_field_words: Option<usize>,
    /// Longest field in a history line in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_history_field_words: Option<usize>,
    /// A query to predict is not cut to `max_field_words`, only an example is (OPPU).
    #[serde(default)]
    pub whole_queries: bool,
    /// In the population stage an example sees the user's earlier queries beside the history.
    #[serde(default)]
    pub earlier_queries: bool,
    /// The example made of a history item, where it is not the task itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_example: Option<HistoryExample>,
    /// Texts of retrieval; none compares questions with history lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<RetrievalText>,
    /// How items join the question; in [`Layout::Merged`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<Merge>,
    /// Prompts with one side of the items alone; in [`Layout::Merged`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ablation: Option<AblationForms>,
    /// What to ask the base for when it writes a user's profile (PAG).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_request: Option<ProfileRequest>,
}

impl Template {
    /// Reads a template of a file.
    ///
    /// # Errors
    /// [`PromptError::Toml`]: not TOML, an unknown or missing key.
    pub fn from_toml(text: &str) -> Result<Self, PromptError> {
        toml::from_str(text).map_err(|e| PromptError::Toml(Box::new(e)))
    }
}

/// The order of the parts of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `instruction NL [profile NL] [line NL]… question`: all prompts of a user share what comes first.
    #[default]
    InstructionFirst,
    /// `[profile NL] [line NL]… [NL] question`, as OPPU has it: an empty line ends the history.
    HistoryFirst,
    /// `[profile NL]` and items and question in one sentence within a budget of tokens, as in LaMP and
    /// the study of user profiles.
    Merged,
}

/// The example made of a history item, where it is not the task itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryExample {
    /// Its question, with placeholders or without; in [`Layout::Merged`] the cue follows.
    pub prompt: String,
    /// Its answer, with placeholders.
    pub answer: String,
    /// Whether profile and earlier items stand in front.
    #[serde(default = "yes")]
    pub context: bool,
    /// The text that retrieval compares, with placeholders; none is the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Makes the fields `head` and `rest` of one of the item's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

fn yes() -> bool {
    true
}

/// A field cut in two at a share of its words that is drawn for each user and item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The field.
    pub field: String,
    /// Smallest share of the words in `head`, in percent.
    pub from_percent: u8,
    /// Largest share.
    pub to_percent: u8,
}

/// What BM25 compares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalText {
    /// The text asked with, with placeholders.
    pub query: String,
    /// An earlier item, with placeholders; none is its history line and a newline, as in OPPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The same without the output field, for [`super::Ablation::Decouple`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_without_output: Option<String>,
    /// The study's retrievers do not show the first earlier item whose `input_field` equals that of the item asked for.
    #[serde(default)]
    pub exclude_equal: bool,
}

/// How items join the question in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Between two items.
    pub join: String,
    /// Where the items stand.
    pub place: Place,
    /// Between items and question; for a place inside the question, before the items.
    pub link: String,
    /// What ends the question and asks for the answer; causal bases need one.
    pub cue: String,
    /// How long the items may be.
    pub budget: Budget,
}

/// Where merged items stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In front of the question.
    Before,
    /// After the first word `title` of the question (LaMP-1).
    AfterTitleWord,
    /// After the quoted paper title in the question (the study's LaMP_1).
    AfterQuotedTitle,
}

/// Tokens for the items of a merged prompt; counted without special tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Budget {
    /// B = M - min(len(question), floor(f M)), b = (B - reserved - len(phrase) - 2(n-1)) / n tokens an
    /// item, what an item leaves goes to the next; f falls from .6 by .1 until all n fit, below 0 the
    /// question stands alone. M is `max_tokens`, or what `max_len` leaves beside `max_new_tokens` if less.
    Lamp {
        /// M.
        max_tokens: usize,
        /// Taken off once (LaMP: 1, 0 for citations).
        reserved: usize,
        /// A part of `link` whose length is taken off; may be empty.
        #[serde(default)]
        phrase: String,
    },
    /// b = tokens / n for each item, nothing carried on: an item that is longer is cut in its input, down to nothing,
    /// its other words stay. Items and question are at most `max_tokens`: where they are more, all inputs are cut
    /// further, alike, then the least relevant items are left out; the question stays whole, also if it is longer
    /// alone. (The study's code cuts the whole on the right, question first.)
    Study {
        /// Shared evenly by the items.
        tokens: usize,
        /// Items and question together.
        max_tokens: usize,
        /// From this length in tokens on, a question leaves `max_tokens` - len(question), at least 0, in the
        /// place of `tokens`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        long_question: Option<usize>,
    },
}

/// The items as lists of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationForms {
    /// Longest list with its words, cut at the end of the list.
    pub tokens: usize,
    /// Inputs alone.
    pub only_input: ListForm,
    /// Outputs alone.
    pub only_output: ListForm,
}

/// `lead item join item … tail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListForm {
    /// In front.
    #[serde(default)]
    pub lead: String,
    /// One item, with placeholders.
    pub item: String,
    /// Between two.
    pub join: String,
    /// At the end.
    #[serde(default)]
    pub tail: String,
}

/// What to ask the base for when it writes a user's profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileRequest {
    /// The request; the placeholder `{items}` is the lines of the items, one a line.
    pub prompt: String,
    /// One item, with placeholders; none is the history line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// How many items are drawn from the history.
    pub items: usize,
    /// Longest field in words.
    pub max_field_words: usize,
    /// Longest profile in tokens.
    pub max_new_tokens: u32,
}
