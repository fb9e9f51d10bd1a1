//! Charts of intents as SVG: a confusion as a heat map, a metric by popularity.
//!
//! Texts stay texts; the same numbers give the same bytes. Start reading at [`heat_map`] and [`by_slice`].

use super::Error;
use super::plot::{Chart, Point, Series, svg};
use crate::eval::intents::{IntentComparison, IntentMetric};
use plotters::prelude::{
    BLACK, Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle,
    SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, TextStyle};

/// Side of a cell, at least and at most, and of a whole map, about.
const CELL: (i32, i32) = (9, 34);
const MAP: i32 = 620;
/// Left of and above the map, for names and labels.
const LEFT: i32 = 170;
const ABOVE: i32 = 44;
/// Below it, for the columns' names, and right of it, for the scale.
const BELOW: i32 = 150;
const RIGHT: i32 = 90;
/// Most rows and columns that can be drawn: more are no picture.
const MOST: usize = 256;
/// Letters of a name.
const LONG: usize = 18;

/// Shares in a table of rows and columns.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Above it.
    pub title: String,
    /// What columns are.
    pub x_label: String,
    /// What rows are.
    pub y_label: String,
    /// Names of the columns, left to right.
    pub columns: Vec<String>,
    /// Names of the rows, from above.
    pub rows: Vec<String>,
    /// Shares, 0 to 1: `[rows, columns]`.
    pub shares: Vec<f64>,
}

/// The table as SVG: a square a cell, from white at 0 to blue at 1, its share written into it where there is room.
///
/// # Errors
/// No cells, too many, other numbers of shares than cells, a share outside 0 to 1, what the library refuses.
pub fn heat_map(map: &HeatMap) -> Result<String, Error> {
    let picture = |reason: &str| Error::Picture { reason: reason.to_owned() };
    let (rows, columns) = (map.rows.len(), map.columns.len());
    if rows == 0 || columns == 0 || rows.max(columns) > MOST {
        return Err(picture("a heat map has 1 to 256 rows and columns"));
    }
    if map.shares.len() != rows * columns {
        return Err(picture("other numbers of shares than cells"));
    }
    if map.shares.iter().any(|s| !(0.0..=1.0 + 1e-9).contains(s)) {
        return Err(picture("a share outside 0 to 1"));
    }
    let [rows, columns] = [whole(rows), whole(columns)];
    let cell = (MAP / rows.max(columns)).clamp(CELL.0, CELL.1);
    let size = [LEFT + columns * cell + RIGHT, ABOVE + rows * cell + BELOW];
    let size = size.map(|s| u32::try_from(s).unwrap_or(0));
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (size[0], size[1])).into_drawing_area();
        cells(map, cell, &area).and_then(|()| names(map, cell, &area)).map_err(|e| picture(&e))?;
        area.present().map_err(|e| picture(&e.to_string()))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A count of at most [`MOST`].
fn whole(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// White to the blue of the other charts; steps are even in each channel.
fn shade(share: f64) -> RGBColor {
    let mix = |full: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
        let channel = (255.0 + (full - 255.0) * share.clamp(0.0, 1.0)).round() as u8;
        channel
    };
    RGBColor(mix(0.0), mix(114.0), mix(178.0))
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn cells(map: &HeatMap, cell: i32, area: &Area<'_>) -> Result<(), String> {
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    let columns = map.columns.len();
    for (place, &share) in map.shares.iter().enumerate() {
        let (x, y) = (LEFT + whole(place % columns) * cell, ABOVE + whole(place / columns) * cell);
        let corners = [(x, y), (x + cell, y + cell)];
        area.draw(&Rectangle::new(corners, shade(share).filled())).map_err(|e| e.to_string())?;
        // Shares that would be written .00 say less than an empty cell.
        if cell >= 26 && share >= 0.005 {
            let colour = if share > 0.6 { WHITE } else { BLACK };
            let style = ("sans-serif", 11).into_font().color(&colour);
            let style = style.pos(Pos::new(HPos::Center, VPos::Center));
            let at = (x + cell / 2, y + cell / 2);
            let share = format!("{share:.2}");
            let short = share.strip_prefix('0').unwrap_or(&share).to_owned();
            area.draw(&Text::new(short, at, style)).map_err(|e| e.to_string())?;
        }
    }
    let (right, bottom) = (LEFT + whole(columns) * cell, ABOVE + whole(map.rows.len()) * cell);
    let frame = [(LEFT, ABOVE), (right, bottom)];
    area.draw(&Rectangle::new(frame, BLACK.mix(0.6))).map_err(|e| e.to_string())?;
    scale(right + 16, bottom, area)
}

/// The colours' meaning, beside the map.
fn scale(x: i32, bottom: i32, area: &Area<'_>) -> Result<(), String> {
    const STEPS: i32 = 20;
    let height = (bottom - ABOVE).clamp(STEPS, 160) / STEPS;
    for step in 0..STEPS {
        let y = ABOVE + (STEPS - 1 - step) * height;
        let colour = shade(f64::from(step) / f64::from(STEPS - 1));
        area.draw(&Rectangle::new([(x, y), (x + 14, y + height)], colour.filled()))
            .map_err(|e| e.to_string())?;
    }
    let style = font(12).pos(Pos::new(HPos::Left, VPos::Center));
    for (name, y) in [("1", ABOVE), ("0", ABOVE + STEPS * height)] {
        area.draw(&PathElement::new(vec![(x + 14, y), (x + 18, y)], BLACK))
            .map_err(|e| e.to_string())?;
        area.draw(&Text::new(name, (x + 22, y), style.clone())).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Title, labels, and the names of rows and columns.
fn names(map: &HeatMap, cell: i32, area: &Area<'_>) -> Result<(), String> {
    let short = |name: &String| name.chars().take(LONG).collect::<String>();
    let size = (cell - 1).clamp(7, 13);
    let bottom = ABOVE + whole(map.rows.len()) * cell;
    let draw = |text: String, at: (i32, i32), style: TextStyle<'static>| {
        area.draw(&Text::new(text, at, style)).map_err(|e| e.to_string())
    };
    let right = font(size).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, name) in (0..).zip(&map.rows) {
        draw(short(name), (LEFT - 6, ABOVE + row * cell + cell / 2), right.clone())?;
    }
    // Turned by a quarter, a name's end is above: it stands below the map.
    let turned = ("sans-serif", size).into_font().transform(FontTransform::Rotate90);
    let turned = turned.color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    for (column, name) in (0..).zip(&map.columns) {
        draw(short(name), (LEFT + column * cell + cell / 2, bottom + 6), turned.clone())?;
    }
    let middle = LEFT + whole(map.columns.len()) * cell / 2;
    let centred = |size| font(size).pos(Pos::new(HPos::Center, VPos::Center));
    draw(map.title.clone(), (middle, 20), centred(18))?;
    draw(map.x_label.clone(), (middle, bottom + BELOW - 14), centred(15))?;
    let up = ("sans-serif", 15).into_font().transform(FontTransform::Rotate270);
    let up = up.color(&BLACK).pos(Pos::new(HPos::Center, VPos::Center));
    draw(map.y_label.clone(), (16, (ABOVE + bottom) / 2), up)
}

/// A metric over the slices of a comparison (bands of popularity), a series an arm, with intervals: the long tail, arm by
/// arm. Slices without targets have no point.
///
/// # Errors
/// No slice with targets, what the library refuses.
pub fn by_slice(
    comparison: &IntentComparison,
    slices: &[String],
    metric: IntentMetric,
    title: &str,
) -> Result<String, Error> {
    let named = slices.iter().filter_map(|n| comparison.slices.iter().find(|s| s.slice == *n));
    let shown: Vec<_> = named.collect();
    let mut series: Vec<Series> = Vec::new();
    for (tick, slice) in shown.iter().enumerate() {
        for row in slice.rows.iter().filter(|row| row.metric == metric) {
            let estimate = row.over_samples;
            let (lo, hi) = (estimate.interval.lo, estimate.interval.hi);
            let point = Point { tick, value: estimate.value, lo, hi };
            match series.iter_mut().find(|s| s.name == row.arm) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name: row.arm.clone(), points: vec![point] }),
            }
        }
    }
    svg(&Chart {
        title: title.to_owned(),
        x_label: "intents by place in popularity".to_owned(),
        y_label: metric.name().to_owned(),
        legend: "arm".to_owned(),
        ticks: shown.iter().map(|s| s.slice.clone()).collect(),
        series,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Bootstrap;
    use crate::eval::intents::{
        IntentArm, IntentOptions, Outcome, UserOutcomes, compare, popularity_slices,
    };
    use crate::ids::UserId;

    fn map(rows: usize, columns: usize) -> HeatMap {
        let names = |what: &str, count: usize| (0..count).map(|i| format!("{what}{i}")).collect();
        let shares = (0..rows * columns).map(|i| (i % 11) as f64 / 10.0).collect();
        let [title, x_label, y_label] = ["t", "answered", "came"].map(str::to_owned);
        HeatMap {
            title,
            x_label,
            y_label,
            columns: names("c", columns),
            rows: names("r", rows),
            shares,
        }
    }

    #[test]
    fn a_map_has_a_square_a_cell_and_its_texts() {
        let text = heat_map(&map(3, 4)).unwrap();
        // Background, cells, frame, scale.
        assert_eq!(text.matches("<rect").count(), 1 + 12 + 1 + 20);
        for part in
            ["\nr0\n", "\nc3\n", "\nanswered\n", "\ncame\n", "\n.30\n", "\n1.00\n", "</svg>"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert_eq!(text, heat_map(&map(3, 4)).unwrap());
        // Small cells have no numbers; the largest map is still a picture.
        assert!(!heat_map(&map(60, 60)).unwrap().contains("\n.30\n"));
        assert!(heat_map(&map(256, 256)).is_ok());
        assert_eq!((shade(0.0), shade(1.0)), (RGBColor(255, 255, 255), RGBColor(0, 114, 178)));
    }

    #[test]
    fn hostile_maps_are_refused_or_harmless() {
        let mut hostile = map(1, 1);
        hostile.rows[0] = "<x>&".to_owned();
        hostile.title = "]]><script>".to_owned();
        let text = heat_map(&hostile).unwrap();
        assert!(!text.contains("<x>") && !text.contains("<script>"));
        assert!(heat_map(&map(0, 3)).is_err() && heat_map(&map(3, 0)).is_err());
        assert!(heat_map(&map(257, 1)).is_err());
        for bad in [f64::NAN, -0.1, 1.1] {
            let mut one = map(1, 1);
            one.shares[0] = bad;
            assert!(heat_map(&one).is_err(), "{bad}");
        }
        let mut short = map(2, 2);
        short.shares.pop();
        assert!(heat_map(&short).is_err());
    }

    #[test]
    fn the_long_tail_has_a_series_an_arm() {
        let outcome = |target, answer| Outcome { target, gold: 0, answer, rank: answer + 1 };
        let arm = |name: &str, answer| IntentArm {
            name: name.to_owned(),
            users: vec![UserOutcomes {
                user: UserId::new("u"),
                outcomes: vec![outcome(1, answer)],
            }],
        };
        let slices = popularity_slices(&[3, 2, 1, 1], 2);
        let names: Vec<String> = slices.iter().map(|s| s.name.clone()).collect();
        let bootstrap = Bootstrap { replicates: 20, ..Bootstrap::default() };
        let options = IntentOptions { intents: 4, slices, references: vec![], bootstrap };
        let done = compare(&[arm("first", 0), arm("second", 1)], &options).unwrap();
        let text = by_slice(&done, &names, IntentMetric::RecM, "long tail").unwrap();
        for part in ["first", "second", "\n1-2\n", "\n3-4\n", "Rec_m", "long tail"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(by_slice(&done, &names[1..], IntentMetric::RecM, "t").is_err());
        assert!(by_slice(&done, &[], IntentMetric::RecM, "t").is_err());
    }
}
