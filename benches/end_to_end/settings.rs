//! What a person chooses of a run, from the environment.

use std::str::FromStr;

/// The choices of one run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All sizes are multiplied by it.
    pub scale: f64,
    pub runs: usize,
    /// Names of scenarios, or of groups of them; all without any.
    only: Vec<String>,
    /// How long each phase of the steady state lasts.
    pub seconds: u64,
    /// Depths of the queue in the growth scenario.
    pub growth: Vec<u64>,
    /// Writes per second in the steady state.
    pub rates: Vec<u64>,
}

impl Settings {
    pub fn from_env() -> Self {
        Self {
            scale: number("SCALE", 1.0),
            runs: number("RUNS", 3).max(1),
            only: list("ONLY"),
            seconds: number("SECONDS", 60).max(1),
            growth: numbers("GROWTH", &[100_000, 1_000_000, 10_000_000]),
            rates: numbers("RATES", &[100, 1_000, 5_000]),
        }
    }

    /// A size of the full suite, for this run: whole thousands, as the workloads come in.
    pub fn scaled(&self, full: u64) -> u64 {
        ((full as f64 * self.scale / 1_000.0).round() as u64).max(1) * 1_000
    }

    /// `catch-up` chooses `catch-up/inserts`, and all others of its group.
    pub fn chooses(&self, scenario: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|name| {
                scenario == name
                    || scenario
                        .strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    }

    /// Names that choose nothing: a misspelt one must not look like a run without faults.
    pub fn unknown(&self, scenarios: &[&str]) -> Vec<String> {
        let alone = |name: &String| Self { only: vec![name.clone()], ..self.clone() };
        let is_unknown =
            |name: &&String| !scenarios.iter().any(|scenario| alone(name).chooses(scenario));
        self.only.iter().filter(is_unknown).cloned().collect()
    }
}

fn text(name: &str) -> Option<String> {
    std::env::var(format!("OUTRIGGER_BENCH_{name}")).ok().filter(|text| !text.is_empty())
}

/// # Panics
/// At what is no number: a run with other sizes than those asked for would mislead.
fn parse<T: FromStr>(name: &str, text: &str) -> T {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("OUTRIGGER_BENCH_{name}: `{text}` is not a number"))
}

fn number<T: FromStr>(name: &str, default: T) -> T {
    text(name).map_or(default, |text| parse(name, &text))
}

fn list(name: &str) -> Vec<String> {
    let text = text(name).unwrap_or_default();
    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn numbers(name: &str, default: &[u64]) -> Vec<u64> {
    let chosen = list(name);
    if chosen.is_empty() {
        return default.to_vec();
    }
    chosen.iter().map(|part| parse(name, part)).collect()
}
