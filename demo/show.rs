//! What is to be seen while the application works: the agent's figures, a line for each second.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    agent::Agent,
    proxy::{Line, Proxy},
};

const BEFORE: Duration = Duration::from_secs(6);
const AWAY: Duration = Duration::from_secs(8);
const AFTER: Duration = Duration::from_secs(4);

pub fn say(text: &str) {
    println!("  {text}");
}

/// A table; its last column is the demo's own.
pub struct Table<'a, A> {
    pub agent: &'a Agent,
    pub changes: Arc<AtomicU64>,
    /// What stands in the last column; and how it is found out.
    pub last: &'static str,
    pub ask: A,
}

impl<A: AsyncFn() -> String> Table<'_, A> {
    /// All of it, with `line`, which leads to `what`, away in the middle. Returns how long it took to catch up.
    pub async fn watch_over_an_outage(&self, line: &Proxy, what: &str) -> Duration {
        self.header();
        self.watch(BEFORE, "").await;
        line.set(Line::Cut);
        self.watch_an_outage(AWAY, &format!("the line to {what} is cut")).await;
        line.set(Line::Up);
        let caught_up = self.time_to_catch_up().await;
        self.watch(AFTER, "the line is back").await;
        caught_up
    }

    fn header(&self) {
        println!(
            "  {:>7}  {:>8}  {:>7}  {:>8}  {:>9}{}",
            "changes", "written", "waiting", "lag", "breaker", self.last
        );
    }

    /// Lines for so long, the first of them with `note`.
    async fn watch(&self, time: Duration, note: &str) {
        let until = Instant::now() + time;
        let mut note = note;
        let pause = if std::io::stdout().is_terminal() { 500 } else { 1000 };
        while Instant::now() < until {
            self.line(std::mem::take(&mut note)).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// As [`watch`](Self::watch), and on until the breaker is open: on a machine that has much to do an outage is found
    /// out later.
    async fn watch_an_outage(&self, time: Duration, note: &str) {
        self.watch(time, note).await;
        let give_up = Instant::now() + Duration::from_secs(60);
        let is_open = || self.agent.health().is_some_and(|health| health["breaker"] == "open");
        while !is_open() && Instant::now() < give_up {
            self.watch(Duration::from_millis(1), "").await;
        }
        self.line("").await;
    }

    pub async fn line(&self, note: &str) {
        let (Some(health), Some(metrics)) = (self.agent.health(), metrics(self.agent)) else {
            return;
        };
        let arrow = if note.is_empty() { "" } else { "  <- " };
        println!(
            "  {:>7}  {:>8}  {:>7}  {:>8}  {:>9}{}{arrow}{note}",
            self.changes.load(Ordering::Relaxed),
            metrics["successfulSyncs"].to_string(),
            health["queueSize"].to_string(),
            health["syncLag"].as_str().unwrap_or("?"),
            health["breaker"].as_str().unwrap_or("?"),
            (self.ask)().await,
        );
        let _ = std::io::stdout().flush();
    }

    /// From now until the target is less than a second behind, while the application goes on.
    async fn time_to_catch_up(&self) -> Duration {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            let health = self.agent.health();
            if health.is_some_and(|health| health["syncLagMs"].as_u64() < Some(1_000)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        start.elapsed()
    }
}

/// Whether `verify` finds nothing, which it says.
pub fn verified(agent: &Agent) -> bool {
    say("outrigger verify");
    let verified = agent.cli(&["verify"]);
    for line in String::from_utf8_lossy(&verified.stdout).lines() {
        println!("    {line}");
    }
    println!();
    verified.status.success()
}

/// The last line: that everything is `equal`, or what is not.
pub fn conclude(left: &[String], equal: &str) {
    match left {
        [] => println!("\n  {equal}\n"),
        [first, ..] => println!("\n  {} DIFFERENCES, the first:\n{first}\n", left.len()),
    }
}

pub fn metrics(agent: &Agent) -> Option<Value> {
    let url = format!("http://127.0.0.1:{}/api/sync/metrics", agent.admin_port);
    serde_json::from_str(&ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?).ok()
}

/// What it came to, of so many changes and what both sides hold now.
pub fn summary(agent: &Agent, changes: u64, holds: &str, caught_up: Duration) {
    let Some(metrics) = metrics(agent) else { return };
    let written = metrics["successfulSyncs"].as_u64().unwrap_or(0);
    let share = 100.0 * written as f64 / changes.max(1) as f64;
    println!();
    println!("  {holds}");
    println!("  changes the application made {changes}");
    println!("  writes sent after coalescing {written} ({share:.0} %)");
    println!(
        "  lag now                      {}",
        agent.health().map_or_else(String::new, |h| h["syncLag"].as_str().unwrap_or("").to_owned())
    );
    println!(
        "  time to catch up             {:.1} s (until less than a second behind)",
        caught_up.as_secs_f64()
    );
    println!("  dead letters                 {}", metrics["queue"]["deadLetters"]);
}
