//! The queue's folder and its files: whose they are, and opening them.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::QueueError;

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
    /// Compact the files if most of them is empty. For the agent: another user's command would make
    /// them its own.
    pub compact: bool,
    /// Bytes that sled may use as its page cache.
    pub cache_bytes: u64,
}

impl QueueOptions {
    /// A persistent queue in `path` with a cache of 64 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), persist: true, compact: false, cache_bytes: 64 << 20 }
    }
}

/// Moves a queue beside its place, or, where that cannot be, since the folder is a mount point or the one
/// above it is not ours, its files into a folder within.
pub(super) fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = free_name(&path.with_file_name(format!("{name}.{BROKEN}")));
    // One that is not to persist has removed itself when it was closed.
    if fs::rename(path, &beside).is_ok() || !path.exists() {
        return Ok(beside);
    }
    let within = free_name(&path.join(BROKEN));
    fs::create_dir(&within)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(BROKEN) {
            fs::rename(entry.path(), within.join(entry.file_name()))?;
        }
    }
    Ok(within)
}

/// How the names of queues that were moved aside begin.
const BROKEN: &str = "broken-";

/// `start` with the time, and a number if need be, so that the name is free.
fn free_name(start: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let start = format!("{}{seconds}", start.display());
    (0..u32::MAX)
        .map(|n| match n {
            0 => PathBuf::from(&start),
            n => PathBuf::from(format!("{start}-{n}")),
        })
        .find(|candidate| !candidate.exists())
        .expect("some number is free")
}

/// Makes the queue's folder if need be, and takes it for this process. sled has a lock of its own, which
/// it does not hold while its files are exchanged.
///
/// # Errors
/// [`QueueError::InUse`] when another process has it, [`QueueError::Unusable`] when it cannot be written.
pub(super) fn lock(options: &QueueOptions) -> Result<fs::File, QueueError> {
    let folder = options.path.as_path();
    let path = folder.display().to_string();
    let unusable = |source| QueueError::Unusable { path: path.clone(), source };
    if !folder.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        // Made by root within a service's own folder, it is the service's.
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Ok(parent) = fs::metadata(parent.unwrap_or(Path::new(".")))
            && rustix::process::geteuid().is_root()
            && parent.uid() != 0
        {
            let _ = std::os::unix::fs::chown(folder, Some(parent.uid()), Some(parent.gid()));
        }
    }
    // The queue holds the application's documents: nobody else's business.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    // Never through a link: its owner could have it lead anywhere, and root may be the one who opens it.
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(folder.join("lock"))
        .map_err(unusable)?;
    // Made by root, it must not keep the agent's own user out.
    if let (Ok(owner), Ok(own)) = (fs::metadata(folder), file.metadata())
        && owner.uid() != own.uid()
    {
        let _ = std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()));
    }
    // A command of the CLI may be looking at it just now; an agent that starts waits for that.
    let give_up = Instant::now() + if options.compact { 8 * LOCK_PATIENCE } else { LOCK_PATIENCE };
    let mut seen = None;
    loop {
        match file.try_lock() {
            Ok(()) => {
                note_holder(&file, options.compact).map_err(unusable)?;
                restrict_files(folder);
                return Ok(file);
            }
            Err(fs::TryLockError::Error(error)) => return Err(unusable(error)),
            Err(fs::TryLockError::WouldBlock) => {
                let agent = noted_in(folder);
                // An agent does not end by itself, so that another one need not wait. Twice the same: what stands there
                // may be of the one before, until the one that has just taken the lock has written.
                let is_agent = options.compact && agent.is_some() && seen == Some(agent);
                if is_agent || Instant::now() >= give_up {
                    return Err(QueueError::InUse { path, agent });
                }
                seen = Some(agent);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Notes who has the lock: an agent, or a command that is soon done.
fn note_holder(file: &fs::File, is_agent: bool) -> std::io::Result<()> {
    let text = if is_agent { format!("agent {}\n", std::process::id()) } else { String::new() };
    file.set_len(0)?;
    file.write_all_at(text.as_bytes(), 0)
}

/// The agent that has the lock, as it says: another process than this one, whose lock of before may just be let go.
pub(super) fn noted_in(folder: &Path) -> Option<u32> {
    let text = fs::read_to_string(folder.join("lock")).ok()?;
    let id = text.strip_prefix("agent ")?.trim().parse().ok()?;
    (id != std::process::id()).then_some(id)
}

/// The agent that works with a queue just now, found out without taking it.
pub fn agent_in(folder: &Path) -> Option<u32> {
    let file = fs::File::open(folder.join("lock")).ok()?;
    // Its note stays when it ends.
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => noted_in(folder),
        Ok(()) | Err(fs::TryLockError::Error(_)) => None,
    }
}

/// Files of an earlier version, or of one that was embedded, may be readable by others.
fn restrict_files(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            restrict_files(&entry.path());
        } else if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
            // Another owner's file stays as it is, within a folder that nobody else can enter.
            let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600));
        }
    }
}

/// What root has made in somebody else's queue, in practice by `outrigger status` beside a service that is down,
/// must not keep its owner out.
pub(super) fn hand_over(folder: &Path) {
    let Ok(owner) = fs::metadata(folder) else { return };
    if owner.uid() == 0 || !rustix::process::geteuid().is_root() {
        return;
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            // A second name for a file elsewhere is not ours to give away.
            let is_ours = metadata.is_dir() || (metadata.is_file() && metadata.nlink() == 1);
            if is_ours && metadata.uid() != owner.uid() {
                let _ =
                    std::os::unix::fs::lchown(entry.path(), Some(owner.uid()), Some(owner.gid()));
            }
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
}

/// sled writes in pieces of this size, and values of more than a quarter of it, or leaves, into files of their own.
/// With its default of 512 KiB a leaf of full blocks would be one, and with 1 MiB one of full
/// [pieces](super::layout::PIECE_MAX). It keeps up to four buffers of this size. A store of another size does not
/// open.
const SEGMENT_BYTES: usize = 2 << 20;

/// A snapshot that a kill has cut off, which sled (0.34.7) would read as a whole one, and call its files damaged. The one
/// before it, or the log alone, says the same.
fn remove_begun_snapshots(path: &Path) -> std::io::Result<()> {
    // sled makes the folder, where it is to be written anew.
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Opens sled in `options.path`.
pub(super) fn open_sled(options: &QueueOptions) -> Result<sled::Db, QueueError> {
    let path = options.path.display().to_string();
    let unusable = |source| QueueError::Unusable { path: path.clone(), source };
    let config = sled::Config::default()
        .path(&options.path)
        .temporary(!options.persist)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(options.cache_bytes)
        .mode(sled::Mode::HighThroughput);
    remove_begun_snapshots(&options.path).map_err(unusable)?;
    let mut opened = guarded(|| config.open())?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    while is_locked(&opened) && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(20));
        opened = guarded(|| config.open())?;
    }
    match opened {
        Ok(db) => Ok(db),
        result if is_locked(&result) => {
            Err(QueueError::InUse { path, agent: noted_in(&options.path) })
        }
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
