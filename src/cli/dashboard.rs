//! `outrigger dashboard`

use std::process::ExitCode as Code;

use serde_json::json;

use super::{access::Client, show};
use crate::{
    admin::read_token,
    cli::args::Output,
    config::Config,
    observe::report::{ExitCode, Failure},
};

/// Prints where the dashboard is. The token stands behind the `#`: a browser keeps that to itself, so that no server
/// and no log between here and there sees it.
pub fn run(config: &Config, output: Output) -> Result<Code, Failure> {
    let Some(client) = Client::connect(config)? else {
        let error = anyhow::anyhow!("no agent runs on {}", config.admin.listen);
        return Err(Failure::new(ExitCode::Problem, error).hint("start one with `outrigger run`"));
    };
    let token = read_token(&config.admin.token_file).map_err(|error| {
        Failure::new(ExitCode::Problem, error)
            .hint("run this as the user who may read `admin.token_file`")
    })?;
    let address = format!("{}/#token={token}", client.base());
    if output.json {
        show::json(&json!({ "address": address }));
    } else {
        show::line(address);
    }
    Ok(Code::SUCCESS)
}
