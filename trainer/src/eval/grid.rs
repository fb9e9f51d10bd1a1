//! Aligned Markdown tables.

/// A table of texts; the first `left` columns to the left, the others to the right.
#[derive(Debug, Clone)]
pub struct Grid {
    head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    left: usize,
}

impl Grid {
    /// An empty table with these heads.
    pub fn new(head: &[&str], left: usize) -> Self {
        Self { head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new(), left }
    }

    /// Adds a row; what would break the table (bars, line ends) is replaced.
    pub fn push(&mut self, row: Vec<String>) {
        let clean = |cell: String| cell.replace('|', "\\|").replace(|c: char| c.is_control(), " ");
        self.rows.push(row.into_iter().map(clean).collect());
    }

    /// Aligned Markdown.
    pub fn render(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|c| all().map(|row| row[c].chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let padded = cells.map(|(c, (cell, width))| {
                let gap = " ".repeat(width - cell.chars().count());
                if c < self.left { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            });
            format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
        };
        let rule = widths.iter().enumerate().map(|(c, width)| {
            let dashes = "-".repeat(width - 1);
            if c < self.left { format!("{dashes}-") } else { format!("{dashes}:") }
        });
        let rule = format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
        let mut text = line(&self.head) + &rule;
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_align_and_survive_hostile_cells() {
        let mut grid = Grid::new(&["arm", "n"], 1);
        grid.push(vec!["é|x\ny".to_owned(), "12345".to_owned()]);
        let expected = "| arm    |     n |\n| ------ | ----: |\n| é\\|x y | 12345 |\n";
        assert_eq!(grid.render(), expected);
    }
}
