//! The rules of the gate, alone and in random interleavings against a world in which databases are exchanged.

use std::{
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;

use super::past::Finding;
use super::*;

fn process(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 12])
}

fn open(gate: &Arc<Gate>, n: u8) -> Permit {
    let attempt = gate.begin_proof();
    assert!(gate.proved(attempt, process(n)));
    gate.permit()
}

#[test]
fn g1_a_permit_ends_with_its_epoch_and_none_holds_while_the_gate_is_closed() {
    let gate = Arc::new(Gate::default());
    assert!(!gate.permit().holds(), "it begins closed");
    let first = open(&gate, 1);
    assert!(first.holds());

    gate.close(&first, "an error");

    assert!(!first.holds() && !gate.permit().holds());
    let second = open(&gate, 1);
    assert!(second.holds() && !first.holds(), "an epoch never comes back");
}

#[test]
fn g2_a_proof_that_something_has_closed_the_gate_under_does_not_open_it() {
    let gate = Arc::new(Gate::default());
    let attempt = gate.begin_proof();
    gate.close(&gate.permit(), "an error while it is closed");

    assert!(!gate.proved(attempt, process(1)));
    assert!(!gate.permit().holds());
}

#[test]
fn g3_another_process_begins_another_epoch() {
    let gate = Arc::new(Gate::default());
    let first = open(&gate, 1);
    assert!(gate.is_of(&first, process(1)) && !gate.is_of(&first, process(2)));

    let second = open(&gate, 2);

    assert!(!first.holds() && second.holds());
    assert!(gate.is_of(&second, process(2)) && !gate.is_of(&first, process(2)));
}

#[test]
fn a_proof_of_the_same_process_does_not_end_the_epoch() {
    let gate = Arc::new(Gate::default());
    let permit = open(&gate, 1);

    open(&gate, 1);

    assert!(permit.holds());
}

#[test]
fn what_an_ended_epoch_has_to_say_closes_no_later_one() {
    let gate = Arc::new(Gate::default());
    let first = open(&gate, 1);
    gate.close(&first, "an error");
    let second = open(&gate, 1);

    gate.close(&first, "the error of a read that was slow");

    assert!(second.holds());
}

#[tokio::test]
async fn a_wanted_proof_that_brings_nothing_is_wanted_still() {
    let gate = Arc::new(Gate::default());
    open(&gate, 1);
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { gate.proven_anew_within(Duration::from_secs(30)).await }
    });
    gate.proof_wanted().await;
    // Interrupted, say, while the gate stays open.
    let _ = gate.begin_proof();

    tokio::time::timeout(Duration::from_secs(1), gate.proof_wanted()).await.expect("wanted still");
    open(&gate, 1);

    assert!(waiter.await.expect("a result"));
    let more = tokio::time::timeout(Duration::from_millis(100), gate.proof_wanted()).await;
    assert!(more.is_err(), "no proof is wanted that nobody waits for");
}

/// What can happen, in any order. A number chooses one of several, by the rest of a division.
#[derive(Clone, Debug)]
enum Step {
    /// The server is started again with the right data, or another member is elected.
    Election,
    /// Another database comes up at the address: wiped, restored, or somebody else's.
    Exchange,
    /// The right one is back.
    Return,
    /// The machine is put back to a snapshot: the same process, in an older state.
    Snapshot,
    /// Somebody meets a broken connection.
    Error,
    /// Somebody who has read meets one, late.
    LateError(usize),
    BeginProof,
    EndProof(usize),
    BeginRead,
    /// The answer of one is here.
    Answer(usize),
    /// What was believed of one is written, if its permit holds.
    Write(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let one = || 0..8_usize;
    prop_oneof![
        1 => Just(Step::Election),
        1 => Just(Step::Exchange),
        1 => Just(Step::Return),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Error),
        1 => one().prop_map(Step::LateError),
        4 => Just(Step::BeginProof),
        4 => one().prop_map(Step::EndProof),
        4 => Just(Step::BeginRead),
        4 => one().prop_map(Step::Answer),
        4 => one().prop_map(Step::Write),
    ]
}

/// The server of the moment: every start of one is another process, and whatever happens to it ends its
/// connections.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Server {
    process: u8,
    connection: u8,
    is_ours: bool,
}

/// Something that was read, and how often the gate had been closed when it was asked for.
struct Read {
    permit: Permit,
    from: Server,
    closed: u64,
    /// Under a permit, and not while the gate was closed.
    is_permitted: bool,
}

/// Waits to be asked again.
type Waiting = Pin<Box<dyn Future<Output = bool>>>;

/// The gate, among those who go by it as [`mongo`](crate::mongo) and the gatekeeper do.
struct World {
    gate: Arc<Gate>,
    server: Server,
    starts: u8,
    /// How often the gate was closed, as it should have been.
    closed: u64,
    /// The process of the epoch that should last.
    open: Option<u8>,
    proofs: Vec<(Attempt, Server, u64)>,
    asked: Vec<Read>,
    /// Answers that came over a connection that no proof began after.
    waiting: Vec<(Read, Waiting)>,
    proven_connections: Vec<u8>,
    believed: Vec<Read>,
    written: u64,
}

fn take<T>(of: &mut Vec<T>, n: usize) -> Option<T> {
    (!of.is_empty()).then(|| of.swap_remove(n % of.len()))
}

impl World {
    fn new() -> Self {
        Self {
            gate: Arc::default(),
            server: Server { process: 1, connection: 1, is_ours: true },
            starts: 1,
            closed: 0,
            open: None,
            proofs: Vec::new(),
            asked: Vec::new(),
            waiting: Vec::new(),
            proven_connections: Vec::new(),
            believed: Vec::new(),
            written: 0,
        }
    }

    fn start(&mut self, process: Option<u8>, is_ours: bool) {
        self.starts += 1;
        let process = process.unwrap_or(self.starts);
        self.server = Server { process, connection: self.starts, is_ours };
    }

    fn shut(&mut self) {
        self.closed += 1;
        self.open = None;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Election => self.start(None, self.server.is_ours),
            Step::Exchange => self.start(None, false),
            Step::Return => self.start(None, true),
            Step::Snapshot => self.start(Some(self.server.process), false),
            Step::Error => {
                self.gate.close(&self.gate.permit(), "an error");
                self.shut();
            }
            Step::LateError(n) => {
                if let Some(read) = take(&mut self.asked, n) {
                    if read.is_permitted && read.closed == self.closed {
                        self.shut();
                    }
                    self.gate.close(&read.permit, "an error");
                }
            }
            Step::BeginProof => {
                self.proofs.push((self.gate.begin_proof(), self.server, self.closed));
            }
            Step::EndProof(n) => {
                if let Some(proof) = take(&mut self.proofs, n) {
                    self.end(proof);
                }
            }
            Step::BeginRead => {
                let permit = self.gate.permit();
                let (from, closed) = (self.server, self.closed);
                let is_permitted = self.open.is_some();
                self.asked.push(Read { permit, from, closed, is_permitted });
            }
            Step::Answer(n) => {
                if let Some(read) = take(&mut self.asked, n) {
                    self.answered(read);
                }
            }
            Step::Write(n) => {
                if let Some(read) = take(&mut self.believed, n)
                    && read.permit.holds()
                {
                    assert!(read.from.is_ours, "written from {:?}", read.from);
                    assert_eq!(read.closed, self.closed, "read before the gate was closed");
                    self.written += 1;
                }
            }
        }
        self.look_at_who_waits();
    }

    /// What a proof finds is of the server that it asked, which may have ended since.
    fn end(&mut self, (attempt, asked, closed): (Attempt, Server, u64)) {
        if !asked.is_ours {
            self.gate.refuted(Finding::OtherPast);
            return self.shut();
        }
        if self.gate.proved(attempt, process(asked.process)) {
            assert_eq!(closed, self.closed, "something closed the gate under the proof");
            if self.open.is_some_and(|open| open != asked.process) {
                self.shut();
            }
            self.open = Some(asked.process);
        }
    }

    fn answered(&mut self, read: Read) {
        if !self.gate.is_of(&read.permit, process(read.from.process)) {
            if read.is_permitted && read.closed == self.closed {
                self.shut();
            }
            return self.gate.close(&read.permit, "another process");
        }
        if self.proven_connections.contains(&read.from.connection) {
            return self.believed.push(read);
        }
        let gate = self.gate.clone();
        let proof = async move { gate.proven_anew_within(Duration::from_secs(3_600)).await };
        self.waiting.push((read, Box::pin(proof)));
    }

    fn look_at_who_waits(&mut self) {
        let mut still = Vec::new();
        for (read, mut proof) in std::mem::take(&mut self.waiting) {
            let mut nobody = Context::from_waker(Waker::noop());
            match proof.as_mut().poll(&mut nobody) {
                Poll::Pending => still.push((read, proof)),
                Poll::Ready(is_proven) => {
                    if is_proven && read.permit.holds() {
                        self.proven_connections.push(read.from.connection);
                        self.believed.push(read);
                    }
                }
            }
        }
        self.waiting = still;
    }
}

/// Runs the steps; returns how much was written.
fn run(steps: &[Step]) -> u64 {
    // For the patience of who waits, which never ends here.
    static CLOCK: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime")
    });
    let _clock = CLOCK.enter();
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    world.written
}

#[test]
fn what_is_read_and_proven_is_written() {
    let steps = [
        Step::BeginProof,
        Step::EndProof(0),
        Step::BeginRead,
        Step::Answer(0),
        Step::BeginProof,
        Step::EndProof(0),
        Step::Write(0),
        Step::BeginRead,
        Step::Answer(0),
        Step::Write(0),
    ];

    assert_eq!(run(&steps), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Nothing is written that was read from a database that is not ours, nor what was read before the gate was
    /// closed, however local errors, proofs, restores, elections, and reads in flight fall together.
    #[test]
    fn nothing_is_written_that_was_read_from_another_database_or_in_another_epoch(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        run(&steps);
    }
}
