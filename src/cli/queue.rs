//! `outrigger queue stats|list|show`

use std::{process::ExitCode as Code, time::Duration};

use serde_json::{Value, json};

use super::{
    access::Access,
    ids::{Of, resolve},
    show,
};
use crate::{
    cli::args::{ItemArgs, ListArgs, Output},
    config::{Config, units},
    observe::report::Failure,
    queue::{EntrySummary, body_json},
    runtime::clock::{now_ms, rfc3339},
};

pub fn stats(config: &Config, output: Output) -> Result<Code, Failure> {
    let stats = match Access::open(config)? {
        Access::Agent(client) => client.get("/api/queue?limit=0")?["stats"].clone(),
        Access::Queue(queue) => json!(queue.stats()?),
    };
    if output.json {
        show::json(&stats);
    } else {
        let size = |key: &str| units::show_bytes(show::number(&stats[key]));
        let pending = show::many(show::number(&stats["pending"]), "document");
        let row = |name: &str, value: String| show::line(format!("{name:<19}  {value}"));
        row("pending", format!("{pending}, {}", size("pendingBytes")));
        row("in flight", stats["leased"].to_string());
        row("waiting for a retry", stats["delayed"].to_string());
        row("dead letters", stats["deadLetters"].to_string());
        if let Some(oldest) = stats["oldestMs"].as_u64() {
            row("oldest", age(oldest));
        }
        row("on disk", size("diskBytes"));
    }
    Ok(Code::SUCCESS)
}

/// `3s ago` for a time in milliseconds since 1970.
pub fn age(ms: u64) -> String {
    let seconds = now_ms().saturating_sub(ms) / 1000;
    format!("{} ago", units::show_duration(Duration::from_secs(seconds)))
}

pub fn list(config: &Config, args: &ListArgs) -> Result<Code, Failure> {
    let operations = match Access::open(config)? {
        Access::Agent(client) => {
            client.get(&format!("/api/queue?limit={}", args.limit))?["operations"].clone()
        }
        Access::Queue(queue) => {
            json!(queue.list(args.limit)?)
        }
    };
    if args.output.json {
        show::json(&operations);
        return Ok(Code::SUCCESS);
    }
    let rows: Vec<_> = operations.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        show::line("nothing waits");
    } else {
        show::table(
            &["ID", "TYPE", "COLLECTION", "DOCUMENT", "CHANGES", "RETRIES", "SINCE"],
            &rows,
        );
    }
    Ok(Code::SUCCESS)
}

fn row(op: &Value) -> Vec<String> {
    let text = |key: &str| op[key].as_str().unwrap_or("").to_owned();
    vec![
        text("id"),
        text("type"),
        text("collection"),
        op["documentId"].to_string(),
        op["changes"].to_string(),
        op["retryCount"].to_string(),
        age(show::number(&op["timestamp"])),
    ]
}

pub fn show(config: &Config, args: &ItemArgs) -> Result<Code, Failure> {
    let (access, id) = resolve(config, Of::Queue, &args.id)?;
    let entry = match access {
        Access::Agent(client) => client.get(&format!("/api/queue/{id}"))?,
        Access::Queue(queue) => {
            let entry = queue.show(id)?;
            let mut value = json!(EntrySummary::from(&entry));
            value["data"] = body_json(&entry.work);
            value
        }
    };
    item(&entry, args.output);
    Ok(Code::SUCCESS)
}

/// Prints one entry or dead letter.
pub fn item(entry: &Value, output: Output) {
    if output.json {
        show::json(entry);
        return;
    }
    for (key, value) in entry.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => show::line(format!("{key:<12} {text}")),
            // For programs it is a number of milliseconds.
            Value::Number(ms) if key.ends_with("Ms") || key == "timestamp" => {
                let (name, ms) = (key.trim_end_matches("Ms"), ms.as_u64().unwrap_or_default());
                show::line(format!("{name:<12} {} ({})", rfc3339(ms).unwrap_or_default(), age(ms)));
            }
            Value::Object(_) => {
                show::line(format!("{key}:"));
                show::json(value);
            }
            other => show::line(format!("{key:<12} {other}")),
        }
    }
}
