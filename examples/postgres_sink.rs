//! A shop's orders, asked in SQL: a program that replicates a local MongoDB into PostgreSQL.
//!
//! ```sh
//! MONGODB_LOCAL_URI=mongodb://127.0.0.1/shop?replicaSet=rs0 POSTGRES_URI=postgres://me:secret@db/shop \
//!   cargo run --example postgres_sink
//! psql -c 'SELECT customer, count(*) FROM shop.orders GROUP BY 1'
//! ```
//!
//! With a `config.toml` beside it that has `[target] kind = "postgres"`, and the `[[column]]`s that `outrigger schema`
//! drafts. What this is not: nobody compares both sides, and a collection that is dropped leaves its table.

use std::path::Path;

use outrigger::{Agent, config, sink::postgres::PostgresSink};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let file = Path::new("config.toml");
    let mut config = config::load(file.exists().then_some(file), |name| std::env::var(name).ok())?;
    config.target.kind = config::TargetKind::Postgres;
    let sink = PostgresSink::new(&config)?;
    let agent = Agent::builder(config).sink(sink).prepare().await?;
    let until = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    Ok(agent.run(until).await?)
}
