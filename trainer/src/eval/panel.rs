//! One metric over all arms: values, paired resamples, differences.

use super::arms::{Sorted, Sums};
use super::bootstrap::Rows;
use super::compare::{Difference, Estimate, Options, Row, UserCounts};
use super::{Bootstrap, EvalError, Metric, sign_test};

/// One metric: the sums of all arms and their resamples.
pub(super) struct Panel<'a> {
    pub(super) metric: Metric,
    bootstrap: &'a Bootstrap,
    sums: Vec<Sums>,
    /// Per arm: the users' values.
    pub(super) values: Vec<Vec<f64>>,
    /// Resamples by users, `[arms, columns]` each.
    by_user: Vec<Vec<f64>>,
    /// Resamples by queries, `[arms, columns]` each.
    by_query: Vec<Vec<f64>>,
    /// Resampled sums of the users' values, `[arms]` each; the users drawn are those of `by_user`.
    of_values: Vec<Vec<f64>>,
}

impl<'a> Panel<'a> {
    /// The metric of arms that answer the same queries.
    ///
    /// # Errors
    /// What the metric and the bootstrap refuse.
    pub(super) fn new(
        metric: Metric,
        arms: &[Sorted<'_>],
        options: &'a Options,
    ) -> Result<Self, EvalError> {
        let bootstrap = &options.bootstrap;
        let sums = arms.iter().map(|arm| arm.sums(metric, &options.labels));
        let sums: Vec<Sums> = sums.collect::<Result<_, _>>()?;
        let values: Vec<Vec<f64>> = sums.iter().map(|s| s.user_values(metric)).collect();
        let resample = |unit, matrices: Vec<&[f64]>, columns| {
            let (sums, width) = side_by_side(&matrices, columns);
            bootstrap.resample(&Rows { unit, sums: &sums, width })
        };
        let columns = sums.first().map_or(1, |s| s.columns);
        let (by_user, by_query, of_values) = if sums.is_empty() {
            Default::default()
        } else {
            (
                resample("user", sums.iter().map(|s| s.by_user.as_slice()).collect(), columns)?,
                resample("query", sums.iter().map(|s| s.by_query.as_slice()).collect(), columns)?,
                resample("user", values.iter().map(Vec::as_slice).collect(), 1)?,
            )
        };
        Ok(Self { metric, bootstrap, sums, values, by_user, by_query, of_values })
    }

    /// The row of arm `own`.
    pub(super) fn row(&self, own: usize, arm: &Sorted<'_>, differences: Vec<Difference>) -> Row {
        let (metric, columns) = (self.metric, self.sums[own].columns);
        let of = |resample: &Vec<f64>| metric.value(&resample[own * columns..(own + 1) * columns]);
        let num_users = self.values[own].len();
        let of_mean = |resample: &Vec<f64>| resample[own] / num_users as f64;
        let interval_over_users = || self.bootstrap.interval(self.of_values.iter().map(of_mean));
        Row {
            arm: arm.name.to_owned(),
            metric,
            num_queries: arm.predictions.len(),
            num_users,
            over_queries: self.metric.value(&self.sums[own].all),
            interval_over_queries: self.bootstrap.interval(self.by_user.iter().map(of)),
            over_users: metric.per_user().then(|| mean(&self.values[own])),
            interval_over_users: metric.per_user().then(interval_over_users),
            differences,
        }
    }

    /// Arm `own` minus arm `other`, whose name is `name`.
    pub(super) fn difference(&self, own: usize, other: usize, name: &str) -> Difference {
        let metric = self.metric;
        let columns = self.sums[own].columns;
        let apart = |resample: &Vec<f64>| {
            let of = |arm: usize| metric.value(&resample[arm * columns..(arm + 1) * columns]);
            of(own) - of(other)
        };
        let (mine, theirs) = (&self.values[own], &self.values[other]);
        let of_means = |resample: &Vec<f64>| (resample[own] - resample[other]) / mine.len() as f64;
        Difference {
            reference: name.to_owned(),
            over_queries: Estimate {
                value: metric.value(&self.sums[own].all) - metric.value(&self.sums[other].all),
                interval: self.bootstrap.interval(self.by_user.iter().map(apart)),
            },
            over_queries_by_query: self.bootstrap.interval(self.by_query.iter().map(apart)),
            over_users: metric.per_user().then(|| Estimate {
                value: mean(mine) - mean(theirs),
                interval: self.bootstrap.interval(self.of_values.iter().map(of_means)),
            }),
            users: metric.per_user().then(|| user_counts(metric, mine, theirs)),
        }
    }
}

/// Matrices `[units, columns]` as one `[units, matrices * columns]`, and its width.
fn side_by_side(matrices: &[&[f64]], columns: usize) -> (Vec<f64>, usize) {
    let units = matrices.first().map_or(0, |m| m.len() / columns);
    let rows = (0..units).flat_map(|unit| {
        matrices.iter().flat_map(move |m| &m[unit * columns..(unit + 1) * columns]).copied()
    });
    (rows.collect(), matrices.len() * columns)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub(super) fn user_counts(metric: Metric, arm: &[f64], reference: &[f64]) -> UserCounts {
    let count = |wanted: fn(&f64, &f64) -> bool| {
        arm.iter().zip(reference).filter(|(a, r)| wanted(a, r)).count() as u64
    };
    let (less, more) = (count(|a, r| a < r), count(|a, r| a > r));
    let (better, worse) = if metric.lower_is_better() { (less, more) } else { (more, less) };
    let all = arm.len() as u64;
    UserCounts {
        better,
        worse,
        equal: all - better - worse,
        better_share: better as f64 / all as f64,
        worse_share: worse as f64 / all as f64,
        sign_test_p: sign_test(better, worse),
    }
}
