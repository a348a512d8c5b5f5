//! Opening the queue, and what to do with one that does not open.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sled::Batch as SledBatch;

use super::{
    CodecError, Entry, Queue, QueueError, codec,
    store::{CHECKPOINT, DEAD, ENTRY, FORMAT, State, entry_key, seq_of},
};

/// How long to wait for another process that is just leaving, or for sled's own threads, which let go
/// of the lock a moment after a queue is dropped.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);

/// How to open a queue.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// The directory, made if it is not there (mode 0700).
    pub path: PathBuf,
    /// False: the directory is removed when the queue is closed.
    pub persist: bool,
    /// Bytes that sled may use as its page cache.
    pub cache_bytes: u64,
}

impl QueueOptions {
    /// A persistent queue in `path` with a cache of 64 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), persist: true, cache_bytes: 64 << 20 }
    }
}

/// Where a broken queue was moved to, and what was wrong with it.
#[derive(Debug)]
pub struct Rebuilt {
    pub moved_to: PathBuf,
    pub error: QueueError,
}

impl Queue {
    /// Opens the queue; one that does not open, or fails its checks, is moved aside and a new one is
    /// made in its place. Nothing is deleted. The new queue has no checkpoint, so that the caller
    /// compares everything and nothing is lost.
    ///
    /// # Errors
    /// [`QueueError::InUse`] and [`QueueError::Unusable`]: a new queue would fare no better.
    pub fn open_or_rebuild(options: &QueueOptions) -> Result<(Queue, Option<Rebuilt>), QueueError> {
        match Queue::open(options) {
            Ok(queue) => Ok((queue, None)),
            Err(error) if error.is_damage() => {
                let moved_to = free_name_beside(&options.path);
                fs::rename(&options.path, &moved_to).map_err(|source| QueueError::Unusable {
                    path: options.path.display().to_string(),
                    source,
                })?;
                let queue = Queue::open(options)?;
                Ok((queue, Some(Rebuilt { moved_to, error })))
            }
            Err(error) => Err(error),
        }
    }
}

fn free_name_beside(path: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (0..)
        .map(|n| match n {
            0 => path.with_file_name(format!("{name}.broken-{seconds}")),
            n => path.with_file_name(format!("{name}.broken-{seconds}-{n}")),
        })
        .find(|candidate| !candidate.exists())
        .expect("some number is free")
}

/// Opens sled in `options.path`.
pub(super) fn open_sled(options: &QueueOptions) -> Result<sled::Db, QueueError> {
    let path = options.path.display().to_string();
    let unusable = |source| QueueError::Unusable { path: path.clone(), source };
    if !options.path.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&options.path)
            .map_err(unusable)?;
    }
    // The queue holds the application's documents: nobody else's business.
    fs::set_permissions(&options.path, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    let config = sled::Config::default()
        .path(&options.path)
        .temporary(!options.persist)
        .cache_capacity(options.cache_bytes)
        .mode(sled::Mode::HighThroughput);
    let mut opened = guarded(|| config.open())?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    while is_locked(&opened) && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(20));
        opened = guarded(|| config.open())?;
    }
    match opened {
        Ok(db) => Ok(db),
        result if is_locked(&result) => Err(QueueError::InUse { path }),
        Err(sled::Error::Io(error)) => match error.kind() {
            std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ReadOnlyFilesystem
            | std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::NotADirectory => Err(unusable(error)),
            // sled says with `Other`, `InvalidData` or `UnexpectedEof` that its files make no sense.
            _ => Err(QueueError::Storage(error.to_string())),
        },
        Err(error) => Err(QueueError::Storage(error.to_string())),
    }
}

/// sled reports a lock that another process holds as an I/O error with this text (sled 0.34.7,
/// `config.rs`, `try_lock`).
fn is_locked(opened: &Result<sled::Db, sled::Error>) -> bool {
    matches!(opened, Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock"))
}

/// Runs `action` on files that may be damaged. sled 0.34 asserts where it should return: a panic in
/// here means damage, not a bug of ours.
pub(super) fn guarded<T>(action: impl FnOnce() -> T) -> Result<T, QueueError> {
    catch_unwind(AssertUnwindSafe(action)).map_err(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        QueueError::Storage(format!("sled gave up on its files: {message}"))
    })
}

/// Reads the whole queue once.
pub(super) fn load(db: &sled::Db) -> Result<State, QueueError> {
    match db.get(FORMAT)? {
        Some(version) if *version == [codec::FORMAT_VERSION] => {}
        Some(version) => {
            let version = version.first().copied().unwrap_or(0);
            return Err(CodecError::UnknownVersion(version).into());
        }
        None if db.is_empty() => {
            db.insert(FORMAT, &[codec::FORMAT_VERSION])?;
        }
        None => return Err(CodecError::Damaged("no format version".into()).into()),
    }
    if let Some(value) = db.get(CHECKPOINT)? {
        codec::decode_checkpoint(&value)?;
    }
    let mut state = State::default();
    let mut merged = SledBatch::default();
    for item in db.scan_prefix([ENTRY]) {
        let (key, value) = item?;
        let entry = codec::decode_entry(seq_of(&key), &value)?;
        state.restore(db, entry, value.len(), &mut merged)?;
    }
    for item in db.scan_prefix([DEAD]) {
        let (key, value) = item?;
        let letter = codec::decode_dead_letter(seq_of(&key), &value)?;
        if let Some(name) = state.name_of(&letter.entry.work) {
            state.dead.insert(name, seq_of(&key));
        }
        state.dead_len += 1;
        state.next_seq = state.next_seq.max(seq_of(&key) + 1);
    }
    db.apply_batch(merged)?;
    Ok(state)
}

impl State {
    fn restore(
        &mut self,
        db: &sled::Db,
        entry: Entry,
        bytes: usize,
        merged: &mut SledBatch,
    ) -> Result<(), QueueError> {
        let seq = entry.seq;
        self.next_seq = seq + 1;
        let name = self.name_of(&entry.work);
        let mut previous = None;
        // The process ended while the document's first entry was leased: merge the two now (I2).
        if let Some(name) = &name
            && let Some(first) = self.index.find(name, |seq| -> Result<bool, QueueError> {
                let Some(value) = db.get(entry_key(seq))? else { return Ok(false) };
                Ok(self.name_of(&codec::decode_entry(seq, &value)?.work).as_ref() == Some(name))
            })?
        {
            previous = Some(first);
        }
        if let Some(first) = previous
            && !self.schedule.is_closed(entry.work.ns(), first)
        {
            let value = db.get(entry_key(first))?.expect("the index names entries that exist");
            let mut older = codec::decode_entry(first, &value)?;
            older.absorb(entry.into_later());
            let encoded = codec::encode_entry(&older);
            self.pending_bytes = self.pending_bytes + encoded.len() as u64 - value.len() as u64;
            merged.insert(&entry_key(first), encoded);
            merged.remove(&entry_key(seq));
            return Ok(());
        }
        self.pending += 1;
        self.pending_bytes += bytes as u64;
        self.appeared(name.as_ref(), &entry.work, seq);
        if let Some(name) = &name {
            self.index.set(name, previous, seq);
        }
        Ok(())
    }
}
