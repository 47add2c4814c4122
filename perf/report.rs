//! The table of results, on the terminal and in `RESULTS.md`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

/// One measurement against its floor and its target.
#[derive(Debug)]
pub struct Row {
    what: String,
    product: String,
    floor: String,
    figure: String,
    target: String,
    met: Option<bool>,
}

impl Row {
    /// A measurement that has no target.
    pub fn context(what: &str, product: String) -> Self {
        Self {
            what: what.to_owned(),
            product,
            floor: "–".to_owned(),
            figure: "–".to_owned(),
            target: "–".to_owned(),
            met: None,
        }
    }

    /// What it is compared with.
    pub fn floor(mut self, floor: String) -> Self {
        self.floor = floor;
        self
    }

    /// The figure that is compared, without a target.
    pub fn figure(mut self, figure: f64) -> Self {
        self.figure = format!("{figure:.2}");
        self
    }

    /// A figure that must not be larger than `most`.
    pub fn at_most(mut self, figure: f64, most: f64) -> Self {
        self.target = format!("≤ {most}");
        self.met = Some(figure <= most);
        self.figure(figure)
    }

    /// A figure that must not be smaller than `least`.
    pub fn at_least(mut self, figure: f64, least: f64) -> Self {
        self.target = format!("≥ {least}");
        self.met = Some(figure >= least);
        self.figure(figure)
    }

    fn cells(&self) -> [&str; 6] {
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        [
            &self.what,
            &self.product,
            &self.floor,
            &self.figure,
            &self.target,
            met,
        ]
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub fn row(&mut self, row: Row) {
        println!("{}", row.cells().join(" | "));
        self.rows.push(row);
    }

    /// Something that a reader of the table should know.
    pub fn note(&mut self, note: String) {
        println!("{note}");
        self.notes.push(note);
    }

    /// The table in Markdown.
    pub fn table(&self) -> String {
        let mut text =
            "| what | AgentHub | compared with | figure | target | met |\n|---|---|---|---|---|---|\n"
                .to_owned();
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.cells().join(" | "));
        }
        text
    }

    /// Whether every figure meets its target.
    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met != Some(false))
    }

    /// Writes the page, which begins with `head`.
    pub fn write(&self, path: &Path, head: &str, machine: &str) -> Result<()> {
        let mut text = head.replace("@MACHINE@", machine);
        text.push_str(&self.table());
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        std::fs::write(path, text)?;
        Ok(())
    }
}
