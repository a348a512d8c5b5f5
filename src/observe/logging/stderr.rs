//! The one writer to stderr: a thread of its own, behind a buffer of bounded size.
//!
//! Whoever reads our stderr may stop reading: a container's log driver hangs, somebody pressed Ctrl-S. A full pipe
//! then holds only this thread. Lines that find no room are dropped whole and counted, and the count is told as a
//! line as soon as half of the buffer is free again: not earlier, so that a slow reader is not told of each gap.
//!
//! Weighed: `tracing-appender`. It bounds lines and not bytes, tells its count to nobody, and ends without what waits
//! when the process leaves by an `exit` or an `exec`.

use std::{
    cell::Cell,
    fs::File,
    io::{ErrorKind, Write},
    os::fd::AsFd,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::observe::words;

/// Most bytes that wait: a burst at `trace` of some ten thousand lines.
const ROOM: usize = 4 << 20;

/// What is written at once.
const PART: usize = 64 << 10;

/// How long a stderr that takes nothing for now is left alone.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Lines that wait, in the order in which they came.
#[derive(Debug, Default)]
struct Buffer {
    waiting: Vec<u8>,
    /// Of what the thread has taken, that is not written yet.
    in_hand: usize,
    /// Since the buffer was full: until half of it is free again nothing is taken.
    is_full: bool,
    /// Lines that were dropped and not told of yet.
    untold: u64,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    emptied: Condvar,
}

impl Shared {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock()
    }
}

thread_local! {
    /// This thread tells of what was dropped: for that line there is always room.
    static TELLS: Cell<bool> = const { Cell::new(false) };
}

/// The process's stderr. Cheap to clone; every clone is the same one.
#[derive(Clone, Debug)]
pub(super) struct Stderr(Arc<Shared>);

impl Stderr {
    pub fn get() -> Self {
        static STDERR: OnceLock<Stderr> = OnceLock::new();
        // Through a handle of its own, not the standard library's locked one: a write that hangs would hold that lock, and
        // a panic elsewhere would wait for it and never be printed.
        let open = || std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
        STDERR.get_or_init(|| Self::to(open())).clone()
    }

    /// Starts the thread. Where there is no stderr, nothing is written.
    fn to(out: std::io::Result<impl Write + Send + 'static>) -> Self {
        let shared = Arc::new(Shared::default());
        let Ok(out) = out else {
            return Self(shared);
        };
        let of_thread = shared.clone();
        // Without a thread nothing is written either: a program that cannot have one soon ends.
        let _ = std::thread::Builder::new()
            .name("outrigger-log".to_owned())
            .spawn(move || write_all(&of_thread, out));
        Self(shared)
    }

    /// Takes whole lines, or drops them; never waits.
    pub fn push(&self, lines: &[u8]) {
        let text = String::from_utf8_lossy(lines);
        let lines = words::told(&text);
        let lines = lines.as_bytes();
        let mut buffer = self.0.buffer();
        let has_room = buffer.waiting.len() + buffer.in_hand + lines.len() <= ROOM;
        buffer.is_full |= !has_room;
        if buffer.is_full && !TELLS.get() {
            buffer.untold += 1;
            buffer.dropped += 1;
            return;
        }
        buffer.waiting.extend_from_slice(lines);
        drop(buffer);
        self.0.filled.notify_one();
    }

    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.0.buffer().dropped
    }

    /// Waits until everything is written, at most so long.
    pub fn flush(&self, within: Duration) {
        tell(&self.0);
        let until = Instant::now() + within;
        let mut buffer = self.0.buffer();
        while !buffer.waiting.is_empty() || buffer.in_hand > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            self.0.emptied.wait_for(&mut buffer, left);
        }
    }
}

/// What `tracing` formats into: each line comes as one whole.
impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says how many lines are missing here, if any are.
fn tell(shared: &Shared) {
    let dropped = {
        let mut buffer = shared.buffer();
        buffer.is_full = false;
        std::mem::take(&mut buffer.untold)
    };
    if dropped > 0 {
        TELLS.set(true);
        tracing::error!(
            dropped,
            "lines of the log were dropped here: whoever reads it did not keep up"
        );
        TELLS.set(false);
    }
}

/// The thread: for as long as the process lives.
fn write_all(shared: &Shared, mut out: impl Write) {
    loop {
        let taken = {
            let mut buffer = shared.buffer();
            while buffer.waiting.is_empty() {
                shared.filled.wait(&mut buffer);
            }
            let taken = std::mem::take(&mut buffer.waiting);
            buffer.in_hand = taken.len();
            taken
        };
        for part in taken.chunks(PART) {
            let lost = write(&mut out, part);
            let mut buffer = shared.buffer();
            buffer.in_hand -= part.len();
            buffer.untold += lost;
            buffer.dropped += lost;
            let left = buffer.waiting.len() + buffer.in_hand;
            // What a write that failed has lost is told once one succeeds.
            let is_owed = lost == 0 && buffer.untold > 0 && left <= ROOM / 2;
            drop(buffer);
            if is_owed {
                tell(shared);
            } else if left == 0 {
                shared.emptied.notify_all();
            }
        }
    }
}

/// Writes as much of `part` as can be; returns how many lines were lost with the rest.
fn write(out: &mut impl Write, mut part: &[u8]) -> u64 {
    while !part.is_empty() {
        match out.write(part) {
            Ok(n) if n > 0 => part = &part[n..],
            // Another program that shares the terminal or socket has set it to `O_NONBLOCK`.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN_AFTER),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Nobody reads any more, or the disk is full.
            Ok(_) | Err(_) => return part.split_inclusive(|byte| *byte == b'\n').count() as u64,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A far end that takes a part only when it is told to.
    struct Slow {
        may: Receiver<()>,
        got: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            // Once nobody tells any more, everything is taken.
            let _ = self.may.recv();
            let _ = self.got.send(part.to_vec());
            Ok(part.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Stderr, Sender<()>, Receiver<Vec<u8>>) {
        let ((go, may), (got, parts)) = (channel(), channel());
        (Stderr::to(Ok(Slow { may, got })), go, parts)
    }

    #[test]
    fn a_far_end_that_takes_nothing_holds_nobody_and_what_finds_no_room_is_counted() {
        let (stderr, go, parts) = slow();
        let line = [&b"x".repeat(1023)[..], b"\n"].concat();

        for _ in 0..2 * ROOM / line.len() {
            stderr.push(&line);
        }

        let dropped = stderr.dropped();
        assert_eq!(dropped, (ROOM / line.len()) as u64);
        // Bounded also where nothing moves.
        stderr.flush(Duration::from_millis(10));
        drop(go);
        stderr.flush(Duration::from_secs(60));
        let written: usize = parts.try_iter().map(|part| part.len()).sum();
        assert_eq!(written, ROOM);
        stderr.push(b"again\n");
        stderr.flush(Duration::from_secs(60));
        assert_eq!(parts.try_iter().collect::<Vec<_>>(), [b"again\n".to_vec()]);
        assert_eq!(stderr.dropped(), dropped);
    }

    #[test]
    fn a_far_end_that_fails_loses_the_lines_of_that_moment_only() {
        struct Full(bool, Sender<Vec<u8>>);
        impl Write for Full {
            fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
                if std::mem::take(&mut self.0) {
                    return Err(ErrorKind::StorageFull.into());
                }
                let _ = self.1.send(part.to_vec());
                Ok(part.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (got, parts) = channel();
        let stderr = Stderr::to(Ok(Full(true, got)));

        stderr.push(b"lost\n");
        stderr.flush(Duration::from_secs(60));
        stderr.push(b"kept\n");
        stderr.flush(Duration::from_secs(60));

        assert_eq!(stderr.dropped(), 1);
        assert_eq!(parts.try_iter().collect::<Vec<_>>(), [b"kept\n".to_vec()]);
    }
}
