//! Charts as SVG: values with intervals over the values of an axis, a series a line or a row of dots.
//!
//! Texts stay texts (the viewer's fonts draw them); the same chart gives the same bytes. Start reading at [`svg`].

use super::Error;
use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BLACK, Cartesian2d, ChartBuilder, Circle, Color, Cross, DrawingArea, IntoDrawingArea, IntoFont,
    PathElement, RGBColor, SVGBackend, Text, TriangleMarker, WHITE,
};
use plotters::style::ShapeStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Width and height of a picture, and the width of its legend, in pixels.
const SIZE: (u32, u32) = (820, 480);
const LEGEND: u32 = 210;
/// Colours that colour-blind people tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the vertical one.
    pub y_label: String,
    /// Above the legend.
    pub legend: String,
    /// Names of the places on the horizontal axis.
    pub ticks: Vec<String>,
    /// The series, in the legend's order.
    pub series: Vec<Series>,
}

/// Points of one colour.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// In the order of the ticks.
    pub points: Vec<Point>,
}

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Number of its tick.
    pub tick: usize,
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Places, RangedCoordf64>>;

/// The picture as SVG text. Ticks that are numbers, in rising order, are joined by lines, at their distances unless
/// some would lie on one another; others are evenly spaced.
///
/// # Errors
/// No finite point, a point without a tick, what the library refuses.
pub fn svg(chart: &Chart) -> Result<String, Error> {
    let places = Places::of(&chart.ticks);
    let whole = |p: &&Point| p.value.is_finite() && p.lo.is_finite() && p.hi.is_finite();
    let points = || chart.series.iter().flat_map(|s| &s.points).filter(whole);
    if points().any(|p| p.tick >= chart.ticks.len()) {
        return Err(Error::Picture { reason: "a point without a tick".to_owned() });
    }
    let low = points().map(|p| p.lo.min(p.value)).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.hi.max(p.value)).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return Err(Error::Picture { reason: "there is no point".to_owned() });
    }
    let pad = if high > low { 0.06 * (high - low) } else { 0.05 * high.abs().max(1.0) };
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(chart, &places, (low - pad, high + pad), &area)
            .map_err(|reason| Error::Picture { reason })?;
        area.present().map_err(|e| Error::Picture { reason: e.to_string() })?;
    }
    Ok(text)
}

fn draw(
    chart: &Chart,
    places: &Places,
    (low, high): (f64, f64),
    area: &Area<'_>,
) -> Result<(), String> {
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut plot = ChartBuilder::on(&left)
        .caption(&chart.title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d(places.clone(), low..high)
        .map_err(|e| e.to_string())?;
    plot.configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(BLACK.mix(0.6))
        .x_labels(places.at.len())
        .y_labels(8)
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .draw()
        .map_err(|e| e.to_string())?;
    for number in 0..chart.series.len() {
        series(&mut plot, chart, places, number)?;
    }
    legend(chart, &right)
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// Line, whiskers and marks of one series.
fn series(
    plot: &mut Plot<'_, '_>,
    chart: &Chart,
    places: &Places,
    number: usize,
) -> Result<(), String> {
    let style: ShapeStyle = colour(number).stroke_width(2);
    let shift = places.shift(number, chart.series.len());
    let points = &chart.series[number].points;
    let points: Vec<(f64, &Point)> = points
        .iter()
        .filter(|p| p.value.is_finite() && p.lo.is_finite() && p.hi.is_finite())
        .map(|p| (places.at[p.tick] + shift, p))
        .collect();
    let cap = 0.3 * places.step;
    let whiskers = points.iter().flat_map(|&(x, p)| {
        let flat = |y: f64| PathElement::new(vec![(x - cap, y), (x + cap, y)], colour(number));
        [PathElement::new(vec![(x, p.lo), (x, p.hi)], colour(number)), flat(p.lo), flat(p.hi)]
    });
    plot.draw_series(whiskers).map_err(|e| e.to_string())?;
    if places.joined {
        let line = points.iter().map(|&(x, p)| (x, p.value)).collect::<Vec<_>>();
        plot.draw_series([PathElement::new(line, style)]).map_err(|e| e.to_string())?;
    }
    let at = points.iter().map(|&(x, p)| (x, p.value));
    let filled = colour(number).filled();
    match number % 3 {
        0 => plot.draw_series(at.map(|c| Circle::new(c, 4, filled))).map(drop),
        1 => plot.draw_series(at.map(|c| TriangleMarker::new(c, 6, filled))).map(drop),
        _ => plot.draw_series(at.map(|c| Cross::new(c, 4, style))).map(drop),
    }
    .map_err(|e| e.to_string())
}

fn legend(chart: &Chart, area: &Area<'_>) -> Result<(), String> {
    let style =
        ("sans-serif", 15).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    let failed = |e: plotters::drawing::DrawingAreaErrorKind<_>| format!("{e:?}");
    let mut y = 60;
    area.draw(&Text::new(chart.legend.as_str(), (4, y), style.clone())).map_err(failed)?;
    for (number, series) in chart.series.iter().enumerate() {
        y += 22;
        let (colour, at) = (colour(number), (16, y));
        area.draw(&PathElement::new(vec![(4, y), (28, y)], colour.stroke_width(2)))
            .map_err(failed)?;
        match number % 3 {
            0 => area.draw(&Circle::new(at, 4, colour.filled())),
            1 => area.draw(&TriangleMarker::new(at, 6, colour.filled())),
            _ => area.draw(&Cross::new(at, 4, colour.stroke_width(2))),
        }
        .map_err(failed)?;
        let name: String = series.name.chars().take(26).collect();
        area.draw(&Text::new(name, (36, y), style.clone())).map_err(failed)?;
    }
    Ok(())
}

/// Where ticks stand: the horizontal axis.
#[derive(Debug, Clone)]
struct Places {
    ticks: Vec<String>,
    at: Vec<f64>,
    joined: bool,
    /// Free space at both ends.
    margin: f64,
    /// Half the width of a whisker's cap, times three.
    step: f64,
}

impl Places {
    fn of(ticks: &[String]) -> Self {
        let numbers: Option<Vec<f64>> = ticks.iter().map(|t| number(t)).collect();
        let rising = numbers.filter(|n| n.len() > 1 && n.windows(2).all(|w| w[0] < w[1]));
        let joined = rising.is_some();
        let even = || (0..ticks.len().max(1)).map(|i| i as f64).collect::<Vec<f64>>();
        let at = match rising {
            Some(numbers) => {
                let span = numbers[numbers.len() - 1] - numbers[0];
                let near = numbers.windows(2).any(|w| w[1] - w[0] < 0.05 * span);
                if near { even() } else { numbers }
            }
            None => even(),
        };
        let span = at[at.len() - 1] - at[0];
        let margin = if joined { 0.05 * span } else { 0.5 };
        Self {
            ticks: ticks.to_vec(),
            at,
            joined,
            margin,
            step: if joined { 0.02 * span } else { 0.06 },
        }
    }

    /// What keeps whiskers of different series off one another.
    fn shift(&self, number: usize, series: usize) -> f64 {
        let gap = if self.joined { 0.3 * self.step } else { (0.6 / series as f64).min(0.14) };
        (number as f64 - (series as f64 - 1.0) / 2.0) * gap
    }
}

impl Ranged for Places {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let ends = self.range();
        RangedCoordf64::from(ends).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.at.clone()
    }

    fn range(&self) -> Range<f64> {
        self.at[0] - self.margin..self.at[self.at.len() - 1] + self.margin
    }
}

impl ValueFormatter<f64> for Places {
    fn format_ext(&self, x: &f64) -> String {
        let near = |&(_, at): &(usize, &f64)| (x - at).abs() < 1e-9 * (1.0 + at.abs());
        let tick = self.at.iter().enumerate().find(near);
        tick.and_then(|(i, _)| self.ticks.get(i)).cloned().unwrap_or_default()
    }
}

/// A tick as a number.
fn number(tick: &str) -> Option<f64> {
    tick.parse::<f64>().ok().filter(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(ticks: &[&str], series: &[(&str, &[f64])]) -> Chart {
        let series = series.iter().map(|(name, values)| Series {
            name: (*name).to_owned(),
            points: values
                .iter()
                .enumerate()
                .map(|(tick, &value)| Point { tick, value, lo: value - 0.1, hi: value + 0.2 })
                .collect(),
        });
        Chart {
            title: "t".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            legend: "by".to_owned(),
            ticks: ticks.iter().map(|t| (*t).to_owned()).collect(),
            series: series.collect(),
        }
    }

    #[test]
    fn numbers_keep_their_distances_unless_too_near() {
        let at = |ticks: &[&str]| {
            let places = Places::of(&ticks.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
            (places.at, places.joined)
        };
        assert_eq!(at(&["0", "1", "4"]), (vec![0.0, 1.0, 4.0], true));
        assert_eq!(at(&["0", "1", "64"]), (vec![0.0, 1.0, 2.0], true));
        assert_eq!(at(&["2", "1"]), (vec![0.0, 1.0], false));
        assert_eq!(at(&["a", "1"]), (vec![0.0, 1.0], false));
        assert_eq!(at(&["7"]), (vec![0.0], false));
        assert_eq!(at(&["nan", "1"]), (vec![0.0, 1.0], false));
    }

    #[test]
    fn a_chart_has_its_texts_lines_and_marks() {
        let joined = svg(&chart(
            &["0", "1", "4"],
            &[("random", &[1.0, 2.0, 3.0]), ("bm25", &[1.5, 2.5, 3.5])],
        ));
        let joined = joined.unwrap();
        for part in ["random", "bm25", "\n0\n", "\n1\n", "\n4\n", "<circle", "<svg", "</svg>"] {
            assert!(joined.contains(part), "{part} is missing in\n{joined}");
        }
        // Three whiskers of three lines each, for two series, and the joining lines.
        let lines = |text: &str| text.matches("<polyline").count();
        let dots =
            chart(&["a", "b", "c"], &[("random", &[1.0, 2.0, 3.0]), ("bm25", &[1.5, 2.5, 3.5])]);
        assert_eq!(lines(&joined), lines(&svg(&dots).unwrap()) + 2);
        assert_eq!(svg(&dots).unwrap(), svg(&dots).unwrap());
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let mut one = chart(&["<script>", "b&\"'"], &[("]]><x a='", &[1.0, 1.0])]);
        one.title = "<&>".to_owned();
        let text = svg(&one).unwrap();
        assert!(!text.contains("<script>") && !text.contains("<x a") && !text.contains("<&>"));
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error_or_left_out() {
        assert!(svg(&chart(&["a"], &[])).is_err());
        assert!(svg(&chart(&[], &[])).is_err());
        assert!(svg(&chart(&["a"], &[("s", &[1.0, 2.0])])).is_err());
        assert!(svg(&chart(&["a"], &[("s", &[f64::NAN])])).is_err());
        let text = svg(&chart(&["a", "b"], &[("s", &[f64::INFINITY, 1.0])])).unwrap();
        assert!(!text.contains("NaN") && !text.contains("inf"));
        // One value, no spread: still a picture.
        let mut flat = chart(&["1"], &[("s", &[0.0])]);
        flat.series[0].points[0] = Point { tick: 0, value: 0.0, lo: 0.0, hi: 0.0 };
        assert!(svg(&flat).is_ok());
    }
}
