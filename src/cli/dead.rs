//! `outrigger dead list|show|retry|discard`

use std::process::ExitCode as Code;

use serde_json::{Value, json};

use super::{
    access::Access,
    args::check_patterns,
    ids::{Of, resolve},
    queue::{age, item},
    show,
};
use crate::{
    agent::is_replicated,
    cli::args::{DiscardArgs, ItemArgs, ListArgs, RetryArgs},
    config::Config,
    observe::report::{ExitCode, Failure},
    queue::{body_json, dead_letter::DeadLetterSummary},
};

pub fn list(config: &Config, args: &ListArgs) -> Result<Code, Failure> {
    let (letters, total) = match Access::open(config)? {
        Access::Agent(client) => {
            let answer = client.get(&format!("/api/dead-letters?limit={}", args.limit))?;
            (answer["deadLetters"].clone(), show::number(&answer["total"]))
        }
        Access::Queue(queue) => (json!(queue.dead_letters(args.limit)?), queue.dead_letters_len()),
    };
    if args.output.json {
        show::json(&letters);
        return Ok(Code::SUCCESS);
    }
    let rows: Vec<_> = letters.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        show::line("no dead letters");
    } else {
        show::table(&["ID", "TYPE", "COLLECTION", "DOCUMENT", "SINCE", "REASON"], &rows);
        show::line("");
        let more = total.saturating_sub(rows.len() as u64);
        if more > 0 {
            show::line(format!("{more} more; `--limit {total}` shows all {total}"));
        }
        show::line(
            "try one again with `outrigger dead retry ID`, or `--all`; give it up with `outrigger dead discard ID`",
        );
    }
    Ok(Code::SUCCESS)
}

fn row(letter: &Value) -> Vec<String> {
    let text = |key: &str| letter[key].as_str().unwrap_or("").to_owned();
    vec![
        text("id"),
        text("type"),
        text("collection"),
        letter["documentId"].to_string(),
        age(show::number(&letter["diedMs"])),
        text("reason"),
    ]
}

pub fn show(config: &Config, args: &ItemArgs) -> Result<Code, Failure> {
    let (access, id) = resolve(config, Of::Dead, &args.id)?;
    let letter = match access {
        Access::Agent(client) => client.get(&format!("/api/dead-letters/{id}"))?,
        Access::Queue(queue) => {
            let letter = queue.dead_letter(id)?;
            let mut value = json!(DeadLetterSummary::from(&letter));
            value["data"] = body_json(&letter.entry.work);
            value
        }
    };
    item(&letter, args.output);
    Ok(Code::SUCCESS)
}

pub fn retry(config: &Config, args: &RetryArgs) -> Result<Code, Failure> {
    let Some(id) = &args.id else {
        return retry_several(config, args);
    };
    let (access, id) = resolve(config, Of::DeadToRetry, id)?;
    match access {
        Access::Agent(client) => {
            let client = client.because(&args.why);
            client.post(&format!("/api/dead-letters/{id}/retry"), &Value::Null)?;
        }
        Access::Queue(queue) => {
            queue.retry_dead_letter(id, &is_replicated(config)?)?;
            queue.flush()?;
        }
    }
    show::result(args.output, &json!({ "id": id, "queued": 1 }), "queued again");
    Ok(Code::SUCCESS)
}

fn retry_several(config: &Config, args: &RetryArgs) -> Result<Code, Failure> {
    let scope = check_patterns(&args.ns)?;
    let answer = match Access::open(config)? {
        Access::Agent(client) => {
            // Each is a write of its own to the queue.
            let client = client.patient(std::time::Duration::from_secs(90)).because(&args.why);
            client.post("/api/dead-letters/retry", &json!({ "namespaces": args.ns }))?
        }
        Access::Queue(queue) => {
            let retried =
                queue.retry_dead_letters(&|ns| scope.matches(ns), &is_replicated(config)?)?;
            queue.flush()?;
            json!(retried)
        }
    };
    let (queued, not) = (show::number(&answer["queued"]), show::number(&answer["notRetried"]));
    let left_out = show::number(&answer["leftOut"]);
    if queued + not + left_out == 0 && !args.ns.is_empty() {
        let error = anyhow::anyhow!("no dead letter is of {}", args.ns.join(", "));
        return Err(Failure::new(ExitCode::Problem, error)
            .hint("`outrigger dead list` shows what there is"));
    }
    let text = match queued {
        1 => "1 document is queued again".to_owned(),
        n => format!("{n} documents are queued again"),
    };
    let left = "are not repeated out of their order (`outrigger dead discard ID`)";
    let text = if not > 0 { format!("{text}; {not} changes of schemas {left}") } else { text };
    let left = "of collections that are not replicated any more stay as they are";
    let text = if left_out > 0 { format!("{text}; {left_out} {left}") } else { text };
    show::result(args.output, &answer, text);
    Ok(Code::SUCCESS)
}

pub fn discard(config: &Config, args: &DiscardArgs) -> Result<Code, Failure> {
    let (access, id) = resolve(config, Of::Dead, &args.id)?;
    match access {
        Access::Agent(client) => {
            client.because(&args.why).delete(&format!("/api/dead-letters/{id}"))?;
        }
        Access::Queue(queue) => {
            queue.discard_dead_letter(id)?;
            queue.flush()?;
        }
    }
    let text = "discarded; the document differs in Atlas until it changes again";
    show::result(args.output, &json!({ "id": id, "discarded": true }), text);
    Ok(Code::SUCCESS)
}
