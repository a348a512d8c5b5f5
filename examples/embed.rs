//! Outrigger inside a program of one's own: the same agent, without the binary.
//!
//! ```sh
//! MONGODB_LOCAL_URI=… MONGODB_ATLAS_URI=… cargo run --example embed
//! ```

use std::{path::Path, time::Duration};

use outrigger::{
    Agent, AgentError, Config,
    admin::{self, health::report},
    config::{ConfigError, LogFormat, load},
    observe::logging,
};

#[tokio::main]
async fn main() -> Result<(), AgentError> {
    let config = config()?;
    logging::start("info", LogFormat::Text);
    // With the admin API, as the program has it. An agent without `serve` opens no port.
    let agent = Agent::builder(config).serve(admin::start).prepare().await?;

    // Look at it from the outside while it runs.
    let handles = agent.handles();
    let watch = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let handles = handles.clone();
            // The report reads the queue's disk, so it is made off the async threads.
            if let Ok(health) = tokio::task::spawn_blocking(move || report(&handles)).await {
                println!(
                    "{:?}, {} waiting, lag {}",
                    health.status, health.queue_size, health.sync_lag
                );
            }
        }
    });

    let outcome = agent
        .run(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await;
    watch.abort();
    outcome
}

/// `config.toml`, if there is one, and the environment; as the binary does.
fn config() -> Result<Config, ConfigError> {
    let file = Path::new("config.toml");
    load(file.exists().then_some(file), |name| std::env::var(name).ok())
}
