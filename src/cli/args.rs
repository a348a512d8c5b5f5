//! The command line: what there is to type.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{LogFormat, units},
    model::namespace::{Namespace, NamespaceFilter},
    observe::report::{ExitCode, Failure},
};

/// With the commit, and how it was built; see `build.rs`.
const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("OUTRIGGER_BUILD"), ")");

/// Keeps a second, always usable copy of a local MongoDB in MongoDB Atlas.
#[derive(Debug, Parser)]
#[command(version, long_version = LONG_VERSION, about, disable_help_subcommand = true)]
#[command(after_help = "Examples:
  outrigger init                 write a commented config.toml
  outrigger check                see whether both ends are fit
  outrigger run                  replicate until stopped
  outrigger status --watch       phase, lag, queue, dead letters, every second
  outrigger dashboard            its address, with the token
  outrigger flush && poweroff    all that is committed here is in Atlas first
  outrigger doc shop.orders 42   is this document in Atlas as it is here?
  outrigger sync --wait          compare everything and repair what differs
  outrigger verify --digest      compare everything, over a slow line
  outrigger restore              Atlas into an empty local database
  outrigger dead list            what Atlas would not take, and why

Exit codes: 0 fine, 1 a problem was found, 2 usage or configuration,
3 local database unreachable or unfit, 4 Atlas unreachable or denied,
5 replication is switched off (to a service manager only; by hand that is 0)")]
pub struct Cli {
    /// The configuration file; without it, `config.toml` here, else `/etc/outrigger/config.toml`, if there is one.
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
    /// Write a commented `config.toml`, or the file that `--config` names, with every key at its default.
    Init,
    /// Look at both ends and at this machine, and say for each point: ok, warning or problem, with the fix.
    #[command(after_help = "Examples:
  outrigger check
  outrigger check --plan      what would be copied, compared and deleted, before anything is")]
    Check(CheckArgs),
    /// Print the users that both ends need, with no more rights than the work takes: lines for mongosh here, commands and
    /// steps for Atlas.
    #[command(after_help = "Examples:
  outrigger roles                     for what `[namespaces]` chooses
  outrigger roles --ns 'shop.*'
  printf %s \"$PASSWORD\" | outrigger roles --encode     as a connection string takes it")]
    Roles(RolesArgs),
    /// Alerts: try what tells of them.
    #[command(
        subcommand,
        after_help = "Example:
  outrigger alerts test       one through the web hook and one heartbeat; exit code 1 when one is refused"
    )]
    Alerts(AlertsCommand),
    /// Replicate until stopped. A first SIGTERM or Ctrl-C drains; a second one leaves at once.
    Run {
        /// Take the target over even though it holds data that is not marked as this source's.
        #[arg(long)]
        adopt: bool,
    },
    /// Phase, lag, queue, breaker, dead letters. Exit code 1 when unhealthy or not running.
    #[command(after_help = "Examples:
  outrigger status
  outrigger status --watch
  outrigger status --json | jq .syncLagMs
  outrigger status --watch --json >> lag.jsonl")]
    Status(StatusArgs),
    /// Print the address of the dashboard, with the token in it: whoever opens that may do everything.
    #[command(after_help = "Examples:
  outrigger dashboard
  xdg-open \"$(outrigger dashboard)\"
  ssh -L 8686:127.0.0.1:8686 HOST, then here what `outrigger dashboard` prints there")]
    Dashboard(Output),
    /// Compare everything while replication goes on, and repair what differs.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:
  outrigger sync --wait
  outrigger sync --ns shop.orders --ns 'crm.*' --digest
  outrigger sync --dry-run --wait
  outrigger sync status --wait"
    )]
    Sync(SyncArgs),
    /// Compare both sides, and write nothing. Exit code 1 when they differ.
    #[command(after_help = "Examples:
  outrigger verify
  outrigger verify --ns 'shop.*' --digest
  outrigger verify --json > report.json")]
    Verify(VerifyArgs),
    /// Copy from Atlas into a local database that holds nothing yet, then compare both.
    #[command(after_help = "Examples:
  outrigger restore
  outrigger restore --ns 'shop.*'")]
    Restore {
        /// Only these collections: `shop.orders`, `shop.*`. May be given more than once.
        #[arg(long, value_name = "NS")]
        ns: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Print the tables that the collections have in PostgreSQL, as SQL, with a draft of columns from a sample.
    #[command(after_help = "Examples:
  outrigger schema
  outrigger schema --ns shop.orders > orders.sql
  outrigger schema --apply

With `target.kind = \"postgres\"`.")]
    Schema(SchemaArgs),
    /// The table of events that the source `outbox` reads.
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Wait until all that is committed locally now is in Atlas. Exit code 1 when it is not in time.
    #[command(after_help = "Examples:
  outrigger flush                    before the machine is switched off
  outrigger flush --timeout 10m      over a slow line
  outrigger flush --indexes          before Atlas takes the application's queries")]
    Flush(FlushArgs),
    /// The state of one document: SYNCED, PENDING or FAILED, with error and last sync time.
    #[command(after_help = "Examples:
  outrigger doc shop.orders 42
  outrigger doc shop.orders 64f1c0ffee64f1c0ffee64f1     an ObjectId
  outrigger doc shop.people '\"42\"'                      a string
  outrigger doc shop.parts '{\"bin\": 3, \"row\": 7}'")]
    Doc(DocArgs),
    /// Stop writing to Atlas; reading into the queue goes on. Survives a restart.
    #[command(after_help = "Examples:
  outrigger pause --reason 'the cluster is scaled' --for 2h
  outrigger resume")]
    Pause(PauseArgs),
    /// Continue writing to Atlas.
    Resume(ResumeArgs),
    /// What waits for Atlas.
    #[command(
        subcommand,
        after_help = "Examples:
  outrigger queue list --limit 10
  outrigger queue export backlog.json       for a look, or to move to another machine
  outrigger queue import backlog.json"
    )]
    Queue(QueueCommand),
    /// What Atlas would not take.
    #[command(
        subcommand,
        after_help = "Examples:
  outrigger dead list
  outrigger dead show 019aa5c2              the beginning of an id is enough
  outrigger dead retry 019aa5c2             after the cause was mended
  outrigger dead retry --all"
    )]
    Dead(DeadCommand),
    /// Print completions for a shell.
    #[command(after_help = "Example:
  outrigger completions bash > /etc/bash_completion.d/outrigger")]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    #[command(after_help = "Example:
  outrigger man | man -l -")]
    Man,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Say what would be copied, compared and deleted, too. Changes nothing.
    #[arg(long)]
    pub plan: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct RolesArgs {
    /// For these collections, in place of those of the configuration: `shop.orders`, `shop.*`.
    #[arg(long, value_name = "NS")]
    pub ns: Vec<String>,
    /// Only lines for mongosh, on both ends: for a target that is no Atlas.
    #[arg(long, conflicts_with = "json")]
    pub mongosh: bool,
    /// Read a password from stdin, and print it percent-encoded.
    #[arg(long, conflicts_with_all = ["ns", "mongosh", "json"])]
    pub encode: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// Send a test to the web hook, and a heartbeat, and say how each ended.
    Test(Output),
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
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Print what makes the table, as SQL, and what an application adds to its transactions.
    #[command(after_help = "Examples:
  outrigger outbox init | psql
  outrigger outbox init --cockroachdb --user reader

With `source.kind = \"outbox\"`. Nothing is connected to.")]
    Init(OutboxInitArgs),
}

#[derive(Debug, Args)]
pub struct OutboxInitArgs {
    /// For CockroachDB.
    #[arg(long)]
    pub cockroachdb: bool,
    /// Grant this user what the reader needs.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Make them as well. What is there already stays; a column that is new in the configuration is added.
    #[arg(long)]
    pub apply: bool,
    /// Only these collections: `shop.orders`, `shop.*`. May be given more than once.
    #[arg(long, value_name = "NS")]
    pub ns: Vec<String>,
    /// Documents of each collection that the draft of its columns is made from; 0 for none.
    #[arg(long, value_name = "DOCUMENTS", default_value_t = 1000)]
    pub sample: u32,
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
    Cancel(Output),
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
    /// Write the queue as JSON. While no agent runs, with the checkpoint: such a file moves the queue.
    Export(ExportArgs),
    /// Take an exported queue in. Into a queue that was never used, exactly as it was; into any other one, its
    /// documents are brought up to date as the local database has them.
    Import(ImportArgs),
    /// Throw away what waits, while no agent runs. The next start compares everything, so nothing is lost.
    Clear(ClearArgs),
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A new file, which only its owner can read; without it, stdout.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// As `queue export` wrote it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ClearArgs {
    /// It is meant.
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it again every second, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// Only whether the agent's process lives, as `/healthz` says: for a container's health check. Exit code 0 when it
    /// does, 1 when it does not, whatever its health.
    #[arg(long, conflicts_with = "watch")]
    pub alive: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Why something is asked for.
#[derive(Debug, Args)]
pub struct Why {
    /// Why: it stands in the agent's log, with your name.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Go on by itself after this time, such as `30m` or `2h`.
    #[arg(long = "for", value_name = "D", value_parser = units::parse_duration)]
    pub lasts: Option<Duration>,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct FlushArgs {
    /// Longest wait, such as `90s` or `10m`.
    #[arg(long, value_name = "D", default_value = "60s", value_parser = timeout)]
    pub timeout: Duration,
    /// Wait for the indexes that are being built in Atlas, too.
    #[arg(long)]
    pub indexes: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Up to what the API takes.
fn timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        wait if wait <= Duration::from_secs(3600) => Ok(wait),
        _ => Err("at most 1h".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct DocArgs {
    /// The collection: `shop.orders`.
    #[arg(value_name = "NS")]
    pub ns: Namespace,
    /// The `_id` as extended JSON; 24 hexadecimal digits are an ObjectId, any other text is a string.
    #[arg(value_name = "ID", allow_hyphen_values = true)]
    pub id: String,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// The dead letters, the oldest first, without their documents.
    List(ListArgs),
    /// One dead letter with its document.
    Show(ItemArgs),
    /// Queue the document again, as it is now. The letter goes when that succeeds.
    #[command(after_help = "Examples:
  outrigger dead retry 019aa5c2       the beginning of an id is enough
  outrigger dead retry --ns 'shop.*'
  outrigger dead retry --all")]
    Retry(RetryArgs),
    /// Remove the letter. The document differs until it changes again.
    Discard(DiscardArgs),
}

#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// As listed by `dead list`, or its beginning, or its end.
    pub id: String,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["id", "all", "ns"])))]
pub struct RetryArgs {
    /// As listed by `dead list`, or its beginning, or its end.
    pub id: Option<String>,
    /// All that there are.
    #[arg(long)]
    pub all: bool,
    /// All of these collections: `shop.orders`, `shop.*`. May be given more than once.
    #[arg(long, value_name = "NS")]
    pub ns: Vec<String>,
    #[command(flatten)]
    pub why: Why,
    #[command(flatten)]
    pub output: Output,
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
    /// As listed, or its beginning, or its end.
    pub id: String,
    #[command(flatten)]
    pub output: Output,
}

/// The namespaces of `--ns`.
///
/// # Errors
/// A usage error that names the pattern.
pub fn check_patterns(patterns: &[String]) -> Result<NamespaceFilter, Failure> {
    NamespaceFilter::new(patterns, &[]).map_err(|error| {
        Failure::new(ExitCode::Usage, error)
            .hint("for example `--ns shop.orders` or `--ns 'shop.*'`")
    })
}
