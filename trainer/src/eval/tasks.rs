//! What evaluation adds to the benchmark's tasks: official metrics, and messages in the ids of prediction files.
//! Names, aliases and labels are [`LampTask`]'s.

use super::EvalError;
use super::metric::Metric;
use crate::data::LampTask;

/// The official metrics of a task, the primary one first.
pub fn metrics(task: LampTask) -> &'static [Metric] {
    match task {
        LampTask::Citation | LampTask::NewsCategory | LampTask::MovieTag => {
            &[Metric::Accuracy, Metric::MacroF1]
        }
        LampTask::Rating => &[Metric::Mae, Metric::Rmse],
        LampTask::Headline
        | LampTask::ScholarlyTitle
        | LampTask::EmailSubject
        | LampTask::TweetParaphrase => &[Metric::Rouge1, Metric::RougeL],
    }
}

/// The task of a name; one that several tasks bear is refused with their ids.
///
/// # Errors
/// [`EvalError::Task`].
pub fn find(name: &str) -> Result<LampTask, EvalError> {
    LampTask::parse(name).map_err(|_| {
        let bearers = LampTask::ALL.into_iter().filter(|task| task.is_called(name));
        let bearers: Vec<&str> = bearers.map(LampTask::lamp_id).collect();
        let what = match bearers.as_slice() {
            [] => "is not known".to_owned(),
            several => format!("may be {}", several.join(" or ")),
        };
        EvalError::Task { name: name.to_owned(), what }
    })
}

/// Every task's own names, for people.
pub(super) fn names() -> String {
    LampTask::ALL.map(|task| format!("{} ({})", task.lamp_id(), task.name())).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_two_tasks_is_refused_with_both() {
        for task in LampTask::ALL {
            assert_eq!(find(task.lamp_id()).unwrap(), task);
        }
        let refused = |name| find(name).unwrap_err().to_string();
        assert!(refused("LaMP_2").contains("may be LaMP_2N or LaMP_2M"));
        assert!(
            refused("LaMP_9").contains("is not known") && refused("").contains("LaMP_7 (tweet")
        );
    }

    #[test]
    fn the_first_metric_fits_the_answers() {
        for task in LampTask::ALL {
            let free = metrics(task)[0] == Metric::Rouge1;
            assert_eq!(free, task.is_free_text(), "{task}");
            assert!(metrics(task).len() == 2 && metrics(task)[0] != metrics(task)[1]);
        }
    }
}
