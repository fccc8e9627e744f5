//! What was measured, for people and for programs, and whether it is enough.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::rows::Limit;

/// One line of the outcome.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The row's name, or one that begins with it.
    pub(crate) work: String,
    /// For people.
    pub(crate) about: String,
    /// The unit of `figure` and `reference`.
    pub(crate) unit: &'static str,
    /// What it must reach.
    pub(crate) limit: Limit,
    /// What came of it.
    pub(crate) outcome: Result<Outcome, Absent>,
}

/// Why a line has no figure.
#[derive(Clone, Debug)]
pub(crate) enum Absent {
    /// An answer was wrong, or there was none.
    Wrong(String),
    /// This machine lacks what the row needs. A row that was skipped has not passed.
    Skipped(String),
}

impl Absent {
    fn reason(&self) -> &String {
        let (Self::Wrong(reason) | Self::Skipped(reason)) = self;
        reason
    }
}

impl From<String> for Absent {
    fn from(wrong: String) -> Self {
        Self::Wrong(wrong)
    }
}

impl From<anyhow::Error> for Absent {
    fn from(wrong: anyhow::Error) -> Self {
        Self::Wrong(format!("{wrong:#}"))
    }
}

/// The figures of a line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The product's.
    pub(crate) figure: f64,
    /// The floor's, in the same unit.
    pub(crate) floor: Option<f64>,
    /// The product's share of its reference, the median of the rounds.
    pub(crate) ratio: Option<f64>,
    /// The product's latencies: half of the calls, and all but one of a hundred.
    pub(crate) latency: Option<(Duration, Duration)>,
    /// What else a reader should know.
    pub(crate) note: String,
}

impl Line {
    /// Whether the row is right and reaches its limit.
    pub(crate) fn passes(&self) -> bool {
        let Ok(outcome) = &self.outcome else { return false };
        match self.limit {
            Limit::Share(least) => outcome.ratio.is_some_and(|ratio| ratio >= least),
            Limit::Times(most) => outcome.ratio.is_some_and(|ratio| ratio <= most),
            Limit::AtMost(most) => outcome.figure <= most,
            Limit::AtLeast(least) => outcome.figure >= least,
            Limit::None => true,
        }
    }

    fn verdict(&self) -> &'static str {
        match (&self.outcome, self.limit) {
            (Err(Absent::Wrong(_)), _) => "wrong",
            (Err(Absent::Skipped(_)), _) => "skipped",
            (Ok(_), Limit::None) => "-",
            (Ok(_), _) if self.passes() => "pass",
            (Ok(_), _) => "under",
        }
    }

    fn limit_for_people(&self) -> String {
        match self.limit {
            Limit::Share(least) => format!(">= {least}"),
            Limit::Times(most) => format!("<= {most}"),
            Limit::AtMost(most) => format!("<= {most} {}", self.unit),
            Limit::AtLeast(least) => format!(">= {least}"),
            Limit::None => String::new(),
        }
    }

    fn json(&self) -> serde_json::Value {
        let limit = match self.limit {
            Limit::Share(limit) | Limit::Times(limit) | Limit::AtMost(limit) | Limit::AtLeast(limit) => Some(limit),
            Limit::None => None,
        };
        let outcome = self.outcome.as_ref().ok();
        let latency = outcome.and_then(|outcome| outcome.latency);
        json!({
            "work": self.work,
            "figure": outcome.map(|outcome| outcome.figure),
            "unit": self.unit,
            "limit": limit,
            "ratio": outcome.and_then(|outcome| outcome.ratio),
            "floor": outcome.and_then(|outcome| outcome.floor),
            "p50_ms": latency.map(|(p50, _)| p50.as_secs_f64() * 1e3),
            "p99_ms": latency.map(|(_, p99)| p99.as_secs_f64() * 1e3),
            "verdict": self.verdict(),
            "detail": match &self.outcome {
                Ok(outcome) => &outcome.note,
                Err(absent) => absent.reason(),
            },
        })
    }
}

/// Prints the table.
#[expect(clippy::print_stdout, reason = "the table is what the command is for")]
pub(crate) fn print(lines: &[Line]) {
    println!("{}", table(lines));
}

fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<22} {:<54} {:>9} {:>9} {:>8} {:>6} {:>10} {:>8} {:>8}  verdict",
        "row", "work", "product", "floor", "unit", "ratio", "limit", "p50 ms", "p99 ms"
    );
    for line in lines {
        let (outcome, absent) = match &line.outcome {
            Ok(outcome) => (outcome.clone(), None),
            Err(absent) => (Outcome { figure: f64::NAN, ..Outcome::default() }, Some(absent)),
        };
        let milliseconds = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
        let _ = write!(
            text,
            "\n{:<22} {:<54} {:>9} {:>9} {:>8} {:>6} {:>10} {:>8} {:>8}  {}",
            line.work,
            line.about,
            number(Some(outcome.figure)),
            number(outcome.floor),
            line.unit,
            outcome.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            line.limit_for_people(),
            outcome.latency.map(|(p50, _)| milliseconds(p50)).unwrap_or_default(),
            outcome.latency.map(|(_, p99)| milliseconds(p99)).unwrap_or_default(),
            line.verdict()
        );
        let note = absent.map_or(&outcome.note, Absent::reason);
        if !note.is_empty() {
            let _ = write!(text, "\n    {note}");
        }
    }
    text
}

fn number(figure: Option<f64>) -> String {
    match figure {
        Some(figure) if figure.is_nan() => "-".into(),
        Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
        Some(figure) => format!("{figure:.3}"),
        None => String::new(),
    }
}

/// Writes one JSON object a line.
pub(crate) fn write_json(path: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let text: String = lines.iter().map(|line| format!("{}\n", line.json())).collect();
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(limit: Limit, outcome: Result<Outcome, Absent>) -> Line {
        Line { work: "mix".into(), about: "a mix".into(), unit: "/s", limit, outcome }
    }

    fn figures(figure: f64, ratio: Option<f64>) -> Result<Outcome, Absent> {
        Ok(Outcome { figure, ratio, ..Outcome::default() })
    }

    #[test]
    fn a_row_passes_when_it_reaches_its_limit_and_every_answer_was_right() {
        assert!(line(Limit::Share(0.6), figures(10.0, Some(0.6))).passes());
        assert!(!line(Limit::Share(0.6), figures(10.0, Some(0.599))).passes());
        assert!(!line(Limit::Share(0.6), figures(10.0, None)).passes());
        assert!(line(Limit::Times(1.25), figures(10.0, Some(1.25))).passes());
        assert!(!line(Limit::Times(1.25), figures(10.0, Some(1.26))).passes());
        assert!(!line(Limit::Times(1.25), figures(10.0, None)).passes());
        assert!(line(Limit::AtMost(4.0), figures(4.0, None)).passes());
        assert!(!line(Limit::AtMost(4.0), figures(4.1, None)).passes());
        assert!(line(Limit::AtLeast(4.0), figures(4.0, None)).passes());
        assert!(!line(Limit::AtLeast(4.0), figures(3.9, None)).passes());
        assert!(line(Limit::None, figures(4.1, None)).passes());
        assert!(!line(Limit::None, Err(Absent::Wrong("wrong bytes".into()))).passes());
    }

    #[test]
    fn the_json_line_has_the_agreed_fields() {
        let good = line(Limit::Share(0.6), figures(10.0, Some(0.7))).json();
        assert_eq!(good["work"], "mix");
        assert_eq!(good["figure"], 10.0);
        assert_eq!(good["unit"], "/s");
        assert_eq!(good["limit"], 0.6);
        assert_eq!(good["ratio"], 0.7);
        assert_eq!(good["verdict"], "pass");
        let bad = line(Limit::AtMost(4.0), Err(Absent::Wrong("wrong bytes".into()))).json();
        assert_eq!((&bad["verdict"], &bad["detail"]), (&"wrong".into(), &"wrong bytes".into()));
        assert!(bad["figure"].is_null());
    }

    #[test]
    fn a_row_that_was_skipped_says_so_and_has_not_passed() {
        let skipped = line(Limit::None, Err(Absent::Skipped("no chroot".into())));
        assert!(!skipped.passes());
        assert_eq!((&skipped.json()["verdict"], &skipped.json()["detail"]), (&"skipped".into(), &"no chroot".into()));
        assert!(table(&[skipped]).ends_with("skipped\n    no chroot"));
    }

    #[test]
    fn the_table_names_what_was_wrong() {
        let text = table(&[line(Limit::Share(0.6), Err(Absent::Wrong("wrong bytes".into())))]);
        assert!(text.contains("wrong bytes") && text.contains(">= 0.6"), "{text}");
    }
}
