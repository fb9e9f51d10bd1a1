//! What a person's windows are trained for in each pass: unlearning, plain, focal and over-sampled tuning.

use super::tune::Lesson;
use crate::pack::ClassLoss;
use crate::prompt::Example;
use crate::unlearn::Split;
use kernels::classify::Row;

/// What the windows of forgotten intents are led away from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetFrom {
    /// The intent that the teacher ranks first.
    TeacherAnswer,
    /// The same where it is wrong; where it is right, the window is retained.
    TeacherError,
    /// All of the teacher's probabilities. A student that begins as the teacher is at the minimum of that
    /// cross-entropy, where its gradient is zero: it moves only when something else has moved it.
    TeacherDistribution,
    /// The intent itself: the second reading of the figure.
    Label,
}

/// What the windows of retained intents are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainTo {
    /// The teacher's probabilities.
    TeacherDistribution,
    /// The intent itself.
    Label,
}

/// The terms of unlearning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forgetting {
    /// Of forgotten intents.
    pub forget: ForgetFrom,
    /// Of retained ones.
    pub retain: RetainTo,
    /// Weight of the forgotten, times the intent's own.
    pub beta: f32,
    /// Cross-entropy beyond which nothing more is forgotten.
    pub margin: f32,
}

/// The intent of a window.
fn intent(window: &Example) -> u32 {
    window.tokens.last().copied().unwrap_or(0)
}

/// Unlearning: `+CE` to hold on to the teacher on windows of retained intents, bounded `-CE` to leave it on those of
/// forgotten ones. `teacher [windows, intents]` are its logits.
///
/// Nothing to forget is no lesson.
pub fn unlearning(windows: &[Example], teacher: &[f32], split: &Split, how: Forgetting) -> Lesson {
    if split.forget.is_empty() || windows.is_empty() {
        return Lesson::default();
    }
    let intents = teacher.len() / windows.len();
    let loss = |(window, logits): (&Example, &[f32])| {
        let y = intent(window);
        #[expect(clippy::cast_possible_truncation, reason = "rounded once to f32")]
        let weight = split.weight(y).map(|w| how.beta * w as f32);
        let first = first_of(logits);
        let row = match (weight, how.forget) {
            (Some(beta), ForgetFrom::TeacherAnswer) => {
                Row::forget(Some(first), 1.0, beta, how.margin)
            }
            (Some(beta), ForgetFrom::TeacherError) if first != y => {
                Row::forget(Some(first), 1.0, beta, how.margin)
            }
            (Some(beta), ForgetFrom::TeacherDistribution) => {
                Row::forget(None, 1.0, beta, how.margin)
            }
            (Some(beta), ForgetFrom::Label) => Row::forget(Some(y), 1.0, beta, how.margin),
            (None, _) | (Some(_), ForgetFrom::TeacherError) => match how.retain {
                RetainTo::TeacherDistribution => Row::retain(None, 1.0),
                RetainTo::Label => Row::retain(Some(y), 1.0),
            },
        };
        ClassLoss::new(row, logits)
    };
    let losses = windows.iter().zip(teacher.chunks_exact(intents)).map(loss).collect();
    Lesson { windows: windows.to_vec(), losses }
}

/// The largest logit's number; of equal ones the first.
fn first_of(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), (n, &x): (u32, &f32)| if x > best.1 { (n, x) } else { best };
    (0u32..).zip(logits).fold((0, f32::NEG_INFINITY), better).0
}

/// Cross-entropy of the intents.
pub fn plain(windows: &[Example]) -> Lesson {
    Lesson { windows: windows.to_vec(), losses: Vec::new() }
}

/// The focal loss.
pub fn focal(windows: &[Example], gamma: f32) -> Lesson {
    let loss = |w: &Example| ClassLoss::new(Row::focal(intent(w), 1.0, gamma), &[]);
    Lesson { windows: windows.to_vec(), losses: windows.iter().map(loss).collect() }
}

/// Times a window is repeated at most.
const MOST_REPEATS: u64 = 10;

/// Windows of rarer intents repeated until they would be as many as the most frequent one's, each at most ten times,
/// copies right behind their originals; `counts[intent]` says how rare an intent is.
pub fn oversampled(windows: &[Example], counts: &[u64]) -> Lesson {
    let most = counts.iter().copied().max().unwrap_or(0);
    let times = |w: &Example| {
        let own = counts.get(intent(w) as usize).copied().unwrap_or(0).max(1);
        ((2 * most + own) / (2 * own)).clamp(1, MOST_REPEATS)
    };
    let repeated = windows
        .iter()
        .flat_map(|w| std::iter::repeat_n(w.clone(), usize::try_from(times(w)).unwrap_or(1)));
    Lesson { windows: repeated.collect(), losses: Vec::new() }
}

/// Knowledge distillation for a window: `(1 - alpha) CE(label) + alpha T² KL(teacher || student)`.
pub fn distilled(windows: &[Example], teacher: &[f32], (alpha, t): (f32, f32)) -> Vec<ClassLoss> {
    let intents = teacher.len() / windows.len().max(1);
    windows
        .iter()
        .zip(teacher.chunks_exact(intents.max(1)))
        .map(|(w, logits)| ClassLoss::new(Row::distill(intent(w), 1.0, alpha, t), logits))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::classify::Kind;

    fn window(intent: u32) -> Example {
        Example { tokens: vec![7, 8, intent], prompt_len: 2 }
    }

    fn split(forget: &[u32]) -> Split {
        Split { forget: forget.to_vec(), weights: vec![0.5; forget.len()] }
    }

    fn how(forget: ForgetFrom) -> Forgetting {
        Forgetting { forget, retain: RetainTo::TeacherDistribution, beta: 3.0, margin: 4.0 }
    }

    #[test]
    fn forgotten_windows_leave_the_teacher_and_others_stay() {
        let windows = [window(0), window(1), window(2)];
        // The teacher says 2, 2, 2.
        let teacher = [0.0, 1.0, 2.0].repeat(3);
        let kinds = |forget: ForgetFrom| -> Vec<(u32, u32, u32)> {
            let lesson = unlearning(&windows, &teacher, &split(&[1, 2]), how(forget));
            lesson.losses.iter().map(|l| (l.row.kind, l.row.target, l.row.soft)).collect()
        };
        let (forget, retain) = (Kind::Forget as u32, Kind::Retain as u32);
        let stays = (retain, 0, 1);
        assert_eq!(kinds(ForgetFrom::TeacherAnswer), [stays, (forget, 2, 0), (forget, 2, 0)]);
        assert_eq!(kinds(ForgetFrom::TeacherError), [stays, (forget, 2, 0), stays]);
        assert_eq!(kinds(ForgetFrom::Label), [stays, (forget, 1, 0), (forget, 2, 0)]);
        assert_eq!(kinds(ForgetFrom::TeacherDistribution), [stays, (forget, 0, 1), (forget, 0, 1)]);
        let lesson = unlearning(&windows, &teacher, &split(&[1]), how(ForgetFrom::Label));
        assert_eq!((lesson.losses[1].row.beta, lesson.losses[1].row.margin), (1.5, 4.0));
        assert_eq!(lesson.losses[0].teacher, [0.0, 1.0, 2.0]);
        assert!(lesson.losses[1].teacher.is_empty(), "a label needs no teacher");
    }

    #[test]
    fn nothing_to_forget_is_no_lesson() {
        let lesson = unlearning(&[window(0)], &[0.0, 1.0], &split(&[]), how(ForgetFrom::Label));
        assert!(lesson.windows.is_empty() && lesson.losses.is_empty());
    }

    #[test]
    fn rare_intents_are_repeated_up_to_ten_times() {
        let windows: Vec<Example> =
            [vec![0; 30], vec![1; 10], vec![2; 1]].concat().into_iter().map(window).collect();
        let all = oversampled(&windows, &[30, 10, 1]).windows;
        let count = |n| all.iter().filter(|w| intent(w) == n).count();
        assert_eq!((count(0), count(1), count(2)), (30, 30, 10));
        // Rare among others, or never seen there.
        let all = oversampled(&windows, &[10, 20]).windows;
        let count = |n| all.iter().filter(|w| intent(w) == n).count();
        assert_eq!((count(0), count(1), count(2)), (60, 10, 10));
    }
}
