//! `outrigger flush`

use std::{process::ExitCode as Code, time::Duration};

use serde_json::json;

use super::{access::Client, show};
use crate::{
    cli::args::FlushArgs,
    config::Config,
    observe::report::{ExitCode, Failure},
};

/// Exit code 0 when Atlas has everything that was committed locally before the call, 1 when it has not.
pub fn run(config: &Config, args: &FlushArgs) -> Result<Code, Failure> {
    let Some(client) = Client::connect(config)? else {
        let error =
            anyhow::anyhow!("no agent runs on {}, so nothing is written", config.admin.listen);
        return Err(Failure::new(ExitCode::Problem, error).hint("start one with `outrigger run`"));
    };
    let timeout_ms = args.timeout.as_millis() as u64;
    // The agent answers in that time; some more for the way.
    let client = client.patient(args.timeout + Duration::from_secs(15));
    let answer = client
        .post("/api/sync/flush", &json!({ "timeoutMs": timeout_ms, "indexes": args.indexes }))?;
    let up_to = answer["upTo"].as_str().unwrap_or("now");
    // What was waited for is said: an index that is missing makes no document wrong, and a query slow.
    let indexes = match answer["indexesBuilding"].as_bool() {
        Some(true) => "; indexes are still being built (`--indexes` waits for them)",
        Some(false) if args.indexes => ", indexes included",
        _ => "",
    };
    show::result(args.output, &answer, format!("Atlas has everything up to {up_to}{indexes}"));
    Ok(Code::SUCCESS)
}
