//! Progress bars on a terminal: one for all, one for each collection that is being worked on.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    config::units,
    observe::progress::{ProgressReport, ShareState},
};

/// How often whoever waits looks again.
pub const LOOK: Duration = Duration::from_millis(250);

/// Most bars of collections at the same time.
const BARS_MAX: usize = 8;

/// Draws on stderr, and only if that is a terminal.
pub struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: BTreeMap<String, ProgressBar>,
}

impl Bars {
    pub fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        total.set_style(style("{prefix:<28} {bar:24} {pos}/{len} documents  {msg}"));
        Self { all, total, running: BTreeMap::new() }
    }

    pub fn show(&mut self, report: &ProgressReport) {
        self.total.set_prefix(format!(
            "{} of {} collections",
            report.collections_done, report.collections
        ));
        self.total.set_length(report.documents);
        self.total.set_position(report.documents_done);
        self.total.set_message(pace(report));
        let running: BTreeMap<String, _> = report
            .namespaces
            .iter()
            .filter(|of| of.share.state == ShareState::Running)
            .take(BARS_MAX)
            .map(|of| (of.ns.to_string(), &of.share))
            .collect();
        self.running.retain(|ns, bar| {
            let stays = running.contains_key(ns);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (ns, share) in running {
            let bar = self.running.entry(ns.clone()).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(0));
                bar.set_style(style("  {prefix:<26} {bar:24} {pos}/{len}"));
                bar.set_prefix(ns);
                bar
            });
            bar.set_length(share.documents.max(share.documents_done));
            bar.set_position(share.documents_done);
        }
    }

    pub fn finish(self) {
        let _ = self.all.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Rate and time left, in words.
pub fn pace(report: &ProgressReport) -> String {
    let bytes = units::show_bytes(report.bytes_per_second as u64);
    let left = report.eta_seconds.map_or_else(String::new, |eta| {
        format!(", {} left", units::show_duration(Duration::from_secs(eta)))
    });
    format!("{} documents/s, {bytes}/s{left}", report.documents_per_second as u64)
}
