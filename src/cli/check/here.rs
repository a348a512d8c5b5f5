//! This machine: what a start would stumble over. Nothing is made, and nobody is told anything.

use std::{
    io::{self, ErrorKind},
    net::TcpListener,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::Report;
use crate::{
    admin::read_token,
    agent::reach,
    cli::access::Client,
    config::{Config, units},
    observe::report::one_line,
    queue::{agent_in, free_disk},
};

pub(super) fn check_here(config: &Config, lines: &mut Report) {
    let agent = check_queue(config, lines);
    check_disk(config, lines);
    check_token(config, lines);
    check_port(config, agent, lines);
    check_deliveries(config, lines);
}

/// The folder, or the nearest one above it that is there.
fn nearest(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = whole.ancestors().find(|dir| dir.exists());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// As the system would answer whoever runs this; a file system that is mounted read-only counts for root too.
fn may_write(path: &Path) -> io::Result<()> {
    Ok(access(path, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Returns the process of an agent that works with the queue now.
fn check_queue(config: &Config, lines: &mut Report) -> Option<u32> {
    let path = config.queue.path.as_path();
    let found = nearest(path);
    let (shown, place) = (path.display(), found.display());
    if !found.is_dir() {
        let text = format!("`queue.path` = `{shown}` cannot be a folder: `{place}` is a file");
        lines.problem("here", text, "name another folder in `queue.path`");
        return None;
    }
    if let Err(error) = may_write(&found) {
        lines.problem(
            "here",
            format!("the queue's folder `{shown}` cannot be written: `{place}`: {}", error.kind()),
            "let the user that runs the agent write there (`chown`), or name another folder in `queue.path`",
        );
        return None;
    }
    let agent = agent_in(path);
    match agent {
        Some(id) => lines.ok("here", format!("an agent works with the queue, process {id}")),
        None => lines.ok("here", format!("the queue's folder `{shown}` can be written")),
    }
    agent
}

fn check_disk(config: &Config, lines: &mut Report) {
    let path = &config.queue.path;
    let found = nearest(path);
    match free_disk(&found) {
        Some(free) if free < config.queue.min_free_disk => lines.problem(
            "here",
            format!(
                "{} are free for the queue, less than `queue.min_free_disk`",
                units::show_bytes(free)
            ),
            "make room, or set `queue.path` to another disk",
        ),
        Some(free) => lines.ok(
            "here",
            format!("{} are free for the queue in `{}`", units::show_bytes(free), path.display()),
        ),
        None => lines.problem(
            "here",
            format!("`{}` cannot be looked at", found.display()),
            "check `queue.path`",
        ),
    }
}

fn check_token(config: &Config, lines: &mut Report) {
    let path = &config.admin.token_file;
    let fix = "name a file in `admin.token_file` that the agent's user may read, or may make";
    match read_token(path) {
        Ok(_) => lines.ok("here", "the admin API's token can be read"),
        // Made at the start.
        Err(error) if error.is_of_nothing() => {
            // The parent of a name alone is the empty path, which is nowhere.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let folder = nearest(parent.unwrap_or(Path::new(".")));
            match may_write(&folder) {
                Ok(()) => lines.ok("here", "the admin API's token will be made at the start"),
                Err(error) => {
                    let text = format!(
                        "the admin API's token `{}` cannot be made: `{}`: {}",
                        path.display(),
                        folder.display(),
                        error.kind()
                    );
                    lines.problem("here", text, fix);
                }
            }
        }
        Err(error) => lines.problem("here", one_line(&error), fix),
    }
}

fn check_port(config: &Config, agent: Option<u32>, lines: &mut Report) {
    let listen = config.admin.listen;
    match TcpListener::bind(listen) {
        Ok(_) => lines.ok("here", format!("the address {listen} is free for the admin API")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let lives = Client::connect(config).ok().flatten();
            let is_agent = lives.is_some_and(|client| client.get("/api/sync/health").is_ok());
            match (is_agent, agent) {
                (true, Some(_)) => lines.ok("here", format!("the agent answers on {listen}")),
                (true, None) => lines.problem(
                    "here",
                    format!("another agent, with a queue elsewhere, listens on {listen}"),
                    "give this one another port, in `admin.listen`",
                ),
                (false, _) => lines.problem(
                    "here",
                    format!("another program listens on {listen}, which the admin API is to have"),
                    "`ss -ltnp` names it; name a free port in `admin.listen`",
                ),
            }
        }
        Err(error) => lines.problem(
            "here",
            format!("the admin API cannot listen on {listen}: {}", error.kind()),
            "name an address of this machine, and a port above 1023, in `admin.listen`",
        ),
    }
}

/// Whether somebody is there; `outrigger alerts test` tells them something.
fn check_deliveries(config: &Config, lines: &mut Report) {
    let alerts = &config.alerts;
    for (what, key, url) in [
        ("the web hook", "alerts.webhook", &alerts.webhook),
        ("the heartbeat's far end", "alerts.heartbeat_url", &alerts.heartbeat_url),
    ] {
        let Some(url) = url else { continue };
        match reach(url) {
            Ok(()) => {
                lines.ok("here", format!("{what} {url} answers; `outrigger alerts test` tries it"));
            }
            Err(why) => lines.warning(
                "here",
                format!("{what} {url} does not answer: {why}"),
                format!("correct `{key}`, or mend the way there: else nobody is told"),
            ),
        }
    }
}
