//! `outrigger alerts test`

use std::process::ExitCode as Code;

use super::show;
use crate::{
    agent::try_deliveries,
    cli::args::Output,
    config::Config,
    observe::report::{ExitCode, Failure},
};

/// Sends a test through each configured delivery. Exit code 0 when all took it.
pub fn test(config: &Config, output: Output) -> Result<Code, Failure> {
    let made = try_deliveries(&config.alerts);
    if made.is_empty() {
        let error =
            anyhow::anyhow!("nobody is told: neither a web hook nor a heartbeat is configured");
        return Err(Failure::new(ExitCode::Problem, error).hint(
            "set `alerts.webhook` or `alerts.webhook_file`, and `alerts.heartbeat_url`, in the configuration",
        ));
    }
    if output.json {
        show::json(&made);
    } else {
        for delivery in &made {
            let verdict = if delivery.taken { show::good("taken  ") } else { show::bad("REFUSED") };
            let (key, to, answer) = (delivery.key, &delivery.to, &delivery.answer);
            show::line(format!("{verdict}  {key}  {to}: {answer}"));
        }
    }
    let all_taken = made.iter().all(|delivery| delivery.taken);
    Ok(if all_taken { Code::SUCCESS } else { Code::FAILURE })
}
