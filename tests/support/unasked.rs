//! What an agent did that its test did not ask for. A comparison mends whatever replication has missed, a retry what was
//! written wrong, a new queue what the old one lost: all end equal, and a test that looks at the end alone has seen nothing.
//! So whoever drops an agent is told, unless the test has named a reason ([`Agent::may`](super::agent::Agent::may)).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::{Duration, Instant},
};

use mongodb::bson::rawdoc;

use super::{
    ends::{ask, is_copied},
    odd,
};

/// What is no part of replication that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unasked {
    /// A comparison found a difference that nobody had made in Atlas.
    Repair,
    /// Everything, or some collections, were compared because of a doubt.
    Doubt,
    /// Atlas rejected a write, which was tried again.
    Retries,
    /// Atlas rejected a write for good.
    DeadLetters,
    /// The queue was moved aside, or its storage failed.
    NewQueue,
    /// A part of the program has panicked, or hung.
    Panic,
    /// More memory than a small machine has to spare.
    Memory,
    /// More files and connections than a few for each task.
    Handles,
    /// Cursors on a server, more than at its start once it has ended, or more than a few for each task.
    Cursors,
}

/// Why comparisons run that are no doubt: their reasons, as the log has them.
const ASKED_FOR: [&str; 7] = [
    "the first copy",
    "it was asked for",
    "`sync.verify_every`",
    "this Atlas was not the target before",
    "the replicated namespaces have changed",
    "the queue was cleared",
    "a queue was imported",
];
/// A build for tests, with its queue; the README promises less of a release.
const MEMORY_MIB: u64 = 400;
const HANDLES: usize = 150;
/// The stream's, and one for each collection that is copied or compared at once.
const CURSORS: i64 = 20;

/// What a process is told of, before it ends.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    peak_mib: u64,
    handles: usize,
    /// By the names that Prometheus reads.
    counters: BTreeMap<String, f64>,
}

impl Figures {
    /// Of a process that runs. It is asked itself only where that makes no difference to the test.
    pub fn of(pid: u32, admin_port: Option<u16>) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        // One that is stopped, or waited for already, answers nothing.
        let is_awake = status.lines().any(|line| {
            line.strip_prefix("State:").is_some_and(|state| !state.trim().starts_with(['T', 'Z']))
        });
        let page = admin_port.filter(|_| is_awake).and_then(|port| ask(port, "/metrics"));
        let page = page.unwrap_or_default();
        let figure = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self {
            peak_mib: peak.unwrap_or_default() / 1024,
            handles: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            counters: page.lines().filter_map(figure).collect(),
        }
    }

    fn sum(&self, name: &str) -> f64 {
        let of = |key: &&String| key.split('{').next() == Some(name);
        let keys = self.counters.keys().filter(of);
        keys.map(|key| self.counters[key]).sum()
    }

    /// In words, each with its kind.
    pub fn unasked(&self) -> Vec<(Unasked, String)> {
        let mut found = Vec::new();
        let retries = self.sum("outrigger_retries_total");
        if retries > 0.0 {
            found.push((Unasked::Retries, format!("{retries} retries")));
        }
        let letters = self.sum("outrigger_dead_letters_total");
        if letters > 0.0 {
            found.push((Unasked::DeadLetters, format!("{letters} dead letters")));
        }
        if self.peak_mib > MEMORY_MIB {
            found.push((Unasked::Memory, format!("{} MiB at its peak", self.peak_mib)));
        }
        if self.handles > HANDLES {
            found.push((Unasked::Handles, format!("{} files open at its end", self.handles)));
        }
        found
    }
}

/// What a log tells of it. Both as text and as JSON.
pub fn told(log: &str) -> Vec<(Unasked, String)> {
    let mut found = Vec::new();
    for line in log.lines() {
        let mut say = |what| found.push((what, line.trim().to_owned()));
        if line.contains("a full sync has ended") {
            let is_one = |name| number(line, name).is_some_and(|n| n > 0);
            if ["missing", "extra", "content"].into_iter().any(is_one) {
                say(Unasked::Repair);
            }
        } else if line.contains("a full sync begins") {
            if !ASKED_FOR.iter().any(|reason| line.contains(reason)) {
                say(Unasked::Doubt);
            }
        } else if line.contains("moved aside") || line.contains("the queue failed") {
            say(Unasked::NewQueue);
        } else if ["panicked at", "has panicked", "the agent is stuck"]
            .iter()
            .any(|said| line.contains(said))
        {
            say(Unasked::Panic);
        }
    }
    found
}

/// The value of a field, `missing=3` or `"missing":3`.
fn number(line: &str, field: &str) -> Option<u64> {
    let mut places = line.match_indices(field);
    places.find_map(|(at, _)| {
        let rest = line[at + field.len()..].trim_start_matches(['"', ':', '=']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}

/// The cursors that these servers have open, of whomever: none tells whose it is. A server that is away, or that lets in nobody
/// without a password, is left out.
pub struct Cursors(BTreeMap<u16, i64>);

impl Cursors {
    pub fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        Self(ports.into_iter().filter_map(|port| Some((port, open_cursors(port)?))).collect())
    }

    /// Of a process that has ended in order, which had these at its start: what it has left, where no other agent runs. Somebody
    /// else may have one open for a moment.
    pub fn left(mut self) -> Option<(Unasked, String)> {
        self.0.retain(|port, _| !is_copied(*port));
        self.beyond(0, "left at its end")
    }

    /// Of a process that runs, which had these at its start.
    pub fn too_many(&self) -> Option<(Unasked, String)> {
        self.beyond(CURSORS, "more than at its start")
    }

    fn beyond(&self, most: i64, words: &str) -> Option<(Unasked, String)> {
        let give_up = Instant::now() + Duration::from_secs(3);
        loop {
            let now = Self::of(self.0.keys().copied());
            let more = |(port, open): (&u16, &i64)| open - self.0.get(port).unwrap_or(open);
            let most_of_all = now.0.iter().map(more).max().filter(|more| *more > most)?;
            if Instant::now() > give_up {
                return Some((Unasked::Cursors, format!("{most_of_all} cursors {words}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn open_cursors(port: u16) -> Option<i64> {
    let patience = Duration::from_secs(1);
    let status = rawdoc! { "serverStatus": 1 };
    let told = odd::ask_within(patience, port, b"admin", &status).ok()?;
    let open = told.get_document("metrics").ok()?.get_document("cursor").ok()?;
    open.get_document("open").ok()?.get_i64("total").ok()
}

/// What is left of it once the reasons of the test are taken into account, one line each. With `OUTRIGGER_TEST_NOTES` it is
/// written to that file and nothing is left, to find out what the tests of a file have to name.
pub fn left<'a>(
    found: impl IntoIterator<Item = &'a (Unasked, String)>,
    may: &BTreeMap<Unasked, &'static str>,
) -> Vec<String> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let notes = super::from_env::<String>("OUTRIGGER_TEST_NOTES");
    // Outside of any test, such as the demo, nobody has named a reason.
    let is_asked = notes.is_some() || test.contains("::");
    // What is compared for a doubt, or because the queue is new, may be found to differ.
    let is_compared = [Unasked::Doubt, Unasked::NewQueue].iter().any(|what| may.contains_key(what));
    let is_named =
        |what: Unasked| may.contains_key(&what) || (what == Unasked::Repair && is_compared);
    let counts = |what: Unasked| !is_named(what) && (is_asked || what == Unasked::Panic);
    let found: BTreeSet<_> = found.into_iter().filter(|(what, _)| counts(*what)).collect();
    let found = found.into_iter().map(|(what, told)| format!("{what:?}: {told}"));
    let Some(notes) = notes else { return found.collect() };
    let mut notes = std::fs::File::options().append(true).create(true).open(notes).unwrap();
    for line in found {
        writeln!(notes, "{test}\t{line}").unwrap();
    }
    Vec::new()
}
