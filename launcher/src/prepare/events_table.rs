//! Statistics of an event log for a person to read.

use super::events::Document;
use trainer::data::events::{PartStatistics, Spread, Tally};

/// The whole report.
pub(super) fn text(document: &Document<'_>) -> String {
    let s = &document.statistics;
    let line = |what: &str, n: u64| format!("{what:<40}{n:>9}");
    let share = |what: &str, share: f64| format!("{what:<40}{:>7.1} %", 100.0 * share);
    let mut lines = vec![document.source.clone(), String::new(), line("users", s.users)];
    lines.push(line("  cold", s.cold_users));
    lines.push(line("events", s.events));
    lines.push(line("names of events", s.event_names));
    lines.extend(s.contexts.iter().map(|(name, n)| line(&format!("values of {name}"), *n)));
    lines.push(line("intents", s.intents));
    lines.push(line("  of the long tail", s.tail_intents));
    lines.push(format!("{:<40}{:>9.2}", "  entropy in training, bits", s.population_entropy));
    let top: String = s.population_top.escape_debug().take(40).collect();
    lines.push(share("  share of the most frequent", s.population_top_share) + "  " + &top);
    lines.push(line("users with intents of their own", s.users_with_own_intents));
    lines.push(share("  share of these in test windows", s.own_test_share));
    lines.push(String::new());
    let head = ["events", "windows", "short", "tail", "users"].map(|name| format!("{name:>9}"));
    lines.push(format!("{:<22}{}", format!("windows of {}", s.window), head.concat()));
    lines.push(part("training", &s.train));
    lines.push(part("validation", &s.validation));
    lines.push(part("test", &s.test));
    lines.push(String::new());
    let head = ["min", "p10", "p50", "p90", "max", "mean"].map(|name| format!("{name:>9}"));
    lines.push(format!("{:<22}{}", "of a user", head.concat()));
    lines.push(spread("events", &s.events_per_user));
    lines.push(spread("events a day", &s.events_per_day));
    lines.push(spread("intents", &s.intents_per_user));
    lines.push(spread("entropy, bits", &s.intent_entropy));
    lines.push(spread("share of the first", &s.top_share));
    lines.push(spread("intents of their own", &s.own_intents));
    lines.extend(left_out(&document.left_out));
    lines.join("\n")
}

fn part(name: &str, part: &PartStatistics) -> String {
    let cells = [part.events, part.windows, part.short_windows, part.tail_windows, part.users];
    format!("{name:<22}{}", cells.map(|n| format!("{n:>9}")).concat())
}

fn spread(name: &str, spread: &Spread) -> String {
    let cells = [spread.min, spread.p10, spread.median, spread.p90, spread.max, spread.mean];
    format!("{name:<22}{}", cells.map(|n| format!("{n:>9.2}")).concat())
}

fn left_out(tally: &Tally) -> Vec<String> {
    let parts = |[train, validation, test]: [u64; 3]| train + validation + test;
    let rules = [
        (tally.bad_rows, "bad rows"),
        (tally.not_kept, "rows that are not asked for"),
        (tally.duplicates, "exact duplicates"),
        (tally.collapsed, "repeats of the event before"),
        (tally.short_users, "users with too few events"),
        (tally.short_events, "events of these users"),
        (tally.users_without_training, "users without a training window, kept"),
        (tally.gaps, "gaps that windows stop at"),
        (parts(tally.without_intent), "events without an intent, no targets"),
        (
            parts(tally.unseen_intents),
            "events with an intent that training does not have, no targets",
        ),
        (parts(tally.unknown_events), "events of unknown name, kept"),
        (parts(tally.unknown_contexts), "unknown values of contexts, kept"),
    ];
    let some: Vec<String> = rules
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, rule)| format!("{count:>9}  {rule}"))
        .collect();
    if some.is_empty() {
        return Vec::new();
    }
    [String::new(), format!("of {} rows", tally.rows)].into_iter().chain(some).collect()
}
