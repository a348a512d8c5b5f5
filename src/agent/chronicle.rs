//! The history of the charts outlives the agent: a small file in the queue's folder, read at the start, written every
//! minute and at the end. It is there to be looked at: one that cannot be used is a line in the log, and a new one
//! begins.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Handles, Monitor};
use crate::{
    config::Config,
    observe::{
        report::one_line,
        trend::{BYTES_MAX, History},
    },
    runtime::{clock::now_ms, files, shutdown::blocking},
};

/// Its name in the queue's folder.
const NAME: &str = "charts.json";

/// How often it is written.
const EVERY: Duration = Duration::from_secs(60);

fn path(config: &Config) -> Option<PathBuf> {
    // A folder that goes with the agent keeps nothing.
    config.queue.persist.then(|| config.queue.path.join(NAME))
}

/// Goes on with the history of an earlier life. Reads the disk.
pub(super) fn take_up(monitor: &Monitor, config: &Config) {
    let now = now_ms();
    let kept = path(config).and_then(|path| read(&path));
    let restored = kept.map(|bytes| History::restored(&bytes, now)).transpose();
    let mut history = restored.unwrap_or_else(|error| {
        let error = one_line(&error);
        tracing::warn!(%error, "the history of the charts cannot be used and begins anew");
        None
    });
    let history = history.get_or_insert_default();
    history.restarted(now);
    *monitor.history() = std::mem::take(history);
}

/// No more than a history can have, so that whatever lies there costs nothing.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = BYTES_MAX as u64 + 1;
    match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, "the history of the charts cannot be read and begins anew");
            None
        }
    }
}

/// Keeps it as it is now. Writes the disk.
pub(super) fn keep(monitor: &Monitor, config: &Config) {
    let Some(path) = path(config) else { return };
    let bytes = monitor.history().to_bytes();
    // Whoever needs the disk tells of it.
    if let Err(error) = files::replace(&path, &bytes) {
        tracing::debug!(%error, "the history of the charts is not kept");
    }
}

/// Keeps it every minute: beside everything else, which a slow disk must not hold up.
pub(super) async fn keep_on(handles: Handles) {
    loop {
        tokio::time::sleep(EVERY).await;
        let handles = handles.clone();
        blocking(move || keep(&handles.monitor, &handles.config)).await;
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::observe::trend::{Sample, Totals};

    fn config(dir: &TempDir) -> Config {
        let mut config = Config::default();
        config.queue.path = dir.path().to_owned();
        config
    }

    #[test]
    fn the_history_goes_on_after_a_restart() {
        let dir = TempDir::new().unwrap();
        let (config, monitor) = (config(&dir), Monitor::default());
        let sample = Sample { at_ms: now_ms() - 5_000, pending: 7, ..Sample::default() };
        monitor.history().add(sample, Totals::default());
        keep(&monitor, &config);

        let next = Monitor::default();
        take_up(&next, &config);

        assert_eq!(next.history().last().map(|last| last.pending), Some(7));
        let from = next.history().marks().next().map(|mark| mark.from_ms);
        assert_eq!(from, Some(sample.at_ms), "when it was last seen to run");
    }

    #[test]
    fn one_that_cannot_be_used_is_no_error() {
        let dir = TempDir::new().unwrap();
        let config = config(&dir);
        let deep = vec![b'['; 2 << 20];
        for broken in [&b""[..], b"\xff", b"{\"version\":99}", b"[]", &deep] {
            std::fs::write(dir.path().join(NAME), broken).unwrap();
            let monitor = Monitor::default();
            take_up(&monitor, &config);
            assert_eq!(monitor.history().samples().len(), 0);
            keep(&monitor, &config);
            take_up(&monitor, &config);
        }
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        std::fs::create_dir(dir.path().join(NAME)).unwrap();
        take_up(&Monitor::default(), &config);
        keep(&Monitor::default(), &config);
    }
}
