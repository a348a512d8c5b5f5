//! CPU seconds and peak memory of processes, as the kernel counts them.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// `USER_HZ`: the unit of times in `/proc`, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that begins anew by `exec`, or ends, loses its peak, so it is looked at now and then.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// User and system time of a process and its threads since it was born, and of its children: PostgreSQL has one for each
/// connection.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let live = children(pid).into_iter().filter_map(own_seconds);
    Some(own_seconds(pid)? + live.sum::<f64>())
}

/// Those of its first thread that live.
pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// With the children that have ended.
fn own_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state is the third field, utime the 14th, then stime, cutime, cstime.
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    (ticks.len() == 4).then(|| ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// A line of `/proc/PID/status` that is in kB, in MB.
pub fn memory(pid: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kb| kb * 1024.0 / 1e6)
}

/// Whose figures they are.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub name: &'static str,
    pub pid: u32,
}

struct Watched {
    process: Process,
    cpu_before: f64,
    cpu: f64,
    peak: f64,
}

impl Watched {
    fn look(&mut self) {
        let pid = self.process.pid;
        // It may have ended; what was seen last stands.
        self.cpu = cpu_seconds(pid).unwrap_or(self.cpu);
        self.peak = self.peak.max(memory(pid, "VmHWM").unwrap_or(0.0));
    }
}

/// What one process took meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub name: &'static str,
    pub cpu_seconds: f64,
    pub peak_mb: f64,
}

/// What one step took.
#[derive(Clone, Debug)]
pub struct Usage {
    pub elapsed: Duration,
    pub costs: Vec<Cost>,
}

impl Usage {
    pub fn cpu(&self, name: &str) -> f64 {
        self.costs.iter().find(|cost| cost.name == name).map_or(0.0, |cost| cost.cpu_seconds)
    }

    pub fn peak(&self, name: &str) -> f64 {
        self.costs.iter().find(|cost| cost.name == name).map_or(0.0, |cost| cost.peak_mb)
    }
}

/// Watches processes from its beginning to [`stop`](Self::stop).
pub struct Meter {
    started: Instant,
    watched: Arc<Mutex<Vec<Watched>>>,
    is_over: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Meter {
    /// Starts with processes that run already: their peaks are forgotten first.
    pub fn start(processes: &[Process]) -> Self {
        let watched = processes.iter().map(|process| {
            // 5: the peak begins anew at what is used now.
            let _ = fs::write(format!("/proc/{}/clear_refs", process.pid), "5");
            let cpu_before = cpu_seconds(process.pid).unwrap_or(0.0);
            Watched { process: *process, cpu_before, cpu: cpu_before, peak: 0.0 }
        });
        let watched = Arc::new(Mutex::new(watched.collect::<Vec<_>>()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (seen, over) = (watched.clone(), is_over.clone());
        let looking = std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                seen.lock().unwrap().iter_mut().for_each(Watched::look);
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Self { started: Instant::now(), watched, is_over, looking: Some(looking) }
    }

    /// A process that was born just now: all that it ever takes counts.
    pub fn born(&self, process: Process) {
        let watched = Watched { process, cpu_before: 0.0, cpu: 0.0, peak: 0.0 };
        self.watched.lock().unwrap().push(watched);
    }

    /// The end, while all of them still run.
    pub fn stop(self) -> Usage {
        let elapsed = self.started.elapsed();
        let mut watched = self.watched.lock().unwrap();
        let costs = watched.iter_mut().map(|watched| {
            watched.look();
            Cost {
                name: watched.process.name,
                cpu_seconds: watched.cpu - watched.cpu_before,
                peak_mb: watched.peak,
            }
        });
        Usage { elapsed, costs: costs.collect() }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(looking) = self.looking.take() {
            let _ = looking.join();
        }
    }
}
