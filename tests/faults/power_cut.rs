//! What the queue's files are when its process is killed behind any call that changes one of them, or when the power goes:
//! while changes are committed and settled, while the files are written anew, while it is cleared, moved to another machine,
//! or put aside. Each is done once by a process of its own, whose calls are written down (`support::calls`).

use std::{collections::BTreeMap, path::Path, process::Command, sync::mpsc, time::Duration};

use mongodb::bson::{RawDocumentBuf, rawdoc};
use outrigger::{
    model::{
        checkpoint::{Checkpoint, ClusterTime, PositionKind, ResumeToken},
        delta::Delta,
        document_key::DocumentKey,
        namespace::Namespace,
        write_op::{Refusal, WriteOp},
    },
    queue::{
        Ack, Entry, Incoming, Outcome, Queue, QueueError, QueueOptions, Work,
        transfer::{Whole, read},
    },
    sync::state::{Reason, SyncState},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    calls::{Calls, End, library},
    copy_dir,
    proof::{Need, not_proved},
    seed,
};

/// Set for this program, which is run once more: what to do, and the folder.
const DOES: &str = "OUTRIGGER_TEST_CUT";
const WITHIN: &str = "OUTRIGGER_TEST_CUT_IN";

fn change(id: i64, op: WriteOp) -> Incoming {
    let key = DocumentKey::of(&rawdoc! { "_id": id }).unwrap();
    let work = Work::Document { ns: Namespace::new("shop", "orders"), key, op, collection: None };
    Incoming { work, cluster_time: ClusterTime(1), wall_ms: 1 }
}

fn insert(id: i64, v: i64, filler: &str) -> Incoming {
    change(id, WriteOp::Insert(rawdoc! { "_id": id, "v": v, "filler": filler }))
}

fn set(id: i64, v: i64) -> Incoming {
    change(id, WriteOp::Update(Delta::from_diff(&rawdoc! { "u": { "v": v } }).unwrap()))
}

fn checkpoint(n: i64) -> Checkpoint {
    Checkpoint {
        anchor: ClusterTime(n as u64),
        kind: PositionKind::CLUSTER_TIME,
        token: ResumeToken(rawdoc! { "_data": format!("{n}") }),
        cluster_time: ClusterTime(n as u64),
        source_id: "rs".into(),
        pipeline: "p".into(),
    }
}

fn options(within: &Path, compact: bool) -> QueueOptions {
    QueueOptions { compact, ..QueueOptions::new(within.join("queue")) }
}

fn open(within: &Path) -> Queue {
    Queue::open(&options(within, false)).unwrap()
}

/// What it holds, by `_id`; and how far it was read.
type Held = (BTreeMap<i64, RawDocumentBuf>, Option<i64>);

fn held(queue: &Queue) -> Held {
    let mut found = BTreeMap::new();
    for entry in queue.entries() {
        let entry = entry.unwrap();
        let Work::Document { op, .. } = &entry.work else { panic!("{entry:?}") };
        let WriteOp::Insert(document) = op else { panic!("{entry:?}") };
        found.insert(id_of(&entry), document.clone());
    }
    let at = queue.checkpoint().unwrap().map(|at| at.anchor.0 as i64);
    (found, at)
}

fn id_of(entry: &Entry) -> i64 {
    entry.work.document_id().as_i64().unwrap()
}

fn ack(queue: &Queue, outcome: impl Fn(i64) -> Outcome) {
    let batch = queue.lease(40, usize::MAX, 0).unwrap();
    let acked = |entry: &Entry| {
        let Entry { seq, version, .. } = *entry;
        Ack { seq, version, outcome: outcome(id_of(entry)) }
    };
    queue.ack(&batch.entries.iter().map(acked).collect::<Vec<_>>()).unwrap();
}

fn refused() -> Outcome {
    Outcome::Rejected { reason: "validation".into(), refusal: Refusal::Validation, now_ms: 5 }
}

/// What the process does whose calls are written down.
fn does(what: &str, within: &Path) {
    match what {
        "work" => {
            let queue = open(within);
            for n in 1..=240 {
                let changed = (1..20).filter(|back| n > *back).map(|back| set(n - back, n));
                let ops = std::iter::once(insert(n, n, "some text")).chain(changed).collect();
                queue.commit(ops, Some(&checkpoint(n))).unwrap();
                if n % 8 == 0 {
                    ack(&queue, |id| match id {
                        _ if id % 3 == 0 => Outcome::Applied,
                        _ if id % 5 == 0 => refused(),
                        _ => Outcome::Unavailable { due_ms: 0 },
                    });
                }
                if n % 60 == 0 {
                    queue.flush().unwrap();
                    // sled's own thread syncs twice a second.
                    std::thread::sleep(Duration::from_millis(700));
                }
            }
        }
        "anew" => drop(Queue::open(&options(within, true)).unwrap()),
        "clear" => {
            let queue = open(within);
            SyncState::require(&queue, ClusterTime(1), Reason::Cleared).unwrap();
            queue.flush().unwrap();
            queue.clear().unwrap();
        }
        "move" => {
            let file = || std::fs::File::open(within.join("exported")).unwrap();
            let header = read(file(), |_| Ok(())).unwrap();
            open(within).move_in(file(), &header, |_| true).unwrap();
        }
        // A person has the first half of the letters tried again, and throws the rest away.
        "letters" => {
            let queue = open(within);
            let letters: Vec<_> = queue.letters().map(|letter| letter.unwrap().entry).collect();
            for (n, letter) in letters.iter().enumerate() {
                if n < letters.len() / 2 {
                    queue.retry_dead_letter(letter.id, &|_| true).unwrap();
                } else {
                    queue.discard_dead_letter(letter.id).unwrap();
                }
                if n % 4 == 3 {
                    queue.flush().unwrap();
                }
            }
            // Of those that were tried again, every other one succeeds.
            ack(&queue, |id| match id % 2 {
                0 => Outcome::Applied,
                _ => refused(),
            });
            queue.flush().unwrap();
        }
        "aside" => {
            let (_, rebuilt) = Queue::open_or_rebuild(&options(within, true)).unwrap();
            assert!(rebuilt.is_some());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn whoever_is_cut_off() {
    if let (Ok(what), Ok(within)) = (std::env::var(DOES), std::env::var(WITHIN)) {
        does(&what, Path::new(&within));
    }
}

/// Opens what is left, which must not hang. `None` for one that is damaged, and says so.
fn opened(within: &Path) -> Option<Queue> {
    let (sender, receiver) = mpsc::channel();
    let options = options(within, false);
    std::thread::spawn(move || {
        let _ = sender.send(Queue::open(&options));
    });
    match receiver.recv_timeout(PATIENCE).expect("opening the queue hangs") {
        Ok(queue) => Some(queue),
        Err(error) if error.is_damage() => {
            println!("{error}");
            None
        }
        Err(QueueError::Disk(error)) => panic!("no disk has failed: {error}"),
        Err(error) => panic!("{error}"),
    }
}

/// How many were looked at, and how many of them opened.
#[derive(Debug, Default)]
struct Tally {
    looked: u32,
    opened: u32,
}

/// A queue whose own file of settings, which is written in two parts, is cut off between them was never opened, and is
/// made anew: it held nothing.
const NEVER_OPENED: u32 = 1;

/// Every call has its turn, `make nightly`, and each is cut off so often.
const EVERY: &str = "OUTRIGGER_TEST_EVERY_CALL";
const CUTS_OF_EACH: usize = 2;

/// Which calls have their turn: some, spread over all of them, others in each run, and the first and the last.
fn chosen(calls: usize, times: usize, each: usize, rng: &mut StdRng) -> Vec<usize> {
    if std::env::var_os(EVERY).is_some() {
        return (0..=calls).flat_map(|n| std::iter::repeat_n(n, each)).collect();
    }
    let between = (1..times - 1).map(|time| {
        let from = calls * (time - 1) / (times - 2);
        let until = (calls * time / (times - 2)).max(from + 1);
        rng.random_range(from..until)
    });
    std::iter::once(0).chain(between).chain([calls]).collect()
}

/// Has `what` be done to the files in `before`, and `look` at what is left behind `kills` and `cuts` of its calls.
fn behind_each_call(
    what: &str,
    before: &TempDir,
    (kills, cuts): (usize, usize),
    look: impl Fn(&Path) -> bool,
) -> Option<[Tally; 2]> {
    let tools = TempDir::new().unwrap();
    let Some(library) = library(tools.path()) else {
        not_proved(Need::CCompiler);
        return None;
    };
    let folder = TempDir::new().unwrap();
    copy_dir(before.path(), folder.path());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "power_cut::whoever_is_cut_off", "--nocapture"]);
    command.env(DOES, what).env(WITHIN, folder.path());
    let calls = Calls::of(command, &library, folder.path(), before.path().to_owned());
    let mut rng = StdRng::seed_from_u64(seed());
    let tallies = [(true, kills), (false, cuts)].map(|(is_kill, times)| {
        let mut tally = Tally::default();
        for n in chosen(calls.len(), times, if is_kill { 1 } else { CUTS_OF_EACH }, &mut rng) {
            let left = TempDir::new().unwrap();
            let end = if is_kill { End::Kill } else { End::PowerCut(&mut rng) };
            calls.left(n, end, left.path());
            let end = if is_kill { "killed" } else { "no power" };
            println!("{what}: {end} behind call {n}, {}", calls.told(n));
            tally.looked += 1;
            tally.opened += u32::from(look(left.path()));
        }
        tally
    });
    println!("{what}: {} calls, killed and without power: {tallies:?}", calls.len());
    Some(tallies)
}

/// A checkpoint is believed only with the changes before it (I1), and no change is gone that was neither applied nor is a
/// dead letter (I4).
#[test]
fn a_queue_at_work_that_is_killed_goes_on_and_one_without_power_goes_on_or_says_that_it_is_damaged()
{
    let look = |left: &Path| {
        let Some(queue) = opened(left) else { return false };
        let Some(at) = queue.checkpoint().unwrap() else { return true };
        let entries = queue.entries().map(Result::unwrap).map(|entry| (id_of(&entry), entry));
        let waiting: BTreeMap<i64, Entry> = entries.collect();
        let dead = queue.letters().map(|letter| id_of(&letter.unwrap().entry));
        let dead: Vec<i64> = dead.collect();
        let n = at.anchor.0 as i64;
        for id in (1..=n).filter(|id| id % 3 != 0 && !dead.contains(id)) {
            let entry = waiting.get(&id).unwrap_or_else(|| panic!("{id} is gone, before {n}"));
            let Work::Document { op: WriteOp::Insert(document), .. } = &entry.work else {
                panic!("{entry:?}")
            };
            let v = document.get_i64("v").unwrap();
            assert!(v >= n.min(id + 19), "{id} is as of {v}, and the checkpoint of {n}");
        }
        assert!(dead.iter().all(|id| id % 5 == 0), "{dead:?}");
        true
    };
    let nothing = TempDir::new().unwrap();
    let Some([killed, cut]) = behind_each_call("work", &nothing, (60, 60), look) else { return };
    assert!(killed.opened + NEVER_OPENED >= killed.looked, "a kill damages nothing: {killed:?}");
    assert!(cut.opened > 5, "no cut left a queue that opens: {cut:?}");
}

/// A queue that many changes went through, or wait in.
fn filled(documents: i64, filler: usize, stays: impl Fn(i64) -> bool) -> TempDir {
    let dir = TempDir::new().unwrap();
    let queue = open(dir.path());
    let mut rng = StdRng::seed_from_u64(1);
    for first in (1..=documents).step_by(50) {
        // Nothing that could be packed.
        let mut some = || (0..filler).map(|_| rng.random_range(' '..'~')).collect::<String>();
        let ids = first..(first + 50).min(documents + 1);
        let ops = ids.map(|id| insert(id, id, &some())).collect();
        queue.commit(ops, Some(&checkpoint(first))).unwrap();
        let batch = queue.lease(100, usize::MAX, 0).unwrap();
        let acked = |entry: &Entry| {
            let Entry { seq, version, .. } = *entry;
            let back = Outcome::Retry { due_ms: 1, error: "later".into() };
            let outcome = if stays(id_of(entry)) { back } else { Outcome::Applied };
            Ack { seq, version, outcome }
        };
        queue.ack(&batch.entries.iter().map(acked).collect::<Vec<_>>()).unwrap();
    }
    queue.flush().unwrap();
    drop(queue);
    dir
}

#[test]
fn files_that_are_written_anew_are_the_old_or_the_new_ones_at_any_moment() {
    let before = filled(750, 60_000, |id| id % 100 == 0);
    let wanted = held(&open(before.path()));
    assert_eq!(wanted.0.len(), 7);
    let look = |left: &Path| {
        let queue = opened(left).expect("neither of them is damaged");
        assert_eq!(held(&queue), wanted);
        !left.join("queue/anew").exists() && left.join("queue/db").metadata().unwrap().len() > 0
    };
    let Some([killed, cut]) = behind_each_call("anew", &before, (14, 20), look) else { return };
    assert_eq!((killed.opened, cut.opened), (killed.looked, cut.looked));
}

#[test]
fn a_queue_that_is_cleared_has_all_of_its_changes_or_owes_a_comparison_at_any_moment() {
    let before = filled(2_500, 20, |_| true);
    let look = |left: &Path| {
        let Some(queue) = opened(left) else { return false };
        let owes = SyncState::open(&queue).unwrap().is_some();
        let waiting = queue.pending().0;
        assert!(waiting == 2_500 || owes, "{waiting} of 2500 are left, and nothing is compared");
        true
    };
    let Some([killed, _]) = behind_each_call("clear", &before, (20, 30), look) else { return };
    assert_eq!(killed.opened, killed.looked);
}

#[test]
fn a_queue_that_is_moved_in_counts_as_a_whole_or_not_at_all_at_any_moment() {
    let of = filled(2_500, 20, |_| true);
    let wanted = held(&open(of.path()));
    let before = TempDir::new().unwrap();
    let mut file = std::fs::File::create(before.path().join("exported")).unwrap();
    open(of.path()).export(&mut file, Whole::Yes).unwrap();
    let look = |left: &Path| {
        let Some(queue) = opened(left) else { return false };
        let found = held(&queue);
        assert!(found.1.is_none() || found == wanted, "{} of 2500 at {:?}", found.0.len(), found.1);
        true
    };
    let Some([killed, _]) = behind_each_call("move", &before, (20, 30), look) else { return };
    assert!(killed.opened + NEVER_OPENED >= killed.looked, "{killed:?}");
}

/// A letter is a letter, waits, or was settled or thrown away by what the process did; it is never both gone and not done.
#[test]
fn letters_that_are_tried_again_and_thrown_away_are_nowhere_lost_at_any_moment() {
    const LETTERS: i64 = 40;
    let before = TempDir::new().unwrap();
    let queue = open(before.path());
    let ops = (1..=LETTERS).map(|id| insert(id, id, "some text")).collect();
    queue.commit(ops, Some(&checkpoint(1))).unwrap();
    ack(&queue, |_| refused());
    assert_eq!(queue.letters().count() as i64, LETTERS);
    queue.flush().unwrap();
    drop(queue);
    let look = |left: &Path| {
        let Some(queue) = opened(left) else { return false };
        let letters: Vec<_> = queue.letters().map(|letter| id_of(&letter.unwrap().entry)).collect();
        let waiting: Vec<_> = queue.entries().map(|entry| id_of(&entry.unwrap())).collect();
        for id in 1..=LETTERS {
            let times = letters.iter().filter(|letter| **letter == id).count();
            assert!(times <= 1, "{id} is a letter {times} times");
            let may_be_gone = id > LETTERS / 2 || id % 2 == 0;
            assert!(times == 1 || may_be_gone, "{id} is gone, waiting {}", waiting.contains(&id));
        }
        // Nobody threw away the later ones before the earlier ones.
        let gone = |id: &i64| !letters.contains(id);
        let thrown: Vec<_> = (LETTERS / 2 + 1..=LETTERS).filter(gone).collect();
        let first = LETTERS / 2 + 1;
        assert_eq!(thrown, (first..first + thrown.len() as i64).collect::<Vec<_>>());
        // Only once all of those were thrown away was anything settled.
        let settled = (1..=LETTERS / 2).filter(gone).count();
        assert!(settled == 0 || thrown.len() as i64 == LETTERS / 2, "{settled}, {thrown:?}");
        true
    };
    let Some([killed, cut]) = behind_each_call("letters", &before, (20, 30), look) else { return };
    assert_eq!(killed.opened, killed.looked);
    assert!(cut.opened > 0, "{cut:?}");
}

#[test]
fn a_damaged_queue_that_is_put_aside_has_everything_compared_at_any_moment() {
    let before = filled(100, 20, |_| true);
    let db = before.path().join("queue/db");
    let damaged: Vec<u8> = std::fs::read(&db).unwrap().iter().map(|byte| byte ^ 0xA5).collect();
    std::fs::write(&db, &damaged).unwrap();
    let look = |left: &Path| {
        let (queue, _) = Queue::open_or_rebuild(&options(left, true)).unwrap();
        assert_eq!(held(&queue), (BTreeMap::new(), None), "everything is compared");
        true
    };
    behind_each_call("aside", &before, (20, 30), look);
}
