//! Tasks as evaluation knows them: names, labels, official metrics.

use super::EvalError;
use super::metric::Metric;

/// A task of LaMP or OPPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalTask {
    /// Our name.
    pub name: &'static str,
    /// The name in prediction files.
    pub lamp: &'static str,
    /// Other names that mean this task alone.
    pub aliases: &'static [&'static str],
    /// Names that files of this task bear, and files of another one too.
    pub shared: &'static [&'static str],
    /// Its labels, in LaMP's order; none where answers are free texts.
    pub labels: &'static [&'static str],
    /// Its official metrics, the primary one first.
    pub metrics: &'static [Metric],
}

const LABEL: &[Metric] = &[Metric::Accuracy, Metric::MacroF1];
const TEXT: &[Metric] = &[Metric::Rouge1, Metric::RougeL];

/// Every task, in LaMP's order. Releases disagree on `LaMP_2`: news categories in old ones, movie tags in new ones.
pub const TASKS: &[EvalTask] = &[
    task("citation", "LaMP_1", &[], &[], &["[1]", "[2]"], LABEL),
    task("news_category", "LaMP_2N", &["news_categorize"], &["LaMP_2"], NEWS, LABEL),
    task("movie_tag", "LaMP_2M", &["movie_tagging", "LaMP_8"], &["LaMP_2"], MOVIE, LABEL),
    task(
        "rating",
        "LaMP_3",
        &["product_rating"],
        &[],
        &["1", "2", "3", "4", "5"],
        &[Metric::Mae, Metric::Rmse],
    ),
    task("headline", "LaMP_4", &["news_headline"], &[], &[], TEXT),
    task("scholarly_title", "LaMP_5", &[], &[], &[], TEXT),
    task("email_subject", "LaMP_6", &[], &[], &[], TEXT),
    task("tweet_paraphrase", "LaMP_7", &[], &[], &[], TEXT),
];

const NEWS: &[&str] = &[
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
];

const MOVIE: &[&str] = &[
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
];

const fn task(
    name: &'static str,
    lamp: &'static str,
    aliases: &'static [&'static str],
    shared: &'static [&'static str],
    labels: &'static [&'static str],
    metrics: &'static [Metric],
) -> EvalTask {
    EvalTask { name, lamp, aliases, shared, labels, metrics }
}

impl EvalTask {
    /// The task of a name or alias; capitals, `-` and `_` do not count.
    ///
    /// # Errors
    /// [`EvalError::Task`]: no task's name, or a name of several.
    pub fn find(name: &str) -> Result<&'static Self, EvalError> {
        if let Some(task) = TASKS.iter().find(|task| task.is_called(name)) {
            return Ok(task);
        }
        let bearers: Vec<&str> =
            TASKS.iter().filter(|t| has(t.shared, name)).map(|t| t.lamp).collect();
        let what = match bearers.as_slice() {
            [] => "is not known".to_owned(),
            several => format!("may be {}", several.join(" or ")),
        };
        Err(EvalError::Task { name: name.to_owned(), what })
    }

    /// Whether a file that names its task `name` may be of this task.
    pub fn accepts(&self, name: &str) -> bool {
        self.is_called(name) || has(self.shared, name)
    }

    /// The labels, owned.
    pub fn labels(&self) -> Vec<String> {
        self.labels.iter().map(|label| (*label).to_owned()).collect()
    }

    fn is_called(&self, name: &str) -> bool {
        has(&[self.name, self.lamp], name) || has(self.aliases, name)
    }
}

fn has(names: &[&str], name: &str) -> bool {
    let fold = |text: &str| text.trim().to_lowercase().replace(['-', ' '], "_");
    names.iter().any(|own| fold(own) == fold(name))
}

/// Every task's own names, for people.
pub(super) fn names() -> String {
    let pairs: Vec<String> = TASKS.iter().map(|t| format!("{} ({})", t.lamp, t.name)).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_find_their_task() {
        for (name, lamp) in [
            ("LaMP_1", "LaMP_1"),
            ("lamp-2m", "LaMP_2M"),
            ("movie_tagging", "LaMP_2M"),
            ("LaMP_8", "LaMP_2M"),
            ("news categorize", "LaMP_2N"),
            ("product_rating", "LaMP_3"),
            ("headline", "LaMP_4"),
            ("Scholarly_Title", "LaMP_5"),
            ("LaMP_6", "LaMP_6"),
            ("tweet_paraphrase", "LaMP_7"),
        ] {
            assert_eq!(EvalTask::find(name).unwrap().lamp, lamp);
        }
        let refused = |name| EvalTask::find(name).unwrap_err().to_string();
        assert!(refused("LaMP_2").contains("may be LaMP_2N or LaMP_2M"));
        assert!(
            refused("LaMP_9").contains("is not known") && refused("").contains("LaMP_7 (tweet")
        );
        let movie = EvalTask::find("LaMP_2M").unwrap();
        assert!(movie.accepts("LaMP_2") && movie.accepts("LaMP_8") && !movie.accepts("LaMP_2N"));
    }

    #[test]
    fn every_name_means_one_task_and_labels_are_whole() {
        let mut all: Vec<&str> = Vec::new();
        for task in TASKS {
            all.extend([task.name, task.lamp].iter().chain(task.aliases));
            assert!([0, 2, 5, 15].contains(&task.labels.len()), "{}", task.name);
            let mut labels = task.labels();
            labels.sort();
            labels.dedup();
            assert_eq!(labels.len(), task.labels.len(), "{} has a label twice", task.name);
            assert_eq!(task.labels.is_empty(), task.metrics[0] == Metric::Rouge1);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!((MOVIE[0], MOVIE[14]), ("sci-fi", "true story"));
        assert_eq!((NEWS[0], NEWS[14]), ("travel", "religion"));
    }
}
