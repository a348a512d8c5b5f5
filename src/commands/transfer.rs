//! `outrigger queue export|import|clear`

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::ExitCode as Code,
};

use serde_json::json;

use super::{access::Access, show};
use crate::{
    agent::queue_options,
    checkpoint::ClusterTime,
    cli::{ClearArgs, ExportArgs, ImportArgs},
    config::Config,
    queue::{
        Queue, QueueError,
        transfer::{EXPORT_VERSION, Operation, Whole, Wish, read},
    },
    report::{ExitCode, Failure},
    sync_state::{Reason, SyncState},
};

/// Operations in one request to a running agent.
const PART: usize = 500;

/// Writes the queue to a file that only its owner can read, or to stdout.
pub fn export(config: &Config, args: &ExportArgs) -> Result<Code, Failure> {
    let access = Access::open(config)?;
    let mut out: Box<dyn Write> = match &args.file {
        Some(path) => Box::new(create(path)?),
        None => Box::new(std::io::stdout().lock()),
    };
    let written = match access {
        Access::Agent(client) => {
            client
                .patient(std::time::Duration::from_secs(3600))
                .copy("/api/queue/export", &mut out)?;
            None
        }
        Access::Queue(queue) => {
            let mut out = BufWriter::new(&mut out);
            Some(queue.export(&mut out, Whole::Yes)?)
        }
    };
    if let Some(path) = &args.file {
        let what = written.map_or_else(String::new, |n| format!(": {n} operations"));
        eprintln!("written to {}{what}", path.display());
    }
    Ok(Code::SUCCESS)
}

fn create(path: &Path) -> Result<File, Failure> {
    // It holds the application's documents.
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot write `{}`", path.display()));
        Failure::new(ExitCode::Problem, error)
            .hint("name a file that is not there yet, in a folder that you may write to")
    })
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
    let header = read(open(&args.file)?, |operation| operation.wish().map(drop))?;
    match access(config)? {
        Access::Agent(client) => {
            let mut n = 0_u64;
            let mut part = Vec::with_capacity(PART);
            let send = |part: &mut Vec<Operation>| -> Result<(), QueueError> {
                let body = json!({ "version": EXPORT_VERSION, "operations": std::mem::take(part) });
                client.post("/api/queue/import", &body).map(drop).map_err(|failure| {
                    QueueError::NotImported(format!("the agent refused: {}", failure.error))
                })
            };
            read(open(&args.file)?, |operation| {
                n += 1;
                part.push(operation);
                if part.len() == PART { send(&mut part) } else { Ok(()) }
                    .map_err(|error| error.to_string())
            })?;
            send(&mut part)?;
            show::line(format!(
                "{n} documents are brought up to date, as the local database has them"
            ));
        }
        Access::Queue(queue) => {
            let is_new = queue.checkpoint()?.is_none()
                && queue.pending().0 == 0
                && queue.dead_letters_len() == 0;
            if is_new && header.checkpoint.is_some() {
                let n = queue.move_in(open(&args.file)?, &header)?;
                show::line(format!(
                    "{n} operations and the checkpoint are in the queue; `outrigger run` goes on from there"
                ));
            } else {
                let n = by_key(&queue, &args.file)?;
                show::line(format!(
                    "{n} documents are brought up to date at the next start, as the local database has them"
                ));
            }
        }
    }
    Ok(Code::SUCCESS)
}

/// As [`Access::open`], and makes a queue where there is none yet.
fn access(config: &Config) -> Result<Access, Failure> {
    if config.queue.path.exists() {
        return Access::open(config);
    }
    match super::access::Client::connect(config)? {
        Some(client) => Ok(Access::Agent(client)),
        None => Ok(Access::Queue(Box::new(Queue::open(&queue_options(config))?))),
    }
}

fn by_key(queue: &Queue, file: &Path) -> Result<u64, Failure> {
    let position =
        queue.checkpoint()?.map(|checkpoint| checkpoint.cluster_time).unwrap_or_default();
    let time = ClusterTime(position.0.saturating_sub(1));
    let mut n = 0_u64;
    let mut part = Vec::with_capacity(PART);
    read(open(file)?, |operation| {
        match operation.wish()? {
            Wish::Refresh(mut wanted) => {
                wanted.cluster_time = time;
                n += 1;
                part.push(wanted);
            }
            Wish::Compare(namespaces) => {
                SyncState::demand_of(queue, position, &namespaces, Reason::Imported)
                    .map_err(|error| error.to_string())?;
            }
        }
        if part.len() == PART {
            queue.commit(std::mem::take(&mut part), None).map_err(|error| error.to_string())?;
        }
        Ok(())
    })?;
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
        SyncState::demand(&queue, checkpoint.cluster_time, Reason::Cleared)?;
        queue.flush()?;
    }
    let removed = queue.clear()?;
    show::line(format!("{removed} changes are thrown away; the next start compares everything"));
    Ok(Code::SUCCESS)
}
