//! The table of results, on the terminal and in `RESULTS.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One measurement against its floor and its target.
#[derive(Debug, Serialize, Deserialize)]
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

    /// A measurement that gave no figure.
    pub fn failed(what: &str, why: &str) -> Self {
        Self {
            met: Some(false),
            ..Self::context(what, why.replace('|', "/").replace('\n', " "))
        }
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
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where and when it began.
    machine: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// Goes on with what a measurement before this one kept in the file `kept`, where there is one.
    pub fn resume(kept: Option<&Path>, machine: String) -> Result<Self> {
        let Some(kept) = kept.filter(|kept| kept.exists()) else {
            return Ok(Self {
                machine,
                ..Self::default()
            });
        };
        let text = fs::read_to_string(kept)?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", kept.display()))
    }

    /// Keeps it for the measurement after this one.
    pub fn keep(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec(self)?)?;
        Ok(())
    }

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
    pub fn write(&self, path: &Path, head: &str) -> Result<()> {
        let mut text = head.replace("@MACHINE@", &self.machine);
        text.push_str(&self.table());
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        fs::write(path, text)?;
        Ok(())
    }
}
