//! What was found: figures of several runs, what each process took, and the marks.
//!
//! A scenario writes into its [`Notebook`], which keeps what was found so far even when the scenario fails. A mark
//! names a figure; its median decides. A mark without a figure counts as missed.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use serde::Serialize;

use crate::process::Usage;

/// The values of one figure, one of each run.
#[derive(Clone, Debug, Serialize)]
#[serde(into = "Summary")]
struct Values(Vec<f64>);

/// How values stand in JSON.
#[derive(Serialize)]
struct Summary {
    min: f64,
    median: f64,
    max: f64,
    runs: Vec<f64>,
}

impl From<Values> for Summary {
    fn from(values: Values) -> Self {
        let sorted = values.sorted();
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        Self { min, median: values.median(), max, runs: values.0 }
    }
}

impl Values {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    /// `min | median | max`, as cells of a table.
    fn cells(&self) -> String {
        let sorted = self.sorted();
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        format!("{} | {} | {}", show(min), show(self.median()), show(max))
    }
}

#[derive(Clone, Debug, Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    values: Values,
}

/// What one process took in one step.
#[derive(Clone, Debug, Serialize)]
struct Costs {
    step: String,
    process: &'static str,
    seconds: Values,
    cpu_seconds: Values,
    peak_mb: Values,
}

/// What a mark asks for.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Debug, Serialize)]
struct Mark {
    figure: String,
    target: Target,
    found: Option<f64>,
    met: bool,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Section {
    scenario: String,
    figures: Vec<Figure>,
    costs: Vec<Costs>,
    marks: Vec<Mark>,
    notes: Vec<String>,
    seconds: f64,
    /// Why it did not come to its end.
    error: Option<String>,
}

/// Where one scenario writes what it finds.
#[derive(Clone)]
pub struct Notebook(Arc<Mutex<Section>>);

impl Notebook {
    pub fn of(scenario: &str) -> Self {
        let section = Section { scenario: scenario.to_owned(), ..Section::default() };
        Self(Arc::new(Mutex::new(section)))
    }

    fn with(&self, change: impl FnOnce(&mut Section)) {
        // A scenario that panicked held it at no time.
        change(&mut self.0.lock().unwrap());
    }

    /// One more value of a figure.
    pub fn add(&self, name: &str, unit: &'static str, value: f64) {
        println!("  {name}: {} {unit}", show(value));
        self.with(|section| match section.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.0.push(value),
            None => section.figures.push(Figure {
                name: name.to_owned(),
                unit,
                values: Values(vec![value]),
            }),
        });
    }

    /// What each process took in a step.
    pub fn costs(&self, step: &str, usage: &Usage) {
        let seconds = usage.elapsed.as_secs_f64();
        self.with(|section| {
            for cost in &usage.costs {
                let known = section
                    .costs
                    .iter_mut()
                    .find(|known| known.step == step && known.process == cost.name);
                if let Some(known) = known {
                    known.seconds.0.push(seconds);
                    known.cpu_seconds.0.push(cost.cpu_seconds);
                    known.peak_mb.0.push(cost.peak_mb);
                } else {
                    section.costs.push(Costs {
                        step: step.to_owned(),
                        process: cost.name,
                        seconds: Values(vec![seconds]),
                        cpu_seconds: Values(vec![cost.cpu_seconds]),
                        peak_mb: Values(vec![cost.peak_mb]),
                    });
                }
            }
        });
    }

    /// The median of this figure is to be so. Said before it is measured, so that a scenario that fails shows its
    /// marks too.
    pub fn mark(&self, figure: &str, target: Target) {
        let mark = Mark { figure: figure.to_owned(), target, found: None, met: false };
        self.with(|section| section.marks.push(mark));
    }

    /// What a reader must know about the figures.
    pub fn note(&self, text: &str) {
        self.with(|section| section.notes.push(text.to_owned()));
    }

    /// The end of the scenario.
    pub fn close(&self, seconds: f64, error: Option<String>) {
        self.with(|section| {
            section.seconds = seconds;
            section.error = error;
            let figures = section.figures.clone();
            for mark in &mut section.marks {
                let figure = figures.iter().find(|figure| figure.name == mark.figure);
                mark.found = figure.map(|figure| figure.values.median());
                mark.met = mark.found.is_some_and(|found| match mark.target {
                    Target::AtLeast(least) => found >= least,
                    Target::AtMost(most) => found <= most,
                });
            }
        });
    }

    pub fn has_failed(&self) -> bool {
        self.0.lock().unwrap().error.is_some()
    }

    fn section(&self) -> Section {
        self.0.lock().unwrap().clone()
    }
}

/// Everything as JSON; `about` tells of the machine and the settings.
pub fn json(about: &serde_json::Value, notebooks: &[Notebook]) -> String {
    let sections: Vec<_> = notebooks.iter().map(Notebook::section).collect();
    let all = serde_json::json!({ "about": about, "scenarios": sections });
    serde_json::to_string_pretty(&all).expect("figures are JSON")
}

/// Everything as Markdown, the marks first.
pub fn markdown(about: &serde_json::Value, notebooks: &[Notebook]) -> String {
    let mut text = "# Outrigger beside the servers' own limits\n\n".to_owned();
    for (name, value) in about.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        let _ = writeln!(text, "- {name}: {value}");
    }
    let sections: Vec<_> = notebooks.iter().map(Notebook::section).collect();
    if sections.iter().any(|section| !section.marks.is_empty()) {
        text += "\n## Marks\n\n| scenario | figure | target | median | |\n| --- | --- | ---: | ---: | --- |\n";
        for section in &sections {
            for mark in &section.marks {
                let (sign, target) = match mark.target {
                    Target::AtLeast(target) => ("≥", target),
                    Target::AtMost(target) => ("≤", target),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {sign} {} | {} | {} |",
                    section.scenario,
                    mark.figure,
                    show(target),
                    mark.found.map_or_else(|| "not measured".to_owned(), show),
                    if mark.met { "met" } else { "**missed**" }
                );
            }
        }
    }
    for section in &sections {
        section.write(&mut text);
    }
    text
}

impl Section {
    fn write(&self, text: &mut String) {
        let _ = writeln!(text, "\n## {}\n\n{:.0} s in all.\n", self.scenario, self.seconds);
        if let Some(error) = &self.error {
            let _ = writeln!(text, "**It failed:** {error}\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}\n");
        }
        if !self.figures.is_empty() {
            *text += "| figure | unit | min | median | max |\n| --- | --- | ---: | ---: | ---: |\n";
        }
        for figure in &self.figures {
            let _ =
                writeln!(text, "| {} | {} | {} |", figure.name, figure.unit, figure.values.cells());
        }
        if !self.costs.is_empty() {
            *text += "\n| step | seconds | process | CPU s, min | median | max | peak RSS MB, min | median | max |\n";
            *text += "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";
        }
        for costs in &self.costs {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                costs.step,
                show(costs.seconds.median()),
                costs.process,
                costs.cpu_seconds.cells(),
                costs.peak_mb.cells()
            );
        }
    }
}

/// Three digits that count, and all of a large number.
pub fn show(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
