//! The result for people, a line as soon as it is there, and as JSON.

use super::model::{MODELS, Model, Unit, Work};
use super::time::{Rules, Times};
use super::{Entry, Place};
use crate::watch::print;
use serde_json::{Map, Value, json};

/// Of the JSON's form; a change of what a key means raises it.
const SCHEMA: u32 = 1;

/// A table that is printed line by line.
#[derive(Debug)]
pub(super) struct Table<'a> {
    place: &'a Place,
    shown: bool,
    /// Width of the first column and of the second.
    widths: (usize, usize),
}

impl<'a> Table<'a> {
    /// Begins with the head, if it is `shown` at all.
    pub(super) fn new(place: &'a Place, entries: &[Entry], shown: bool) -> Self {
        let widest = |text: fn(&Entry) -> &str| {
            entries.iter().map(|entry| text(entry).len()).max().unwrap_or(0)
        };
        let widths = (widest(|entry| entry.op).max(22), widest(|entry| entry.preset).max(5));
        let table = Self { place, shown, widths };
        let mut cells: Vec<String> = vec!["MB".into(), "GFLOP".into()];
        cells.extend(MODELS.iter().map(|model| format!("{} us", model.name)));
        cells.push("bound".into());
        if place.kind.is_some() {
            let titles = ["here us", "spread", "GB/s", "GFLOP/s", "share"];
            cells.extend(titles.map(str::to_owned));
        }
        if let Some(kind) = place.kind {
            table.print(&format!("{kind}: {}", place.name));
        }
        table.line(("operation", "for"), &cells, "shape");
        table
    }

    /// An operation, and under it whom it is compared with.
    pub(super) fn row(&mut self, entry: &Entry) {
        let mut cells = vec![short(entry.gpu.bytes / 1e6), short(entry.gpu.flop / 1e9)];
        let bounds = MODELS.each_ref().map(|model| model.bound(entry.gpu));
        cells.extend(bounds.map(|bound| short(bound.seconds * 1e6)));
        // Devices need not agree.
        let [first, ..] = bounds;
        let same = bounds.iter().all(|bound| bound.binds == first.binds);
        cells.push(if same { first.binds } else { "mixed" }.to_owned());
        if let Some(times) = &entry.times {
            cells.extend(self.measured(entry, times));
        }
        self.line((entry.op, entry.preset), &cells, &entry.sizes.to_string());
        for (name, times) in &entry.rivals {
            let mut cells = vec![String::new(); 6];
            cells.extend([short(times.median * 1e6), spread(times)]);
            let ours = entry.times.as_ref().map_or(f64::NAN, |ours| ours.median);
            let text = format!("{:.2} times as long", times.median / ours);
            self.line((&format!("  {name}"), ""), &cells, &text);
        }
        if let Some(error) = &entry.error {
            self.print(&format!("  failed: {error}"));
        }
    }

    /// What the columns mean.
    pub(super) fn end(&self) {
        let share = match (self.place.kind, self.place.model) {
            (None, _) => None,
            (Some("cpu"), _) => Some(format!(
                "of our products' {:.0} GFLOP/s, measured just before",
                self.place.peak.unwrap_or(f64::NAN)
            )),
            (_, Some(model)) => Some(format!("the bound of {} over the time", model.name)),
            (_, None) => Some("none, the bounds are for other devices".to_owned()),
        };
        self.print(
            "MB, GFLOP: every input read once, every output written once, in bf16; us of A100, H100, H200: bounds by data \
             sheets, never measured",
        );
        if let Some(share) = share {
            self.print(&format!(
                "share: {share}; spread: from the fastest to the slowest repetition, as a part of the median"
            ));
        }
    }

    fn measured(&self, entry: &Entry, times: &Times) -> [String; 5] {
        let rate = |amount: f64| short(amount / times.median / 1e9);
        let share = self.place.share(entry, times);
        [
            short(times.median * 1e6),
            spread(times),
            rate(entry.here.bytes),
            if entry.here.flop > 0.0 { rate(entry.here.flop) } else { "-".to_owned() },
            share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
        ]
    }

    fn line(&self, (op, preset): (&str, &str), cells: &[String], last: &str) {
        let (first, second) = self.widths;
        let mut text = format!("{op:<first$}  {preset:<second$}");
        for cell in cells {
            text += &format!("{cell:>9}");
        }
        self.print(&format!("{text}  {last}"));
    }

    fn print(&self, text: &str) {
        if self.shown {
            print(text);
        }
    }
}

impl Place {
    /// On processors of what our products reach, for operations that are products; on a GPU of its bound.
    fn share(&self, entry: &Entry, times: &Times) -> Option<f64> {
        match self.peak {
            Some(peak) if entry.here.unit != Unit::F32 => {
                Some(entry.here.flop / times.median / (peak * 1e9))
            }
            Some(_) => None,
            None => self.model.map(|model| model.bound(entry.here).seconds / times.median),
        }
    }
}

fn spread(times: &Times) -> String {
    format!("{:.0} %", 100.0 * (times.most - times.least) / times.median)
}

/// Three or four digits.
fn short(number: f64) -> String {
    let digits = match number {
        n if n >= 100.0 => 0,
        n if n >= 10.0 => 1,
        n if n >= 1.0 || n <= 0.0 => 2,
        n if n >= 0.001 => 3,
        _ => 6,
    };
    format!("{number:.digits$}")
}

/// Everything, with units in the names.
pub(super) fn json(place: &Place, rules: Rules, entries: &[Entry]) -> Value {
    let device = place.kind.map(|kind| {
        let model = place.model.map(|model| model.name);
        json!({"kind": kind, "name": place.name, "model": model, "threads": place.threads,
            "product_peak_gflop_per_s": place.peak})
    });
    json!({
        "schema": SCHEMA,
        "device": device,
        "rules": {"runs": rules.runs, "milliseconds": rules.time.as_secs_f64() * 1e3},
        "models": MODELS.iter().map(described).collect::<Vec<Value>>(),
        "results": entries.iter().map(|entry| result(place, entry)).collect::<Vec<Value>>(),
    })
}

fn described(model: &Model) -> Value {
    let peaks = [Unit::Bf16, Unit::Tf32, Unit::F32].map(|unit| (unit, model.peak(unit)));
    let peaks: Map<String, Value> =
        peaks.into_iter().map(|(unit, peak)| (unit.name().to_owned(), peak.into())).collect();
    json!({"name": model.name, "reported": model.reported, "bytes_per_s": model.bandwidth,
        "flop_per_s": peaks, "source": model.source})
}

fn result(place: &Place, entry: &Entry) -> Value {
    let bounds: Map<String, Value> = MODELS
        .iter()
        .map(|model| {
            let bound = model.bound(entry.gpu);
            (model.name.to_owned(), json!({"seconds": bound.seconds, "binds": bound.binds}))
        })
        .collect();
    let shape: Map<String, Value> =
        entry.sizes.iter().map(|(key, number)| (key.to_owned(), number.into())).collect();
    let measured = entry.times.as_ref().map(|times| {
        let mut value = seconds(times);
        value["work"] = work(entry.here);
        value["bytes_per_s"] = (entry.here.bytes / times.median).into();
        value["flop_per_s"] = (entry.here.flop / times.median).into();
        value["share"] = place.share(entry, times).into();
        value
    });
    let rivals = entry.rivals.iter().map(|(name, times)| {
        let mut value = seconds(times);
        value["name"] = (*name).into();
        value["times_as_long"] = entry.times.as_ref().map(|ours| times.median / ours.median).into();
        value
    });
    json!({
        "op": entry.op,
        "family": entry.family,
        "for": entry.preset,
        "shape": shape,
        "gpu_work": work(entry.gpu),
        "bounds": bounds,
        "measured": measured,
        "comparators": rivals.collect::<Vec<Value>>(),
        "error": entry.error,
    })
}

fn work(work: Work) -> Value {
    json!({"bytes": work.bytes, "flop": work.flop, "unit": work.unit.name()})
}

fn seconds(times: &Times) -> Value {
    json!({"seconds": times.median, "least_s": times.least, "most_s": times.most,
        "repetitions": times.runs, "calls_each": times.calls})
}
