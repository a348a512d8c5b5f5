//! The runbook: a page for each alert, which says what it means and what to do. Each alert names the address of its
//! page. The pages are in the program, so that they are of its version, and there without a network.
//!
//! They are those of the book (`docs/alerts/`); `tests/operating/book.rs` keeps alerts and pages equal.

use std::net::SocketAddr;

use crate::config::Config;

/// Where an address names the alert.
pub const PLACE: &str = "{alert}";

/// Alert, page.
const PAGES: [(&str, &str); 20] = [
    ("atlas_denied", include_str!("../../docs/alerts/atlas_denied.md")),
    ("atlas_silent", include_str!("../../docs/alerts/atlas_silent.md")),
    ("dead_letters", include_str!("../../docs/alerts/dead_letters.md")),
    ("divergence", include_str!("../../docs/alerts/divergence.md")),
    ("error_rate", include_str!("../../docs/alerts/error_rate.md")),
    ("expires_in_atlas", include_str!("../../docs/alerts/expires_in_atlas.md")),
    ("failed", include_str!("../../docs/alerts/failed.md")),
    ("lag", include_str!("../../docs/alerts/lag.md")),
    ("local_delayed", include_str!("../../docs/alerts/local_delayed.md")),
    ("local_denied", include_str!("../../docs/alerts/local_denied.md")),
    ("local_silent", include_str!("../../docs/alerts/local_silent.md")),
    ("mass_delete", include_str!("../../docs/alerts/mass_delete.md")),
    ("no_majority", include_str!("../../docs/alerts/no_majority.md")),
    ("not_ours", include_str!("../../docs/alerts/not_ours.md")),
    ("oplog_window", include_str!("../../docs/alerts/oplog_window.md")),
    ("ownership", include_str!("../../docs/alerts/ownership.md")),
    ("put_back", include_str!("../../docs/alerts/put_back.md")),
    ("queue_size", include_str!("../../docs/alerts/queue_size.md")),
    ("reading_stopped", include_str!("../../docs/alerts/reading_stopped.md")),
    ("unshowable", include_str!("../../docs/alerts/unshowable.md")),
];

/// What to do at night, whatever it is: the state, and the table of all alerts.
pub const NIGHT: &str = include_str!("../../docs/operate.md");

/// The page of `alert`, as Markdown.
pub fn page(alert: &str) -> Option<&'static str> {
    PAGES.iter().find(|(name, _)| *name == alert).map(|(_, page)| *page)
}

/// The alerts that have a page.
pub fn alerts() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(name, _)| *name)
}

/// Where the pages are found: an address that holds [`PLACE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runbook(String);

impl Runbook {
    /// As configured, or at the agent itself.
    pub fn of(config: &Config) -> Self {
        Self(config.alerts.runbook.clone().unwrap_or_else(|| own(config.admin.listen)))
    }

    pub fn address(&self, alert: &str) -> String {
        self.0.replace(PLACE, alert)
    }
}

/// Behind the agent's own address, of whichever agent it is.
impl Default for Runbook {
    fn default() -> Self {
        Self(format!("/runbook/{PLACE}"))
    }
}

/// An agent that listens on every address is reached by its machine's name.
fn own(listen: SocketAddr) -> String {
    let path = Runbook::default().0;
    if !listen.ip().is_unspecified() {
        return format!("http://{listen}{path}");
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("http://{host}:{}{path}", listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_leads_to_the_agent_itself_or_to_where_its_people_keep_the_pages() {
        let mut config = Config::default();
        assert_eq!(Runbook::of(&config).address("lag"), "http://127.0.0.1:8686/runbook/lag");
        config.admin.listen = ([0, 0, 0, 0], 8686).into();
        let everywhere = Runbook::of(&config).address("lag");
        assert!(everywhere.ends_with(":8686/runbook/lag") && !everywhere.contains("0.0.0.0"));
        config.alerts.runbook = Some("https://wiki.example.com/alerts/{alert}.html".to_owned());
        assert_eq!(Runbook::of(&config).address("lag"), "https://wiki.example.com/alerts/lag.html");
    }
}
