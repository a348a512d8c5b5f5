//! `outrigger dead list|show`

use std::process::ExitCode as Code;

use serde_json::{Value, json};

use super::{
    access::Access,
    queue::{age, item},
    show,
};
use crate::{
    cli::args::{ItemArgs, ListArgs},
    config::Config,
    observe::report::Failure,
    queue::{body_json, dead_letter::DeadLetterSummary},
};

pub fn list(config: &Config, args: &ListArgs) -> Result<Code, Failure> {
    let letters = match Access::open(config)? {
        Access::Agent(client) => {
            client.get(&format!("/api/dead-letters?limit={}", args.limit))?["deadLetters"].clone()
        }
        Access::Queue(queue) => json!(queue.dead_letters(args.limit)?),
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
        show::line(
            "try one again with `outrigger dead retry ID`, give it up with `outrigger dead discard ID`",
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
    let letter = match Access::open(config)? {
        Access::Agent(client) => client.get(&format!("/api/dead-letters/{}", args.id))?,
        Access::Queue(queue) => {
            let letter = queue.dead_letter(args.id)?;
            let mut value = json!(DeadLetterSummary::from(&letter));
            value["data"] = body_json(&letter.entry.work);
            value
        }
    };
    item(&letter, args.output);
    Ok(Code::SUCCESS)
}
