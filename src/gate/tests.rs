//! The rules of the gate, alone and in random interleavings against a world in which databases are exchanged.

use proptest::prelude::*;

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

/// What can happen, in any order.
#[derive(Clone, Debug)]
enum Step {
    /// The server is started again with the right data, or another member is elected.
    Restart,
    /// Another database comes up at the address.
    Exchange,
    /// The right one is back.
    Return,
    /// Somebody meets the broken connection.
    Error,
    BeginProof,
    EndProof,
    BeginRead,
    /// The answer is here, and written if its permit holds.
    EndRead,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Restart),
        Just(Step::Exchange),
        Just(Step::Return),
        Just(Step::Error),
        Just(Step::BeginProof),
        Just(Step::EndProof),
        Just(Step::BeginRead),
        Just(Step::EndRead),
    ]
}

/// The server of the moment: every start of one is another process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Server {
    process: u8,
    is_ours: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Nothing is written that was read from a database that is not ours, however errors, proofs, restarts and
    /// reads fall together; and what is written was read and is written in one epoch.
    #[test]
    fn nothing_is_written_that_was_read_from_another_database(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let gate = Arc::new(Gate::default());
        let mut server = Server { process: 1, is_ours: true };
        let mut starts = 1_u8;
        let mut start = |is_ours| {
            starts = starts.wrapping_add(1);
            Server { process: starts, is_ours }
        };
        let mut proofs: Vec<(Attempt, Server)> = Vec::new();
        let mut reads: Vec<(Permit, Server)> = Vec::new();
        for step in steps {
            match step {
                Step::Restart => server = start(server.is_ours),
                Step::Exchange => server = start(false),
                Step::Return => server = start(true),
                Step::Error => gate.close(&gate.permit(), "an error"),
                Step::BeginProof => proofs.push((gate.begin_proof(), server)),
                // What a proof finds is of the process that it asked, which may have ended since.
                Step::EndProof => if let Some((attempt, asked)) = proofs.pop() {
                    if asked.is_ours {
                        gate.proved(attempt, process(asked.process));
                    } else {
                        gate.refuted();
                    }
                },
                Step::BeginRead => reads.push((gate.permit(), server)),
                Step::EndRead => if let Some((permit, answered)) = reads.pop() {
                    // The edge knows which process a connection leads to.
                    let is_believed = gate.is_of(&permit, process(answered.process));
                    if is_believed && permit.holds() {
                        prop_assert!(answered.is_ours);
                    } else if !is_believed {
                        gate.close(&permit, "another process");
                    }
                },
            }
        }
    }
}
