//! `outrigger doc NS ID`

use std::process::ExitCode as Code;

use serde_json::{Value, json};

use super::{access::Access, show};
use crate::{
    agent::{TargetEnd, source_side},
    cli::args::DocArgs,
    config::{Config, TargetKind, encoded},
    model::document_key::DocumentKey,
    observe::report::{ExitCode, Failure},
    sync::document::{look_up, not_replicated},
};

/// Exit code 0 for SYNCED and PENDING, 1 for FAILED and for a document that neither side has.
pub async fn run(config: &Config, args: &DocArgs) -> Result<Code, Failure> {
    let report = match Access::open(config)? {
        Access::Agent(client) => {
            let id = encoded(&args.id);
            // Two sides may have to be looked at for some seconds.
            let client = client.patient(std::time::Duration::from_secs(90));
            client.get(&format!("/api/documents/{}/{id}", encoded(args.ns.as_str())))?
        }
        Access::Queue(queue) => {
            let queue: std::sync::Arc<_> = queue.into();
            let filter = config.filter()?;
            if let Some((reason, hint)) = not_replicated(&filter, &args.ns) {
                let failure = Failure::new(ExitCode::Problem, anyhow::anyhow!(reason));
                return Err(if let Some(hint) = hint { failure.hint(hint) } else { failure });
            }
            let local = source_side(config).await?;
            let atlas = TargetEnd::connect(config).await?.end().side;
            let mut found = None;
            for key in DocumentKey::meant_by(&args.id) {
                let report = look_up(&queue, None, &*local, &*atlas, &args.ns, &key).await?;
                if report.in_local != Some(false) || report.in_atlas != Some(false) {
                    found = Some(json!(report));
                    break;
                }
            }
            found.ok_or_else(|| {
                let error = anyhow::anyhow!("neither side has such a document");
                Failure::new(ExitCode::Problem, error)
                    .hint("an `_id` is extended JSON: 42, '\"abc\"', '{\"$oid\": \"…\"}'")
            })?
        }
    };
    if args.output.json {
        show::json(&report);
    } else {
        print(&report, config.target.kind);
    }
    Ok(if report["state"] == "FAILED" { Code::FAILURE } else { Code::SUCCESS })
}

fn print(report: &Value, target: TargetKind) {
    let text = |key: &str| report[key].as_str();
    let state = text("state").unwrap_or("unknown");
    show::line(format!(
        "document   {} of {}",
        report["documentId"],
        text("collection").unwrap_or("")
    ));
    show::line(format!(
        "state      {}",
        match state {
            "SYNCED" => show::good(state),
            "PENDING" => show::soso(state),
            _ => show::bad(state),
        }
    ));
    if let Some(error) = text("error") {
        show::line(format!("error      {error}"));
    }
    if let Some(next) = text("next") {
        show::line(format!("next       {next}"));
    }
    if let Some(since) = text("since") {
        show::line(format!("since      {since}"));
    }
    show::line(format!("last sync  {}", text("lastSync").unwrap_or("not remembered")));
    let side = |key: &str| match report[key].as_bool() {
        Some(true) => "has it",
        Some(false) => "does not have it",
        None => "was not asked",
    };
    show::line(format!("local      {}", side("inLocal")));
    let target = match target {
        TargetKind::Atlas => "atlas",
        TargetKind::Postgres => "postgres",
    };
    show::line(format!("{target:<10} {}", side("inAtlas")));
}
