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
  outrigger sync --wait          compare everything and repair what differs
  outrigger verify --digest      compare everything, over a slow line
  outrigger restore              Atlas into an empty local database
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
    /// Compare everything while replication goes on, and repair what differs.
    #[command(args_conflicts_with_subcommands = true)]
    Sync(SyncArgs),
    /// Compare both sides, and write nothing. Exit code 1 when they differ.
    Verify(VerifyArgs),
    /// Copy from Atlas into a local database that holds nothing yet, then compare both.
    Restore {
        /// Only these collections: `shop.orders`, `shop.*`. May be given more than once.
        #[arg(long, value_name = "NS")]
        ns: Vec<String>,
    },
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

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "one for each flag")]
pub struct SyncArgs {
    #[command(subcommand)]
    pub command: Option<SyncCommand>,
    /// Only these collections: `shop.orders`, `shop.*`. May be given more than once.
    #[arg(long, value_name = "NS")]
    pub ns: Vec<String>,
    /// Let the servers compare hashes; documents cross the line only where those differ. Blind where
    /// numbers differ below the integer part, or in a numeric type of the same size.
    #[arg(long)]
    pub digest: bool,
    /// Say what differs, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait for the end, and for what was repaired to be in Atlas.
    #[arg(long)]
    pub wait: bool,
    /// Take the target over even though it holds data that is not marked as this source's.
    #[arg(long)]
    pub adopt: bool,
    /// Delete what only Atlas has, however much that is.
    #[arg(long)]
    pub allow_mass_delete: bool,
}

#[derive(Debug, Subcommand)]
pub enum SyncCommand {
    /// How far the full sync is, or how the last one ended.
    Status {
        /// Show it until it has ended and what it repaired is written.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// End it. What is owed, such as the first copy, cannot be cancelled.
    Cancel,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these collections: `shop.orders`, `shop.*`. May be given more than once.
    #[arg(long, value_name = "NS")]
    pub ns: Vec<String>,
    /// Let the servers compare hashes; documents cross the line only where those differ. Blind where
    /// numbers differ below the integer part, or in a numeric type of the same size.
    #[arg(long)]
    pub digest: bool,
    #[command(flatten)]
    pub output: Output,
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

impl Output {
    /// For people.
    pub const TEXT: Self = Self { json: false };
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
