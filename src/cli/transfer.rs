//! `outrigger queue export|import|clear`

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::ExitCode as Code,
    time::Duration,
};

use serde_json::json;

use super::{
    access::{Access, Client},
    show,
};
use crate::{
    agent::queue_options,
    cli::args::{ClearArgs, ExportArgs, ImportArgs},
    config::Config,
    model::namespace::NamespaceFilter,
    observe::report::{ExitCode, Failure},
    queue::{
        Queue, QueueError,
        transfer::{EXPORT_VERSION, ImportEffect, Operation, Whole, read, read_keys},
    },
    runtime::files,
    sync::state::{Reason, SyncState},
};

/// Operations, and bytes of them, in one request to a running agent, which takes 16 MiB.
const PART: usize = 500;
const PART_BYTES: usize = 4 << 20;

/// Longest wait for what may be much.
const LONG: Duration = Duration::from_secs(3600);

/// Writes the queue to a file that only its owner can read, or to stdout. The file has its name only when it is
/// whole.
pub fn export(config: &Config, args: &ExportArgs) -> Result<Code, Failure> {
    let access = Access::open(config)?;
    let Some(path) = &args.file else {
        write(access, &mut std::io::stdout().lock())?;
        return Ok(Code::SUCCESS);
    };
    if path.exists() {
        let error = anyhow::anyhow!("`{}` is already there", path.display());
        return Err(Failure::new(ExitCode::Problem, error).hint("name a file that is not"));
    }
    let part = files::beside(path, ".part");
    let failed = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("cannot write `{}`", path.display()));
        Failure::new(ExitCode::Problem, error)
            .hint("name a file in a folder that you may write to, with room for it")
    };
    // An export that failed half-way is not left behind: it holds the application's documents.
    let _ = std::fs::remove_file(&part);
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let mut out = made.map_err(failed)?;
    let done = write(access, &mut out)
        .and_then(|()| out.sync_all().and_then(|()| std::fs::rename(&part, path)).map_err(failed));
    if done.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    done?;
    eprintln!("written to {}", path.display());
    Ok(Code::SUCCESS)
}

fn write(access: Access, out: &mut impl Write) -> Result<(), Failure> {
    match access {
        Access::Agent(client) => client.patient(LONG).copy("/api/queue/export", out),
        Access::Queue(queue) => {
            queue.export(&mut BufWriter::new(out), Whole::Yes)?;
            Ok(())
        }
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()));
        Failure::new(ExitCode::Problem, error)
            .hint("name a file that `outrigger queue export` wrote")
    })
}

/// Reads the whole file once before anything is changed, then takes it in.
pub fn import(config: &Config, args: &ImportArgs) -> Result<Code, Failure> {
    let header = read(open(&args.file)?, |operation| operation.effect().map(drop))?;
    let filter = config.filter()?;
    match access(config)? {
        Access::Agent(client) => {
            let mut sender = Sender {
                client: client.patient(LONG),
                part: Vec::new(),
                bytes: 0,
                sent: 0,
                queued: 0,
            };
            read(open(&args.file)?, |operation| sender.take(operation))?;
            sender.send().map_err(QueueError::NotImported)?;
            let queued = sender.queued;
            let text = format!(
                "{queued} documents are brought up to date, as the local database has them"
            );
            show::result(args.output, &json!({ "queued": queued }), text);
        }
        Access::Queue(queue) => {
            let is_new = queue.checkpoint()?.is_none()
                && queue.pending().0 == 0
                && queue.dead_letters_len() == 0;
            if is_new && header.checkpoint.is_some() {
                let n = queue.move_in(open(&args.file)?, &header, |ns| filter.matches(ns))?;
                let text = format!(
                    "{n} operations and the checkpoint are in the queue; `outrigger run` goes on from there"
                );
                show::result(args.output, &json!({ "movedIn": n }), text);
            } else {
                let n = by_key(&queue, &args.file, &filter)?;
                let text = format!(
                    "{n} documents are brought up to date at the next start, as the local database has them"
                );
                show::result(args.output, &json!({ "queued": n }), text);
            }
        }
    }
    Ok(Code::SUCCESS)
}

/// Sends an import to a running agent in parts.
struct Sender {
    client: Client,
    part: Vec<Operation>,
    bytes: usize,
    sent: u64,
    queued: u64,
}

impl Sender {
    fn take(&mut self, operation: Operation) -> Result<(), String> {
        let operation = operation.key_only();
        self.bytes += json!(operation).to_string().len();
        self.part.push(operation);
        if self.part.len() >= PART || self.bytes >= PART_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), String> {
        self.bytes = 0;
        let part = std::mem::take(&mut self.part);
        let sent = part.len() as u64;
        let body = json!({ "version": EXPORT_VERSION, "operations": part });
        let answer = self.client.post("/api/queue/import", &body).map_err(|failure| {
            let so_far = self.sent;
            format!(
                "the agent took {so_far} operations and refused the next: {:#}; importing once more is harmless",
                failure.error
            )
        })?;
        self.sent += sent;
        self.queued += show::number(&answer["queued"]);
        Ok(())
    }
}

/// As [`Access::open`], and makes a queue where there is none yet.
fn access(config: &Config) -> Result<Access, Failure> {
    if config.queue.path.exists() {
        return Access::open(config);
    }
    match Client::connect(config)? {
        Some(client) => Ok(Access::Agent(client)),
        None => Ok(Access::Queue(Box::new(Queue::open(&queue_options(config))?))),
    }
}

fn by_key(queue: &Queue, file: &Path, filter: &NamespaceFilter) -> Result<u64, Failure> {
    let position =
        queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time).unwrap_or_default();
    let mut n = 0_u64;
    let mut part = Vec::with_capacity(PART);
    read_keys(
        open(file)?,
        position,
        |ns| filter.matches(ns),
        |wish| {
            match wish {
                ImportEffect::Refresh(wanted) => {
                    n += 1;
                    part.push(wanted);
                }
                ImportEffect::Compare(namespaces) => {
                    SyncState::require_of(queue, position, &namespaces, Reason::Imported)
                        .map_err(|error| error.to_string())?;
                }
            }
            if part.len() == PART {
                queue.commit(std::mem::take(&mut part), None).map_err(|error| error.to_string())?;
            }
            Ok(())
        },
    )?;
    queue.commit(part, None)?;
    queue.flush()?;
    Ok(n)
}

/// Throws away what waits. Nothing is lost by it: everything is compared at the next start.
pub fn clear(config: &Config, args: &ClearArgs) -> Result<Code, Failure> {
    let Access::Queue(queue) = Access::open(config)? else {
        let error = anyhow::anyhow!("an agent runs, and works on its queue");
        return Err(Failure::new(ExitCode::Problem, error)
            .hint("stop it first; `outrigger pause` only keeps it from writing"));
    };
    let (pending, _) = queue.pending();
    if !args.yes {
        let error = anyhow::anyhow!("this throws away {pending} changes that wait for Atlas");
        return Err(Failure::new(ExitCode::Problem, error).hint(
            "say --yes if that is meant; the next start compares everything, so nothing is lost",
        ));
    }
    if let Some(checkpoint) = queue.checkpoint()? {
        SyncState::require(&queue, checkpoint.cluster_time, Reason::Cleared)?;
        queue.flush()?;
    }
    let removed = queue.clear()?;
    let text = format!("{removed} changes are thrown away; the next start compares everything");
    show::result(args.output, &json!({ "removed": removed }), text);
    Ok(Code::SUCCESS)
}
