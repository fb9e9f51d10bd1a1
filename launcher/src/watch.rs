//! What a person sees while a stage runs: bars on a terminal, a line now and then elsewhere; and the
//! events of this rank.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Seconds between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Progress of one stage on rank 0; silent on the others.
#[derive(Debug)]
pub(crate) struct Progress {
    stage: String,
    bar: Option<ProgressBar>,
    lines: bool,
    total: u64,
    done: u64,
    tokens: u64,
    started: Instant,
    last_line: Instant,
    note: String,
}

impl Progress {
    pub(crate) fn new(stage: impl Into<String>, total: u64, shown: bool) -> Self {
        let stage = stage.into();
        let terminal = std::io::stderr().is_terminal();
        let bar = (shown && terminal).then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:<14} {wide_bar} {pos}/{len} {msg} {eta} left")
            {
                bar.set_style(style);
            }
            bar.set_prefix(stage.clone());
            bar
        });
        let now = Instant::now();
        let (lines, note) = (shown && !terminal, String::new());
        Self { stage, bar, lines, total, done: 0, tokens: 0, started: now, last_line: now, note }
    }

    /// Adds finished units and trained tokens.
    pub(crate) fn advance(&mut self, units: u64, tokens: u64, note: &str) {
        self.done += units;
        self.tokens += tokens;
        note.clone_into(&mut self.note);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(format!("{:.0} tokens/s {note}", self.tokens_per_s()));
        } else if self.lines && self.done < self.total && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.line();
        }
    }

    pub(crate) fn tokens_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let tokens = self.tokens as f64;
        tokens / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Seconds left at the pace so far.
    pub(crate) fn eta_s(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let left = (self.total - self.done.min(self.total)) as f64 / self.done as f64;
        (self.done > 0).then(|| left * self.started.elapsed().as_secs_f64())
    }

    pub(crate) fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.note.clear();
        if self.bar.is_some() || self.lines {
            self.line();
        }
    }

    fn line(&self) {
        let eta = match self.eta_s() {
            Some(s) if self.done < self.total => format!(", {s:.0} s left"),
            _ => String::new(),
        };
        say(&format!(
            "{:<14} {}/{} in {:.0} s, {:.0} tokens/s{}{}{eta}",
            self.stage,
            self.done,
            self.total,
            self.started.elapsed().as_secs_f64(),
            self.tokens_per_s(),
            if self.note.is_empty() { "" } else { ", " },
            self.note,
        ));
    }
}

/// A line for the person, on standard error; a closed terminal does not stop a run.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A result, on standard output; a closed pipe does not stop a run.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
