//! One file for each subcommand. Results go to stdout, everything else to stderr.

use std::{path::Path, process::ExitCode as Code, time::Duration};

use crate::{
    agent::AgentError,
    cli::args::{
        AlertsCommand, Cli, Command, DeadCommand, OutboxCommand, QueueCommand, SyncArgs,
        SyncCommand,
    },
    config::{self, Config, ConfigError, Secrets},
    observe::{
        report::{ExitCode, Failure},
        words,
    },
    queue::QueueError,
    runtime::shutdown::Stop,
    source::SourceError,
    sync::SyncError,
};

mod access;
mod alerts;
pub mod args;
mod bars;
mod check;
mod dashboard;
mod dead;
mod doc;
mod flush;
mod ids;
mod init;
mod outbox;
mod pause;
mod print;
mod queue;
mod restore;
mod roles;
mod run;
mod schema;
mod show;
mod signals;
mod status;
mod sync;
mod systemd;
mod table;
mod transfer;
mod verify;

/// How long what runs in the background may go on at the end.
const EXIT_WITHIN: Duration = Duration::from_secs(1);

/// Runs what was typed.
///
/// # Errors
/// The failure as the person sees it.
pub fn run(cli: Cli) -> Result<Code, Failure> {
    // These need no configuration.
    match cli.command {
        Command::Init => return init::run(cli.config.as_deref()),
        Command::Completions { shell } => return print::completions(shell),
        Command::Man => return print::man(),
        _ => {}
    }
    // Before anything that takes time: a signal that finds no handler ends the process.
    let signals = if matches!(cli.command, Command::Run { .. }) {
        Some(signals::Signals::new()?)
    } else {
        None
    };
    let file = cli.config.as_deref();
    let mut config = match need_of(&cli.command) {
        Need::Sides => load(file, Secrets::Read)?,
        Need::Agent => load(file, Secrets::Leave)?,
        Need::Names => load(file, Secrets::Read).or_else(|_| load(file, Secrets::Leave))?,
        Need::Deliveries => load(file, Secrets::Deliveries)?,
        Need::AgentElseEnds => {
            let config = load(file, Secrets::Leave)?;
            let runs = matches!(access::Client::connect(&config), Ok(Some(_)));
            if runs { config } else { load(file, Secrets::Read)? }
        }
    };
    words::ends_are(config.source.kind, config.target.kind);
    if let Some(format) = cli.log_format {
        config.log.format = format;
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::new(ExitCode::Problem, error).hint("the system has no threads left")
    })?;
    let done = match cli.command {
        Command::Init | Command::Completions { .. } | Command::Man => {
            unreachable!("handled above: they need no configuration")
        }
        Command::Check(args) => runtime.block_on(check::run(&config, &args)),
        Command::Roles(args) => roles::run(&config, &args),
        Command::Alerts(AlertsCommand::Test(output)) => alerts::test(&config, output),
        Command::Run { adopt } => {
            crate::observe::logging::start(&config.log.level, config.log.format);
            let asked = Stop::default();
            if let Some(signals) = signals {
                signals::follow(signals, config.shutdown.drain_for, asked.clone())?;
            }
            let file = file_in_use(file).map(Path::to_owned);
            runtime.block_on(run::run(config, file, adopt, asked))
        }
        Command::Status(args) => status::run(&config, &args),
        Command::Dashboard(output) => dashboard::run(&config, output),
        Command::Flush(args) => flush::run(&config, &args),
        Command::Doc(args) => runtime.block_on(doc::run(&config, &args)),
        Command::Sync(SyncArgs { command: Some(SyncCommand::Status { wait, output }), .. }) => {
            runtime.block_on(sync::status(&config, output, wait))
        }
        Command::Sync(SyncArgs { command: Some(SyncCommand::Cancel(output)), .. }) => {
            sync::cancel(&config, output)
        }
        Command::Sync(args) => runtime.block_on(sync::run(config, args)),
        Command::Verify(args) => runtime.block_on(verify::run(&config, args)),
        Command::Restore { ns, output } => runtime.block_on(restore::run(&config, &ns, output)),
        Command::Pause(args) => pause::pause(&config, &args),
        Command::Resume(args) => pause::resume(&config, &args),
        Command::Outbox(OutboxCommand::Init(args)) => outbox::init(&config, &args),
        Command::Schema(args) => runtime.block_on(schema::run(&config, args)),
        Command::Queue(QueueCommand::Stats(output)) => queue::stats(&config, output),
        Command::Queue(QueueCommand::List(args)) => queue::list(&config, &args),
        Command::Queue(QueueCommand::Show(args)) => queue::show(&config, &args),
        Command::Queue(QueueCommand::Export(args)) => transfer::export(&config, &args),
        Command::Queue(QueueCommand::Import(args)) => transfer::import(&config, &args),
        Command::Queue(QueueCommand::Clear(args)) => transfer::clear(&config, &args),
        Command::Dead(DeadCommand::List(args)) => dead::list(&config, &args),
        Command::Dead(DeadCommand::Show(args)) => dead::show(&config, &args),
        Command::Dead(DeadCommand::Retry(args)) => dead::retry(&config, &args),
        Command::Dead(DeadCommand::Discard(args)) => dead::discard(&config, &args),
    };
    crate::observe::logging::leave();
    // A blocking task may still wait for a web hook that never answers; dropping the runtime would wait for it.
    runtime.shutdown_timeout(EXIT_WITHIN);
    done.and_then(|code| show::all_written().map(|()| code))
}

/// What a command works with: who may not read the connection strings can ask the agent all the same.
enum Need {
    Sides,
    /// The agent, or the queue where none runs.
    Agent,
    /// The agent, or, where none runs, both ends.
    AgentElseEnds,
    /// What is replicated, which the connection strings may say, on a first day when there are none yet.
    Names,
    /// Where alerts go.
    Deliveries,
}

fn need_of(command: &Command) -> Need {
    match command {
        Command::Status(_)
        | Command::Flush(_)
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Dashboard(_)
        | Command::Dead(_)
        | Command::Sync(SyncArgs { command: Some(_), .. }) => Need::Agent,
        Command::Queue(QueueCommand::Import(_)) | Command::Sync(_) | Command::Doc(_) => {
            Need::AgentElseEnds
        }
        Command::Queue(_) => Need::Agent,
        Command::Roles(_) | Command::Outbox(_) => Need::Names,
        Command::Alerts(_) => Need::Deliveries,
        Command::Init
        | Command::Check(_)
        | Command::Run { .. }
        | Command::Verify(_)
        | Command::Restore { .. }
        | Command::Schema(_)
        | Command::Completions { .. }
        | Command::Man => Need::Sides,
    }
}

/// The configuration file in use: the one that was named, or one here, or where the package puts it.
fn file_in_use(file: Option<&Path>) -> Option<&Path> {
    let defaults = ["config.toml", "/etc/outrigger/config.toml"].map(Path::new);
    file.or_else(|| defaults.into_iter().find(|default| default.exists()))
}

fn load(file: Option<&Path>, secrets: Secrets) -> Result<Config, Failure> {
    Ok(config::load_with(file_in_use(file), |name| std::env::var(name).ok(), secrets)?)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::of(ExitCode::Usage, error)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::of(ExitCode::Local, error)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Failure::of(ExitCode::Problem, error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Config(error) => error.into(),
            AgentError::Local(error) => error.into(),
            AgentError::Queue(error) => error.into(),
            AgentError::Sync(error) => error.into(),
            error @ (AgentError::OtherSource { .. }
            | AgentError::Superseded
            | AgentError::Admin { .. }
            | AgentError::Task(_)) => Failure::of(ExitCode::Problem, error),
        }
    }
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Source(error) => error.into(),
            SyncError::Queue(error) => error.into(),
            SyncError::SameDatabase(same) => Failure::of(ExitCode::Usage, same),
            error @ SyncError::NothingMatches(_) => Failure::of(ExitCode::Usage, error),
            error @ (SyncError::NotOwned { .. }
            | SyncError::Overlap { .. }
            | SyncError::Ring { .. }
            | SyncError::LeaseHeld { .. }
            | SyncError::NoDigest { .. }) => Failure::of(ExitCode::Problem, error),
            error @ SyncError::LocalTarget { .. } => Failure::of(ExitCode::Local, error),
            error @ (SyncError::Sink(_)
            | SyncError::Outdated
            | SyncError::OlderQueue
            | SyncError::Stopped) => Failure::of(ExitCode::Atlas, error),
        }
    }
}
