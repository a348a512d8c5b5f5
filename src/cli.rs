//! The command line: what there is to type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::config::LogFormat;

/// Keeps a second, always usable copy of a local MongoDB in MongoDB Atlas.
#[derive(Debug, Parser)]
#[command(version, about, disable_help_subcommand = true)]
#[command(after_help = "Examples:
  outrigger init                 write a commented config.toml
  outrigger check                see whether both ends are fit
  outrigger run                  replicate until stopped
  outrigger status               phase, lag, queue, dead letters
  outrigger dead list            what Atlas would not take, and why

Exit codes: 0 fine, 1 a problem was found, 2 usage or configuration,
3 local database unreachable or unfit, 4 Atlas unreachable or denied")]
pub struct Cli {
    /// The configuration file; without it, `config.toml` if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look; overrides `log.format`.
    #[arg(long, global = true, value_enum)]
    pub log_format: Option<LogFormat>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented `config.toml` with every key at its default.
    Init,
    /// Look at both ends, and say for each point: ok, warning or problem, with the fix.
    Check(Output),
    /// Replicate until stopped. A first SIGTERM or Ctrl-C drains; a second one leaves at once.
    Run {
        /// Take the target over even though it holds data that is not marked as this source's.
        #[arg(long)]
        adopt: bool,
    },
    /// Phase, lag, queue, breaker, dead letters.
    Status(Output),
    /// Stop writing to Atlas; reading into the queue goes on. Survives a restart.
    Pause,
    /// Continue writing to Atlas.
    Resume,
    /// What waits for Atlas.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// What Atlas would not take.
    #[command(subcommand)]
    Dead(DeadCommand),
}

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// The queue in numbers.
    Stats(Output),
    /// The entries, the oldest first, without their documents.
    List(ListArgs),
    /// One entry with its document.
    Show(ItemArgs),
}

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// The dead letters, the oldest first, without their documents.
    List(ListArgs),
    /// One dead letter with its document.
    Show(ItemArgs),
    /// Queue the document again, as it is now. The letter goes when that succeeds.
    Retry {
        /// As listed by `dead list`.
        id: Uuid,
    },
    /// Remove the letter. The document differs until it changes again.
    Discard {
        /// As listed by `dead list`.
        id: Uuid,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ItemArgs {
    /// As listed.
    pub id: Uuid,
    #[command(flatten)]
    pub output: Output,
}
